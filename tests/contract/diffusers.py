"""diffusers under the contract: its vector quantizer, alone and inside `VQModel`, whose output shows no codes."""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.vae import VectorQuantizer
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from .case import Case, Run, flat, offset_data
from .taming import images, remapped, run_remapped

__all__ = ["CASES", "vq_model"]


def _run(module: nn.Module, x: Tensor) -> Run:
    _, loss, (*_, codes) = module(x)
    return Run({"quantizer": flat(codes)}, loss)


def vq_model() -> nn.Module:
    make: Any = VQModel
    model = make(block_out_channels=(8,), latent_channels=4, vq_embed_dim=4, num_vq_embeddings=16, norm_num_groups=2)
    assert isinstance(model, nn.Module)
    return model.train()


def _run_model(module: nn.Module, x: Tensor) -> Run:
    """Run the whole model; it keeps its codes to itself, so they are those of its quantizer's own lookup."""
    asked: list[Tensor] = []
    handle = module.get_submodule("quantize.embedding").register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    output = module(x)
    handle.remove()
    return Run(
        {"quantizer.quantize": flat(asked[0])}, output.commit_loss + (output.sample - x.detach()).square().mean()
    )


def _case(build: Any, *, mode: str = "", run: Any = _run) -> Case:
    return Case(
        package="diffusers",
        cls="VectorQuantizer",
        mode=mode,
        build=build,
        batch=images,
        run=run,
        views=("quantizer",),
    )


CASES = (
    _case(lambda: VectorQuantizer(16, 8, beta=0.25)),
    _case(lambda: VectorQuantizer(16, 8, beta=0.25, legacy=False), mode="legacy=False"),
    _case(lambda: remapped(VectorQuantizer, 16, 8, beta=0.25), mode="remap", run=run_remapped),
    Case(
        package="diffusers",
        cls="VQModel",
        build=vq_model,
        batch=lambda: offset_data(2, 3, 8, 8, channel=1),
        run=_run_model,
        views=("quantizer.quantize",),
    ),
)
