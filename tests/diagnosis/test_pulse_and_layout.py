"""The pulse against gradients worked out by hand, and where a latent's features come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collapse_guard.diagnosis import Beat, Mark, Memory, Pulse
from collapse_guard.diagnosis.layout import width_before_cut
from collapse_guard.diagnosis.tokens import padded
from collapse_guard.policies import Reading
from tests.diagnosis.case import facts_of

D = 4


def felt(call: Any, loss_of: Any) -> tuple[Beat, Tensor, Tensor]:
    """Feel one backward; return the beat, the latents and the codes that were chosen."""
    torch.manual_seed(0)
    source = torch.randn(6, 5, D, requires_grad=True) * 2
    codes = torch.randn(6, 5, D)
    pulse = Pulse(D)
    pulse.arm()
    output = call(source, codes)
    pulse.feel(((source,), {}), (output,), source.detach().reshape(-1, D))
    loss_of(source, codes, output).backward()
    return Beat.of(pulse.take()), source.detach(), codes


def straight_through(source: Tensor, codes: Tensor) -> Tensor:
    return source + (codes - source).detach()


def pull(source: Tensor, codes: Tensor, output: Tensor) -> Tensor:
    return 3.0 * (source - codes).square().mean()


def task(source: Tensor, codes: Tensor, output: Tensor) -> Tensor:
    return (output * torch.arange(D)).sum() / 7


def test_the_commitments_share_is_the_cosine_that_numpy_finds() -> None:
    beat, source, codes = felt(straight_through, lambda *all_: pull(*all_) + task(*all_))
    gap = (source - codes).double().numpy().ravel()
    gradient = 6 * gap / gap.size + np.tile(np.arange(D), gap.size // D) / 7
    cosine = gradient @ gap / np.linalg.norm(gradient) / np.linalg.norm(gap)
    assert beat.pull == pytest.approx(cosine, abs=1e-5)
    assert beat.apart == pytest.approx(math.sqrt(1 - cosine**2), abs=1e-5)
    assert beat.norm == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=1e-5)
    assert beat.arrived == 1


def test_without_a_straight_through_nothing_but_the_pull_arrives() -> None:
    beat, _, _ = felt(lambda source, codes: codes.clone(), lambda *all_: pull(*all_) + task(*all_))
    assert beat.apart < 1e-5
    assert beat.pull == pytest.approx(1, abs=1e-5)


def test_where_nothing_arrives_that_is_felt_too() -> None:
    beat, _, _ = felt(lambda source, codes: codes.clone().requires_grad_(), task)
    assert (beat.arrived, beat.out) == (0, 1)
    assert math.isnan(beat.norm)


def test_the_gradients_at_output_and_input_are_compared() -> None:
    beat, _, _ = felt(straight_through, task)
    assert beat.through == pytest.approx(1, abs=1e-6)


def test_a_codebook_that_gets_its_own_loss_alone_says_nothing_of_what_comes_through() -> None:
    """As the inner codebook of vector-quantize-pytorch: the straight-through estimator stands around it."""
    beat, _, _ = felt(
        lambda source, codes: codes.requires_grad_(),
        lambda source, codes, output: (output - source.detach()).square().mean() + task(source, codes, source),
    )
    assert (beat.arrived, beat.out) == (1, 1)
    assert math.isnan(beat.through)
    beat, _, _ = felt(
        lambda source, codes: codes.requires_grad_(),
        lambda source, codes, output: task(source, codes, output) + (source[..., 0] - source[..., 1]).sum(),
    )
    assert abs(beat.through) < 0.5


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_a_forward_without_a_backward_does_not_hide_one_that_has_it(order: tuple[bool, ...]) -> None:
    """A discriminator's step runs the generator, too, and detaches what comes out."""
    pulse = Pulse(D)
    pulse.arm()
    for has_backward in order:
        source = torch.randn(6, D, requires_grad=True) * 2
        output = straight_through(source, torch.randn(6, D))
        if pulse.is_armed:
            pulse.feel(((source,), {}), (output,), source.detach())
        if has_backward:
            output.sum().backward()
    beat = Beat.of(pulse.take())
    assert (beat.arrived, beat.out) == (1, 1)


def test_an_input_that_needs_no_gradient_is_left_alone() -> None:
    pulse = Pulse(D)
    pulse.arm()
    pulse.feel(((torch.randn(3, D),), {}), (torch.randn(3, D),), torch.randn(3, D))
    assert pulse.take() is None


def test_feeling_changes_no_gradient() -> None:
    gradients = []
    for is_armed in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(3, D)
        source = layer(torch.randn(7, 3))
        output = source + (source.round() - source).detach()
        if is_armed:
            pulse = Pulse(D)
            pulse.arm()
            pulse.feel(((source,), {}), (output,), source.detach())
        output.square().sum().backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(gradients[0], gradients[1])  # type: ignore[arg-type]


WIDE = nn.Linear(3, 8)(torch.randn(5, 3))
IMAGE = nn.Conv1d(3, D, 1)(torch.randn(2, 3, 6))


@pytest.mark.parametrize(
    ("given", "width"),
    [
        (WIDE.view(5, 2, 4), 8),
        (WIDE.reshape(-1, 4), 8),
        (WIDE.view(5, 2, 4).transpose(1, 2).contiguous().transpose(-1, -2), 8),
        (torch.nn.functional.normalize(WIDE.view(5, 2, 4), dim=-1), 8),
        (nn.Linear(3, 4)(torch.randn(5, 2, 3)), None),
        (nn.Linear(3, 4)(torch.randn(5, 2, 3)).reshape(-1, 4), None),
        (nn.Linear(3, 4)(torch.randn(5, 2, 3)).reshape(5, 8).reshape(5, 2, 4), None),
        (IMAGE, None),
        (IMAGE.permute(0, 2, 1).reshape(-1, D), None),
        (IMAGE.transpose(1, 2).contiguous().view(-1, D)[None], None),
        (torch.randn(5, 4), None),
    ],
)
def test_features_are_pieces_where_a_wider_axis_was_cut(given: Tensor, width: int | None) -> None:
    assert width_before_cut(given, 4) == width


def test_the_first_marks_and_the_latest_are_kept() -> None:
    memory = Memory()
    for step in range(50):
        memory.add(Mark(step=step, codes=torch.ones(1, 1)))
    assert [mark.step for mark in memory.marks] == [0, 1, 44, 45, 46, 47, 48, 49]


@pytest.mark.parametrize("offset", [0.0, 30.0, 100.0, 300.0])
def test_padding_is_found_however_far_from_the_origin_the_latents_lie(offset: float) -> None:
    torch.manual_seed(0)
    latents = torch.where(torch.rand(128, 1) < 0.6, torch.randn(64), torch.randn(128, 64))
    reading = Reading(step=10, codebook="0", K=16, D=64, tokens=128, perplexity=8.0, ceiling=16.0,
                      perplexity_ratio=0.5, usage=0.5, dead_fraction=0.5, top_share=0.6)  # fmt: skip
    found = padded(facts_of(reading, latents + offset))
    assert (found.evidence if found else {}) == {"same_vector": 0.625, "others_distinct": 1.0}
