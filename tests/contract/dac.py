"""descript-audio-codec, and DAC of transformers, under the contract."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel
from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer, DacVectorQuantize

from .case import Case, Run, flat, offset_data
from .packages import import_inside

__all__ = ["CASES", "build_quietly", "kept_levels", "latents", "started_dac", "tiny_dac"]

dac = import_inside("dac", "nn.quantize")
NO_COMMITMENT = frozenset({"commitment"})
LEVELS = tuple(f"quantizer.quantizers.{level}" for level in range(3))


def latents() -> Tensor:
    return offset_data(8, 8, 32, channel=1)


def build_quietly(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The codecs still use the weight normalisation that torch has deprecated."""

    def quiet() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return build()

    return quiet


def tiny_dac(**options: Any) -> DacConfig:
    small: dict[str, Any] = {
        "encoder_hidden_size": 4,
        "downsampling_ratios": [2, 2],
        "decoder_hidden_size": 16,
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
    }
    return DacConfig(**(small | options))


def started_dac(**options: Any) -> DacModel:
    """A tiny DAC behind an encoder that stands still and tells its frames apart, as a trained one does.

    As transformers starts it (weights of 0.02), the first steps of its biases are larger than every latent, and all of
    them point the same way: no reset of codes holds against that.
    """
    model = DacModel(tiny_dac(**options))
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Embedding)):
            module.reset_parameters()
    with torch.no_grad():
        for module in model.encoder.modules():
            if isinstance(module, nn.Conv1d):
                cast(Tensor, module.bias).zero_()
        model.encoder.conv2.weight.mul_(20.0)
    model.encoder.requires_grad_(False)
    return model


def kept_levels(module: nn.Module, items: int, stream: Tensor) -> Tensor:
    """(items,) levels that a training forward keeps of each, drawn from the stream as both libraries draw them."""
    Q, dropout = cast(int, module.n_codebooks), cast(float, module.quantizer_dropout)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(stream)
        drawn = torch.randint(1, Q + 1, (items,))
    dropping = int(items * dropout)
    return torch.cat([drawn[:dropping], torch.full((items - dropping,), Q)])


def _single(module: nn.Module, x: Tensor) -> Run:
    _, commitment, codebook, codes, _ = module(x)
    return Run({"quantizer": flat(codes)}, (0.25 * commitment + codebook).mean())


def _residual(module: nn.Module, x: Tensor) -> Run:
    stream = torch.get_rng_state()
    _, codes, _, commitment, codebook = module(x)
    return Run(_of_levels(module, codes, stream, LEVELS), (0.25 * commitment + codebook).mean())


def _model(module: nn.Module, x: Tensor) -> Run:
    stream = torch.get_rng_state()
    output = module(x)
    names = tuple(f"quantizer.quantizer.quantizers.{level}" for level in range(3))
    codes = _of_levels(cast(nn.Module, module.quantizer), output.audio_codes, stream, names)
    return Run(codes, output.loss.mean() + (output.audio_values - x[:, 0]).square().mean())


def _of_levels(module: nn.Module, codes: Tensor, stream: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    kept = kept_levels(module, len(codes), stream)
    return {
        name: flat(codes[:, level].masked_fill((kept <= level).unsqueeze(-1), -1)) for level, name in enumerate(names)
    }


def _audio() -> Tensor:
    time = torch.arange(256)
    pitch = 0.05 * 2 ** (torch.randint(8, (4, 1, 1)) / 2)
    return torch.sin(pitch * time) + 0.1 * torch.randn(4, 1, 256)


def _descript(dropout: float, mode: str) -> Case:
    return Case(
        package="descript-audio-codec",
        cls="ResidualVectorQuantize",
        mode=mode,
        build=build_quietly(lambda: dac.ResidualVectorQuantize(8, 3, 16, [4, 3, 4], dropout)),
        batch=latents,
        run=_residual,
        views=LEVELS,
        lacks=NO_COMMITMENT,
    )


def _transformers(dropout: float, mode: str) -> Case:
    return Case(
        package="transformers",
        cls="DacResidualVectorQuantizer",
        mode=mode,
        build=lambda: DacResidualVectorQuantizer(tiny_dac(encoder_hidden_size=2, quantizer_dropout=dropout)),
        batch=latents,
        run=_residual,
        views=LEVELS,
        lacks=NO_COMMITMENT,
    )


CASES = (
    Case(
        package="descript-audio-codec",
        cls="VectorQuantize",
        build=build_quietly(lambda: dac.VectorQuantize(8, 16, 4)),
        batch=latents,
        run=_single,
        views=("quantizer",),
        lacks=NO_COMMITMENT,
    ),
    _descript(0.0, "all levels"),
    _descript(0.5, "quantizer dropout"),
    Case(
        package="transformers",
        cls="DacVectorQuantize",
        build=lambda: DacVectorQuantize(tiny_dac(encoder_hidden_size=2)),
        batch=latents,
        run=_single,
        views=("quantizer",),
        lacks=NO_COMMITMENT,
    ),
    _transformers(0.0, "all levels"),
    _transformers(0.5, "quantizer dropout"),
    Case(
        package="transformers",
        cls="DacModel",
        build=lambda: started_dac(quantizer_dropout=0.5),
        batch=_audio,
        run=_model,
        views=tuple(f"quantizer.quantizer.quantizers.{level}" for level in range(3)),
    ),
)
