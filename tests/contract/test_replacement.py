"""Quantizers' own replacement of dead codes: encodec's is undone in the same forward; the guard turns it off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard
from tests.loops import Recorder

from .case import offset_data
from .packages import import_inside
from .replacement import SITUATIONS, outcome

ALWAYS: dict[str, Any] = {
    "version": 1,
    "name": "always",
    "sample": {"every": "2 steps", "when_suspect": "2 steps", "min_tokens": 1},
    "rules": [
        {
            "name": "always",
            "when": "perplexity < 1000000",
            "for": 1,
            "clear": {"when": "perplexity >= 0", "for": 1},
            "cooldown": "1 steps",
            "verify": {"within": "100 steps"},
            "ladder": [{"reset_codes": {"scope": "all", "source": "kmeans"}}],
        }
    ],
}
"""Resets at once; nothing is settled before the run ends."""


@pytest.mark.parametrize(("kmeans_init", "jumps"), SITUATIONS)
def test_encodecs_own_replacement_changes_no_bit_of_the_codebook_and_the_guards_reset_holds(
    kmeans_init: bool, jumps: bool
) -> None:
    for seed in range(5):
        neither, own, guarded = (
            outcome(arm, seed, kmeans_init=kmeans_init, jumps=jumps) for arm in ("neither", "encodec's own", "guard")
        )
        assert torch.equal(own.table, neither.table)
        assert guarded.used > 60
        assert guarded.error <= neither.error
        if jumps or not kmeans_init:
            assert own.used <= 35
            assert guarded.error < 0.35 * own.error


def vector_quantize() -> tuple[nn.Module, nn.Module]:
    vq = VectorQuantize(dim=8, codebook_size=16, threshold_ema_dead_code=2)
    return vq, vq._codebook


def vector_quantization() -> tuple[nn.Module, nn.Module]:
    core = import_inside("encodec", "quantization.core_vq")
    vq = core.VectorQuantization(dim=8, codebook_size=16, kmeans_init=False, threshold_ema_dead_code=2)
    return vq, vq._codebook


@pytest.mark.parametrize(
    ("make", "channel"), [(vector_quantize, -1), (vector_quantization, 1)], ids=["vector-quantize-pytorch", "encodec"]
)
def test_in_a_run_the_quantizers_own_replacement_is_off_from_the_first_reset_to_the_end_and_on_again_after_it(
    make: Callable[[], tuple[nn.Module, nn.Module]], channel: int
) -> None:
    torch.manual_seed(0)
    quantizer, inner = make()
    model = nn.Sequential(quantizer).train()
    recorder = Recorder()
    thresholds: dict[bool, set[int]] = {False: set(), True: set()}
    with Guard(ALWAYS, console=False, sinks=[recorder]) as guard:
        guard.attach(model)
        for _ in range(12):
            model(offset_data(4, 64, 8, channel=-1) if channel == -1 else offset_data(4, 8, 64, channel=1))
            guard.step()
            thresholds[bool(recorder.of("intervention"))].add(inner.threshold_ema_dead_code)
        assert not recorder.of("fault", "outcome")
    assert thresholds == {False: {2}, True: {0}}
    assert inner.threshold_ema_dead_code == 2
