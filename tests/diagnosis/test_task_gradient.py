"""How much of the task's gradient arrives at a quantizer's input, against gradients worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Guard
from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.diagnosis import Pulse
from collapse_guard.measure import reading_of
from collapse_guard.ranks import Part, Word, call_roll, join_ranks
from collapse_guard.sums import Sums, sum_up
from collapse_guard.testing import Recorder
from collapse_guard.window import Window
from tests.crew import Crew
from tests.loops import policy_of
from tests.quantizers import Learnable

D = 4
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def hand_on(source: Tensor, codes: Tensor) -> Tensor:
    return source + (codes - source).detach()


def plain(source: Tensor, codes: Tensor) -> Tensor:
    return codes.clone()


def task(source: Tensor, codes: Tensor, output: Tensor) -> Tensor:
    return (output * torch.arange(D)).sum() / 7


def pull(weight: float) -> Loss:
    return lambda source, codes, output: weight * (source - codes.detach()).square().mean()


def both(one: Loss, other: Loss) -> Loss:
    return lambda *given: one(*given) + other(*given)


def share(
    call: Callable[[Tensor, Tensor], Tensor], *losses: Loss, dtype: torch.dtype = torch.float32, learns: bool = False
) -> float | None:
    """Feel one forward, of which each loss goes back by itself."""
    torch.manual_seed(0)
    source = (torch.randn(6, 5, D, requires_grad=True) * 2).to(dtype)
    codes = torch.randn(6, 5, D, dtype=dtype, requires_grad=learns)
    pulse = Pulse(D)
    pulse.arm()
    output = call(source, codes)
    pulse.feel(((source,), {}), (output,), source.detach().reshape(-1, D))
    for place, loss in enumerate(losses):
        loss(source, codes, output).backward(retain_graph=place < len(losses) - 1)
    sums = pulse.task
    return None if sums is None else math.sqrt(float(sums.min()) / float(sums[1]))


def test_without_a_commitment_all_of_it_arrives_but_what_lies_along_the_pull() -> None:
    torch.manual_seed(0)
    source, codes = torch.randn(6, 5, D) * 2, torch.randn(6, 5, D)
    gap = (source - codes).double().numpy().ravel()
    gradient = np.tile(np.arange(D), 30) / 7
    cosine = gradient @ gap / np.linalg.norm(gradient) / np.linalg.norm(gap)
    assert share(hand_on, task) == pytest.approx(1.0, abs=1e-5)
    beside = gradient - (gradient @ gap) / (gap @ gap) * gap
    through = 0.5 * beside + 3 * 2 * gap / gap.size
    half = share(lambda source, codes: 0.5 * hand_on(source, codes) + 0.5 * codes, both(task, pull(3.0)))
    expected = 0.5 * np.linalg.norm(beside) / min(np.linalg.norm(beside), np.linalg.norm(through))
    assert half == pytest.approx(expected, rel=0.1)
    assert abs(cosine) < 0.3


@pytest.mark.parametrize("weight", [0.25, 10.0, 1e4])
def test_no_commitment_is_so_heavy_that_what_arrives_looks_cut(weight: float) -> None:
    assert share(hand_on, both(task, pull(weight))) == pytest.approx(1.0, abs=1e-2)
    assert share(plain, both(task, pull(weight)), learns=True) == pytest.approx(0.0, abs=1e-7 * max(weight, 100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_detached_output_leaves_what_rounding_makes_of_the_pull(dtype: torch.dtype) -> None:
    assert share(lambda source, codes: hand_on(source, codes).detach(), pull(0.25), dtype=dtype) == pytest.approx(
        0.0, abs=1e-5 if dtype is torch.float32 else 1e-2
    )


def test_where_the_output_gets_a_gradient_and_the_input_none_nothing_arrives() -> None:
    assert share(plain, task, learns=True) == 0.0


def test_where_neither_gets_any_nothing_is_known() -> None:
    assert share(hand_on) is None
    assert share(plain) is None


def test_losses_that_go_back_one_after_another_are_taken_together() -> None:
    first, last = share(hand_on, task, pull(0.25)), share(hand_on, pull(0.25), task)
    assert first is not None
    assert first == pytest.approx(last, abs=1e-5)
    assert first > 0.5


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_what_is_handed_on_past_the_quantizers_input_counts(outside: bool, weight: float) -> None:
    """The quantizer is given the latents reshaped, and its caller hands the gradient on to them as they were."""
    torch.manual_seed(0)
    z = torch.randn(6, D, 5, requires_grad=True) * 2
    given = z.mT.reshape(-1, D)
    codes = torch.randn(30, D, requires_grad=True)
    pulse, output = Pulse(D), codes * 1.0
    pulse.arm()
    pulse.feel(((given,), {}), (output,), given.detach())
    back = output.reshape(6, 5, D).mT
    decoded = z + (back - z).detach() if outside else back
    (task(given, codes, decoded.mT) + pull(weight)(given, codes, output)).backward()
    sums = pulse.task
    assert sums is not None
    assert (float(sums[0] / sums[1]) > 0.5) is outside


@pytest.mark.parametrize("flat", [True, False])
def test_levels_that_share_a_codebook_are_handed_a_gradient_past_them_all(flat: bool) -> None:
    torch.manual_seed(0)
    pulse, z = Pulse(D), torch.randn(6, 5, D, requires_grad=True) * 2
    pulse.arm()
    rest, total = z, torch.zeros_like(z)
    for _ in range(2):
        given = rest.reshape(-1, D) if flat else rest
        codes = torch.randn_like(given)
        pulse.feel(((given,), {}), (codes,), given.detach().reshape(-1, D))
        total = total + codes.reshape(z.shape) + 0.25 * (given - codes).square().mean()
        rest = rest - codes.reshape(z.shape)
    (z + (total - z).detach() + total * 0.01).sum().backward()
    assert pulse.task is None


@pytest.mark.parametrize("goes_alone", [False, True])
@pytest.mark.parametrize("is_last", [False, True])
def test_of_two_forwards_one_may_be_pulled_alone(*, is_last: bool, goes_alone: bool) -> None:
    """Unlabelled data beside labelled ones, or a second view: which goes back first decides nothing."""
    torch.manual_seed(0)
    pulse, felt = Pulse(D), []
    pulse.arm()
    for is_pulled in (not is_last, is_last):
        source, codes = torch.randn(6, 5, D, requires_grad=True) * 2, torch.randn(6, 5, D)
        output = hand_on(source, codes)
        pulse.feel(((source,), {}), (output,), source.detach().reshape(-1, D))
        felt.append((pull(1.0) if is_pulled else both(task, pull(1.0)))(source, codes, output))
        if goes_alone:
            felt.pop().backward()
    for loss in felt[:1]:
        (loss + felt[1]).backward()
    sums = pulse.task
    assert sums is not None
    assert float(sums.min() / sums[1]) > 0.1


def test_what_was_felt_is_of_the_step_before_the_reading_only() -> None:
    torch.manual_seed(0)
    source = torch.randn(6, D, requires_grad=True) * 2
    pulse = Pulse(D)
    pulse.arm()
    output = hand_on(source, torch.randn(6, D))
    pulse.feel(((source,), {}), (output,), source.detach())
    output.sum().backward()
    assert pulse.task is not None
    pulse.arm()
    assert pulse.task is None
    assert pulse.take() is None


class Coder(nn.Module):
    def __init__(self, *, is_cut: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.quantizer = nn.Linear(8, D), nn.Linear(D, 8), Learnable(16, D)
        self.is_cut = is_cut

    def forward(self, x: Tensor) -> Any:
        quantized, own, _ = self.quantizer(self.encoder(x))
        return functional.mse_loss(self.decoder(quantized.detach() if self.is_cut else quantized), x), own


def readings(model: Coder, steps: int, *, every: int, mode: str = "observe") -> list[Any]:
    recorder = Recorder()
    rule = {"name": "cut_off", "when": "task_gradient < 0.0001", "for": 2, "ladder": []}
    policy = policy_of(rule, every=every, min_tokens=1) | {"mode": mode}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Guard(policy, console=False, sinks=[recorder]).attach(model.train(), optimizer) as guard:
        for step in range(steps):
            x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
            loss, own = model(x)
            optimizer.zero_grad()
            (loss + own).backward()
            optimizer.step()
            with guard.evaluate():
                model(x)
            guard.step()
    return [*recorder.of("reading"), *recorder.of("alert")]


def test_a_reading_tells_it_in_training_and_the_rule_is_heard_at_a_cadence_of_three() -> None:
    found = readings(Coder(is_cut=True), 30, every=3)
    shares = {event.step: event.fields["task_gradient"] for event in found if event.fields.get("stage") == "train"}
    assert shares[3] == pytest.approx(0.0, abs=1e-5)
    assert [event.step for event in found if event.event == "alert"] == [6]
    whole = readings(Coder(is_cut=False), 30, every=3)
    known = {event.step: event.fields["task_gradient"] for event in whole if event.fields.get("stage") == "train"}
    assert [step for step, value in known.items() if value is not None] == [3, 15, 27]  # ten steps apart
    assert min(value for value in known.values() if value is not None) > 0.1
    evaluated = [event.fields["task_gradient"] for event in found + whole if event.fields.get("stage") == "eval"]
    assert set(evaluated) == {None}


def test_it_comes_over_in_the_readings_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, original = list[int](), torch.Tensor.cpu

    def counted(tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
        copies.append(tensor.numel())
        return original(tensor, *rest, **named)

    view, window = view_of(), Window(16, D)
    window.add(torch.arange(16), torch.randn(16, D))
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    alone, with_it = sum_up(window, view), sum_up(window, view, task=torch.tensor([1.0, 4.0]))
    assert (len(copies), copies[1] - copies[0]) == (2, 2)
    assert (alone.task.tolist(), with_it.task.tolist()) == ([0.0, 0.0], [1.0, 4.0])
    assert reading_of(alone, view, step=1)[0].task_gradient is None
    assert reading_of(with_it, view, step=1)[0].task_gradient == 0.5
    packed = with_it.pack(0, 2) + alone.pack(1, 2)
    assert Sums.unpack(packed, 16, D, 2).task.tolist() == [1.0, 4.0]


class Book(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(16, D, generator=torch.Generator().manual_seed(3)))


def view_of() -> CodebookView:
    book = Book()
    return CodebookView(name="vq", adapter="test", module=book, table=TensorRef(book, "table"), readers={})


FELT = ((1.0, 4.0), (2.0, 5.0))


def pooled(rank: int, size: int, *, felt: tuple[tuple[float, float] | None, ...]) -> float | None:
    ranks, view, window = join_ranks(), view_of(), Window(16, D)
    window.add(torch.arange(16), torch.randn(16, D))
    mine = felt[rank]
    sums = sum_up(window, view, size=size, task=torch.tensor(mine) if mine is not None else None)
    roll = call_roll(ranks, Word(step=1), {"vq": (Part(), sums)}, {"vq": view})
    reading, _ = reading_of(roll.sums["vq"], view, step=1)
    ranks.leave()
    return reading.task_gradient


@pytest.mark.parametrize(
    ("felt", "expected"),
    [
        (FELT, math.sqrt(3 / 9)),
        ((None, FELT[1]), math.sqrt(2 / 5)),
        ((None, None), None),
        (((math.nan, 1.0), FELT[0]), None),
    ],
)
def test_two_ranks_know_the_share_of_both(crew: Crew, felt: Any, expected: float | None) -> None:
    told = crew.run(pooled, 2, felt=felt)
    assert told[0] == told[1] == (None if expected is None else pytest.approx(expected, rel=1e-6))
