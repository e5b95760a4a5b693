"""What an Adam remembers against what it is shown: a measure of noise gradients that is 1 from the first step on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.optimizer import moment_sums, moments_of, movers_of, ratio_of_moments

Make = Callable[[list[nn.Parameter]], Optimizer]
ADAMS: dict[str, Make] = {
    "Adam": lambda held: torch.optim.Adam(held, lr=1e-3),
    "AdamW, other betas": lambda held: torch.optim.AdamW(held, lr=1e-3, betas=(0.5, 0.9)),
    "no first moment": lambda held: torch.optim.Adam(held, lr=1e-3, betas=(0.0, 0.99)),
    "AMSGrad": lambda held: torch.optim.Adam(held, lr=1e-3, amsgrad=True),
    "NAdam": lambda held: torch.optim.NAdam(held, lr=1e-3),
    "RAdam": lambda held: torch.optim.RAdam(held, lr=1e-3),
    "foreach": lambda held: torch.optim.Adam(held, lr=1e-3, foreach=True),
    "fused": lambda held: torch.optim.Adam(held, lr=1e-3, fused=True),
}
OTHERS: dict[str, Make] = {
    "SGD": lambda held: torch.optim.SGD(held, lr=1e-3, momentum=0.9),
    "Adamax": lambda held: torch.optim.Adamax(held, lr=1e-3),
    "Adafactor": lambda held: torch.optim.Adafactor(held, lr=1e-3),
}


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(100, 80, dtype=dtype)), nn.Parameter(torch.zeros(3000, dtype=dtype))]


def trained(make: Make, sizes: list[float], dtype: torch.dtype = torch.float32) -> tuple[Optimizer, list[list[Tensor]]]:
    """Return an optimizer that was shown noise of some sizes, one a step, and the gradients of each step."""
    generator = torch.Generator().manual_seed(0)
    held = parameters(dtype)
    optimizer, shown = make(held), []
    for size in sizes:
        for each in held:
            each.grad = (size * torch.randn(each.shape, generator=generator)).to(dtype)
        shown.append([each.grad.double() for each in held if each.grad is not None])
        optimizer.step()
    return optimizer, shown


def ratio(optimizer: Optimizer) -> float | None:
    return ratio_of_moments(*moment_sums([optimizer]).tolist())


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
@pytest.mark.parametrize("kind", ADAMS)
def test_gradients_that_are_noise_as_ever_give_one_from_the_first_step_on(kind: str, steps: int) -> None:
    optimizer, _ = trained(ADAMS[kind], [1.0] * steps)
    assert ratio(optimizer) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_what_a_loop_over_all_gradients_says(dtype: torch.dtype) -> None:
    sizes = [1.0] * 10 + [1000.0] * 3 + [1.0] * 30
    optimizer, shown = trained(ADAMS["Adam"], sizes, dtype)
    first, second, steps = 0.9, 0.999, len(sizes)
    remembered = now = 0.0
    for part in range(2):
        average, square = torch.zeros(()).double(), torch.zeros(()).double()
        for gradients in shown:
            average = first * average + (1 - first) * gradients[part]
            square = second * square + (1 - second) * gradients[part] ** 2
        weights = np.array([(1 - first) * first**age for age in range(steps)])
        remembered += float(square.sum()) / sum((1 - second) * second**age for age in range(steps))
        now += float((average**2).sum()) / float((weights**2).sum())  # the variance of an average of noise
    found = ratio(optimizer)
    assert found == pytest.approx(math.sqrt(remembered / now), rel=0.02 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("kind", ["Adam", "AMSGrad", "NAdam", "RAdam", "foreach", "fused"])
def test_it_is_large_for_long_after_a_spike_and_not_while_it_lasts(kind: str) -> None:
    spike = [1.0] * 20 + [1000.0] * 10
    during, _ = trained(ADAMS[kind], spike)
    after, _ = trained(ADAMS[kind], spike + [1.0] * 200)
    assert (ratio(during) or math.nan) < 1.5
    assert (ratio(after) or math.nan) > 100


def test_amsgrad_never_forgets_by_itself() -> None:
    sizes = [1000.0] * 5 + [1.0] * 300
    forgetful: Make = lambda held: torch.optim.Adam(held, betas=(0.9, 0.95))  # noqa: E731
    keeping: Make = lambda held: torch.optim.Adam(held, betas=(0.9, 0.95), amsgrad=True)  # noqa: E731
    assert ratio(trained(forgetful, sizes)[0]) == pytest.approx(1, abs=0.1)
    assert (ratio(trained(keeping, sizes)[0]) or math.nan) > 100


@pytest.mark.parametrize("kind", OTHERS)
def test_optimizers_that_keep_other_things_have_none(kind: str) -> None:
    optimizer, _ = trained(OTHERS[kind], [1.0] * 3)
    assert ratio(optimizer) is None
    assert list(moments_of(optimizer)) == []


def test_before_the_first_step_and_after_all_is_forgotten_there_is_none() -> None:
    assert ratio(ADAMS["Adam"](parameters())) is None
    optimizer, _ = trained(ADAMS["Adam"], [1.0] * 5)
    for _, each in moments_of(optimizer):
        each.forget()
    assert ratio(optimizer) is None


def test_what_is_not_finite_is_no_number() -> None:
    optimizer, _ = trained(ADAMS["Adam"], [1.0, math.nan])
    assert ratio(optimizer) is None
    optimizer, _ = trained(ADAMS["Adam"], [1.0, 1e30])
    assert ratio(optimizer) is None


def test_large_and_complex_tensors_are_summed_in_single_precision_or_better() -> None:
    half = nn.Parameter(torch.zeros(100_000, dtype=torch.float16))
    whirl = nn.Parameter(torch.zeros(50, dtype=torch.complex64))
    optimizer = torch.optim.Adam([half, whirl], lr=1e-3)
    half.grad, whirl.grad = torch.ones_like(half), torch.ones_like(whirl)
    optimizer.step()
    remembered, shown = moment_sums([optimizer])
    assert remembered == pytest.approx(100_050, rel=0.01)  # more than a half can count to
    assert shown == pytest.approx(100_050, rel=0.01)


def test_what_also_keeps_something_unknown_is_left_out_and_places_do_not_move() -> None:
    optimizer, _ = trained(ADAMS["Adam"], [1.0])
    first = optimizer.param_groups[0]["params"][0]
    optimizer.state[first]["master"] = torch.ones_like(first)
    assert [place for place, _ in moments_of(optimizer)] == [1]


def test_step_counts_that_are_no_tensors_are_unknown() -> None:
    optimizer, _ = trained(ADAMS["Adam"], [1.0])
    for state in optimizer.state.values():
        state["step"] = 1
    assert list(moments_of(optimizer)) == []


def test_the_movers_of_parameters_are_the_optimizers_that_hold_one_or_else_all() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    stranger: Any = nn.Parameter(torch.zeros(2))
    optimizers = [torch.optim.Adam([one]), torch.optim.Adam([other])]
    assert list(movers_of(optimizers, [other, stranger])) == optimizers[1:]
    assert list(movers_of(optimizers, [stranger])) == optimizers
    assert list(movers_of(optimizers, [])) == optimizers
