"""The image tokenizers of transformers under the contract: their vector quantizers, alone and inside their VQ-VAEs.

The VQ-VAEs put themselves into eval mode when they are made: who trains one calls `train()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.chameleon import modeling_chameleon as chameleon
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.emu3 import modeling_emu3 as emu3
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.glm_image import modeling_glm_image as glm_image
from transformers.models.glm_image.configuration_glm_image import GlmImageVQVAEConfig
from transformers.models.janus import modeling_janus as janus
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from .case import Case, Run, flat, offset_data
from .taming import images

__all__ = ["CASES", "CONFIGS", "QUANTIZERS"]

SMALL: dict[str, Any] = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8}
CONV: dict[str, Any] = {"base_channels": 32, "channel_multiplier": (1, 1), "num_res_blocks": 1}
CONFIGS: dict[str, Any] = {
    "Chameleon": ChameleonVQVAEConfig(**SMALL, **CONV, resolution=16),
    "Janus": JanusVQVAEConfig(**SMALL, **CONV, num_patches=8),
    "GlmImage": GlmImageVQVAEConfig(**SMALL),
    "Emu3": Emu3VQVAEConfig(
        codebook_size=16,
        embed_dim=8,
        latent_channels=8,
        **CONV,
        attn_resolutions=(),
        temporal_downsample_factor=1,
        hidden_size=32,
    ),
}


def _maker(cls: Callable[[Any], nn.Module], name: str) -> Callable[[], nn.Module]:
    return lambda: cls(CONFIGS[name])


QUANTIZERS = {
    "Chameleon": _maker(chameleon.ChameleonVQVAEVectorQuantizer, "Chameleon"),
    "Janus": _maker(janus.JanusVQVAEVectorQuantizer, "Janus"),
    "GlmImage": _maker(glm_image.GlmImageVQVAEVectorQuantizer, "GlmImage"),
    "Emu3": _maker(emu3.Emu3VQVAEVectorQuantizer, "Emu3"),
}


def _pictures() -> Tensor:
    return offset_data(2, 3, 16, 16, channel=1)


def _run(module: nn.Module, x: Tensor) -> Run:
    _, loss, codes = module(x)
    return Run({"quantizer": flat(codes)}, loss)


def _run_encoder(module: nn.Module, x: Tensor) -> Run:
    """Train the part that quantises: Chameleon and GlmImage have no decoder."""
    encode: Any = module.encode
    output = encode(x)
    return Run({"quantizer.quantize": flat(output.image_tokens)}, output.embedding_loss)


def _run_janus(module: nn.Module, x: Tensor) -> Run:
    """Train all of it; the codes are those of the encoding, which the whole does not return."""
    seen: list[Tensor] = []
    handle = module.get_submodule("quantize").register_forward_hook(lambda _, __, output: seen.append(output[2]))
    output = module(x)
    handle.remove()
    loss = output.embedding_loss + (output.decoded_pixel_values - x.detach()).square().mean()
    assert isinstance(loss, Tensor)
    return Run({"quantizer.quantize": flat(seen[0])}, loss)


def _run_emu3(module: nn.Module, x: Tensor) -> Run:
    return Run({"quantizer": flat(module(x))}, None)


def _run_emu3_encoder(module: nn.Module, x: Tensor) -> Run:
    encode: Any = module.encode
    output = encode(x, torch.tensor([x.shape[-2:]] * len(x)))
    return Run({"quantizer.quantize": torch.cat([flat(tokens) for tokens in output.image_tokens])}, None)


def _bare(name: str, **options: Any) -> Case:
    fields: dict[str, Any] = {"batch": images, "run": _run}
    return Case(
        package="transformers",
        cls=f"{name}VQVAEVectorQuantizer",
        build=QUANTIZERS[name],
        views=("quantizer",),
        **fields | options,
    )


def _whole(name: str, cls: Callable[[Any], nn.Module], **options: Any) -> Case:
    fields: dict[str, Any] = {"batch": _pictures, "run": _run_encoder}
    return Case(
        package="transformers",
        cls=f"{name}VQVAE",
        build=lambda: cls(CONFIGS[name]).train(),
        views=("quantizer.quantize",),
        **fields | options,
    )


EMU3: dict[str, Any] = {"lacks": frozenset({"commitment"}), "trains": False}
CASES = (
    _bare("Chameleon"),
    _bare("Janus"),
    _bare("GlmImage"),
    _bare(
        "Emu3",
        batch=lambda: offset_data(2, 2, 8, 6, 6, channel=2),
        run=_run_emu3,
        **EMU3,
    ),
    _whole("Chameleon", chameleon.ChameleonVQVAE),
    _whole("Janus", janus.JanusVQVAE, run=_run_janus),
    _whole("GlmImage", glm_image.GlmImageVQVAE, batch=images),
    _whole("Emu3", emu3.Emu3VQVAE, run=_run_emu3_encoder, **EMU3),
)
