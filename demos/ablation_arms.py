"""What was proposed against the collapse of the reference quantizer, each as a way to train.

Every arm comes twice, with the factor missing as it was and with it put back, unless it has no such factor. A and B are
its owner's: A is five changes at once, which also stand one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .quantizer import ReferenceQuantizer
from .training import Arm

__all__ = ["ABLATION_ARMS", "BASELINES", "Bypassed", "FsqQuantizer", "Projected", "TwoLevels"]

_WARM_UP = 1000
_DECAY, _COMMITMENT = {"decay": 0.99}, {"commitment": 0.01}
_RESTART: dict[str, Any] = {"restart_every": 20, "starved_below": 0.5, "restarts_averages": True}

_FALLBACK_ALONE = {
    "version": 1,
    "name": "fallback-alone",
    "extends": "default",
    "rules": [{"name": name, "ladder": ["fallback_tokenizer"]} for name in ("collapsed", "astray", "collapsing")],
}
_FROZEN_AT_FIRST = {
    "version": 1,
    "name": "frozen-at-first",
    "sample": {"every": "10 steps", "when_suspect": "10 steps", "min_tokens": 64},
    "rules": [
        {
            "name": "warm_up",
            "when": f"step < {_WARM_UP}",
            "severity": "info",
            "clear": {"for": 1},
            "verify": {"within": f"{_WARM_UP + 100} steps"},
            "ladder": [{"freeze_encoder": {"for": f"{_WARM_UP} steps"}}],
        }
    ],
}


class Projected(nn.Module):
    """A quantizer between two learned projections: one token of `width` dimensions is quantised in D.

    Args:
        quantizer: of D dimensions. width, D: of the token outside and inside.
    """

    def __init__(self, quantizer: nn.Module, width: int = 128, D: int = 64) -> None:
        """Build the projections."""
        super().__init__()
        self.down, self.quantizer, self.up = nn.Linear(width, D), quantizer, nn.Linear(D, width)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (output (..., width), codes (...), loss)."""
        quantized, codes, loss = self.quantizer(self.down(inputs))
        return self.up(quantized), codes, loss


class Bypassed(nn.Module):
    """A quantizer that is left out of the first training steps: latents pass L2-normalised, and its codebook rests.

    Args:
        quantizer: that begins afterwards. steps: that it is left out of.
    """

    def __init__(self, quantizer: nn.Module, steps: int = _WARM_UP) -> None:
        """Nothing was seen yet."""
        super().__init__()
        self.quantizer, self.steps, self.seen = quantizer, steps, 0

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (output, codes or `None` meanwhile, loss)."""
        self.seen += self.training
        if self.seen <= self.steps:
            return functional.normalize(inputs, dim=-1), None, inputs.new_zeros(())
        return cast("tuple[Tensor, Tensor, Tensor]", self.quantizer(inputs))


class TwoLevels(nn.Module):
    """A residual of two reference quantizers of 256 codes each; the latents are normalised, what is left over is not.

    Args:
        repaired: of both.
    """

    def __init__(self, *, repaired: bool) -> None:
        """Build the levels."""
        super().__init__()
        self.levels = nn.ModuleList(ReferenceQuantizer(normalised=False, repaired=repaired) for _ in range(2))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (output, codes (..., 2), loss)."""
        latents = functional.normalize(inputs, dim=-1)
        left, total, codes, loss = latents, torch.zeros_like(latents), [], latents.new_zeros(())
        for level in self.levels:
            quantized, chosen, own = level(left)
            left, total, loss = left - quantized.detach(), total + quantized.detach(), loss + own
            codes.append(chosen)
        return latents + (total - latents).detach(), torch.stack(codes, dim=-1), loss


class FsqQuantizer(nn.Module):
    """FSQ of vector-quantize-pytorch with 8 x 8 x 4 = 256 codes and its own two projections; it has no codebook."""

    def __init__(self) -> None:
        """Build it; the library is of the dev extra."""
        super().__init__()
        from vector_quantize_pytorch import FSQ

        self.fsq = FSQ(levels=[8, 8, 4], dim=64)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (output, codes, no loss)."""
        quantized, codes = self.fsq(inputs)
        return quantized, codes.long(), inputs.new_zeros(())


def _pair(
    key: str,
    name: str,
    meaning: str,
    make: Callable[..., nn.Module] = ReferenceQuantizer,
    options: Mapping[str, Any] | None = None,
    **arm: Any,
) -> dict[tuple[str, str], Arm]:
    """Return one proposal with the factor missing and with it put back."""

    def make_with(repaired: bool) -> Callable[[], nn.Module]:
        return lambda: make(repaired=repaired, **(options or {}))

    return {
        (key, factor): Arm(name, meaning, make_with(factor == "put back"), **arm) for factor in ("missing", "put back")
    }


def _projected(**options: Any) -> nn.Module:
    return Projected(ReferenceQuantizer(**options))


def _bypassed(**options: Any) -> nn.Module:
    return Bypassed(ReferenceQuantizer(**options))


BASELINES = ("without", "reference", "guarded")
"""Arms that nobody proposed: what there was, what there could be, and the guard."""

_A: dict[str, Any] = {"D": 128, **_DECAY, **_COMMITMENT, "normalised": False, **_RESTART}
_RESTART_SAYS = "restart every 20 steps of codes with an average count below 0.5, averages written too"

ABLATION_ARMS: dict[tuple[str, str], Arm] = {
    ("without", "-"): Arm("without VQ", "the same tokens, L2-normalised, not quantised", None),
    **_pair("reference", "nothing", "the reference quantizer; K 256, D 64, decay 0.95, commitment 0.4, normalised"),
    **_pair("guarded", "collapse_guard, `default`", "the same under the preset `default`", guarded=True),
    **_pair(
        "A",
        "A, all five",
        "one token of 128 dimensions, decay 0.99, commitment 0.01, no normalisation, stricter restart",
        options=_A,
        tokens=1,
    ),
    **_pair(
        "A-dimension", "A: D 128", "one token of 128 dimensions in place of two of 64", options={"D": 128}, tokens=1
    ),
    **_pair("A-decay", "A: decay 0.99", "slower averages", options=_DECAY),
    **_pair("A-commitment", "A: commitment 0.01", "a weaker pull on the encoder", options=_COMMITMENT),
    **_pair("A-norm", "A: no normalisation", "latents as long as they are", options={"normalised": False}),
    **_pair("A-restart", "A: stricter restart", _RESTART_SAYS, options=_RESTART),
    **_pair(
        "B", "B: projection 128 -> 64", "one token, quantised between two learned projections", _projected, tokens=1
    ),
    **_pair(
        "C",
        "C: k-means fallback alone",
        "guarded by `default` with `fallback_tokenizer` as the only rung of each ladder",
        guarded=True,
        policy=_FALLBACK_ALONE,
    ),
    **_pair("clip", "gradient clipping", "the Trainer clips gradients at norm 1", gradient_clip=1.0),
    **_pair(
        "warm-up",
        "warm-up, quantizer bypassed",
        f"the quantizer is left out of the first {_WARM_UP} steps of 1350, in which the model learns without it",
        _bypassed,
    ),
    **_pair(
        "frozen",
        "warm-up, encoder frozen",
        f"`freeze_encoder` holds the encoder from the first reading, at step 10, for {_WARM_UP} steps",
        guarded=True,
        policy=_FROZEN_AT_FIRST,
    ),
    ("fsq", "-"): Arm("FSQ", "levels 8, 8, 4 of vector-quantize-pytorch; no codebook to average", FsqQuantizer),
    **_pair("residual", "residual VQ, two levels", "256 codes each, the second on what the first leaves", TwoLevels),
}
"""(proposal, factor: `missing`, `put back` or `-`) -> how it is trained."""
