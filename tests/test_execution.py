"""How models are executed: compiled, recomputed, accumulated, several forwards a step, half precision, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from collapse_guard import Guard
from collapse_guard.adapters import Interception

from .contract.all_cases import CASES
from .contract.case import Case
from .loops import Recorder
from .quantizers import Plain

PICKED = (
    "vector-quantize-pytorch VectorQuantize ema",
    "vector-quantize-pytorch VectorQuantize learnable",
    "vector-quantize-pytorch VectorQuantize separate heads",
    "vector-quantize-pytorch ResidualVQ",
    "encodec VectorQuantization",
    "nsvq NSVQ",
    "vector-quantize-pytorch FSQ",
)
SOME = [case for case in CASES if case.id in PICKED]
some_cases = pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)

BUSY: dict[str, Any] = {
    "version": 1,
    "name": "busy",
    "mode": "act",
    "sample": {"every": "2 steps", "when_suspect": "2 steps", "min_tokens": 1},
    "warmup": "2 steps",
    "budget": {"interventions": 100, "refill_after": "10 steps"},
    "rules": [
        {
            "name": "always",
            "when": "perplexity < 1000000",
            "for": 1,
            "clear": {"when": "perplexity >= 0", "for": 1},
            "severity": "warning",
            "cooldown": "1 steps",
            "verify": {"within": "4 steps"},
            "ladder": [{"reset_codes": {"scope": "all", "source": "kmeans"}}],
        }
    ],
}
"""Acts as often as it can, so that a write at the wrong moment would be met."""


class Model(nn.Module):
    """An encoder that moves, before the quantizer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.quantizer = case.build()
        self._case = (case,)

    def forward(self, x: Tensor) -> Tensor:
        run = self._case[0].run(self.quantizer, x * self.scale)
        return self.scale.square() + (run.loss if run.loss is not None else 0.0)


class Small(nn.Module):
    def __init__(self, quantizer: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.quantizer = quantizer if quantizer is not None else Plain(16, 8)

    def forward(self, x: Tensor) -> Any:
        return self.quantizer(self.encoder(x))


def tokens(guard: Guard) -> dict[str, int]:
    """Return how many tokens each codebook has shown since its window began."""
    windows = {name: probe.window for name, probe in guard._watch.probes.items()}
    return {
        name: 0 if window.tallies is None else int(window.tallies[: window.K].sum()) for name, window in windows.items()
    }


def watch_once(case: Case, act: Callable[[Model, Tensor], object]) -> dict[str, int]:
    torch.manual_seed(0)
    model = Model(case).train()
    x = case.batch()
    with Guard("observe", console=False) as guard:
        guard.attach(model, torch.optim.Adam(model.parameters(), lr=1e-3))
        act(model, x)
        return tokens(guard)


# Forwards that repeat


@some_cases
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_counts_each_token_once(case: Case, reentrant: bool) -> None:
    def recompute(model: Model, x: Tensor) -> None:
        checkpoint(model, x.requires_grad_(), use_reentrant=reentrant).backward()

    plain = watch_once(case, lambda model, x: model(x).backward())
    assert min(plain.values()) > 0
    assert watch_once(case, recompute) == plain


@some_cases
def test_two_forwards_before_a_step_are_both_counted(case: Case) -> None:
    """As in a VQ-GAN, whose discriminator is trained on a forward of its own."""
    once = watch_once(case, lambda model, x: model(x))
    twice = watch_once(case, lambda model, x: (model(x).backward(), model(x)))
    assert twice == {name: 2 * count for name, count in once.items()}


@some_cases
def test_interventions_between_accumulated_steps_meet_no_open_graph(case: Case) -> None:
    torch.manual_seed(0)
    model, recorder = Model(case).train(), Recorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Guard(BUSY, console=False, sinks=[recorder]) as guard:
        guard.attach(model, optimizer)
        for _ in range(12):
            optimizer.zero_grad()
            for _ in range(4):
                loss = model(case.batch())
                tables = {name: probe.view.codebook().clone() for name, probe in guard._watch.probes.items()}
                (loss / 4).backward()
                for name, probe in guard._watch.probes.items():
                    assert torch.equal(tables[name], probe.view.codebook()), "written between forward and backward"
            optimizer.step()
            guard.step()
    assert not recorder.of("fault")
    results = [event.fields["result"] for event in recorder.of("intervention")]
    expected = "refused" if "reset" in case.lacks else "applied"
    assert expected in results
    readings = [event for event in recorder.of("reading") if event.fields["codebook"] == case_name(guard)]
    assert len({event.step for event in readings}) == len(readings), "one reading, and one decision, for a step"


def case_name(guard: Guard) -> str:
    return next(iter(guard._watch.probes))


@some_cases
def test_validation_under_inference_mode_is_not_counted_and_does_not_end_the_watch(case: Case) -> None:
    def validate(model: Model, x: Tensor) -> None:
        model.eval()
        with torch.inference_mode():
            case.run(model.quantizer, x)
        model.train()
        model(x).backward()

    assert watch_once(case, validate) == watch_once(case, lambda model, x: model(x))


@some_cases
def test_autocast_in_half_precision_counts_the_same_tokens(case: Case) -> None:
    def half(model: Model, x: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x)
        loss.backward()

    assert watch_once(case, half) == watch_once(case, lambda model, x: model(x))


@some_cases
def test_copies_of_a_watched_model_are_not_watched(case: Case) -> None:
    def forward_of_copies(model: Model, x: Tensor) -> None:
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        averaged.train()(x)
        copy.deepcopy(model).train()(x)

    assert set(watch_once(case, forward_of_copies).values()) == {0}


def test_replicas_of_data_parallel_are_refused_with_what_to_do() -> None:
    model = nn.DataParallel(Small())
    model.device_ids = [0, 1]  # as on a machine with two devices
    guard = Guard("observe", console=False)
    with pytest.raises(ValueError, match=r"nn\.DataParallel over 2 devices at the top.*DistributedDataParallel"):
        guard.attach(model)
    model.device_ids = []  # without devices it runs the module itself
    with guard.attach(model):
        model(torch.randn(2, 5, 8))
        assert tokens(guard) == {"module.quantizer": 10}


# Compiled models


compiles = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)
"""What torch.compile warns of inside of itself while it traces."""


def train_small(run: Callable[[Tensor], Any], model: nn.Module, guard: Guard, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        run(torch.randn(2, 5, 8))[0].sum().backward()
        optimizer.step()
        guard.step()


BACKENDS = ("eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow))


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guard_attached_before_the_first_compiled_forward_sees_every_token(backend: str, in_place: bool) -> None:
    model, recorder = Small().train(), Recorder()
    with Guard("observe", console=False, sinks=[recorder]) as guard:
        if in_place:
            model.compile(backend=backend)
        run: Any = model if in_place else torch.compile(model, backend=backend)
        guard.attach(run)
        train_small(run, model, guard)
        assert tokens(guard) == {"quantizer": 30}
    assert not recorder.of("fault")


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", ["given the wrapper", "given the model", "compiled in place"])
def test_a_guard_attached_after_a_compiled_forward_says_that_it_sees_nothing(way: str) -> None:
    model, recorder = Small().train(), Recorder()
    run: Any = model
    if way == "compiled in place":
        model.compile(backend="eager")
    else:
        run = torch.compile(model, backend="eager")
    run(torch.randn(2, 5, 8))
    with Guard("observe", console=False, sinks=[recorder]) as guard:
        guard.attach(run if way == "given the wrapper" else model)
        train_small(run, model, guard)
        seen = tokens(guard)["quantizer"]
        torch.compiler.reset()
        train_small(run, model, guard, 1)
        assert tokens(guard)["quantizer"] - seen == 10, "what the message advises helps"
    assert seen == 0
    (fault,) = recorder.of("fault")
    assert fault.fields["where"] == "torch.compile"
    assert fault.step == 2
    assert "quantizer showed no code in the first 2 steps" in fault.fields["reason"]
    assert "Attach before the first forward, or call torch.compiler.reset()" in fault.fields["reason"]


@compiles
@pytest.mark.usefixtures("fresh_compiler")
def test_with_fullgraph_the_compilers_error_says_who_ends_the_graph() -> None:
    model = Small().train()
    with Guard("observe", console=False) as guard:
        guard.attach(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="collapse_guard watches this quantizer by a hook"):
            compiled(torch.randn(2, 5, 8))


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("case", SOME[:2], ids=lambda case: case.id)
def test_a_freeze_holds_in_a_compiled_model_that_has_run_already(case: Case) -> None:
    torch.manual_seed(0)
    model = Model(case).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Guard("observe", console=False) as guard:
        guard.attach(model, optimizer)
        compiled = torch.compile(model, backend="eager")

        def step() -> Tensor:
            optimizer.zero_grad()
            compiled(case.batch()).backward()
            optimizer.step()
            view.hold()
            return view.codebook().clone()

        (view,) = (probe.view for probe in guard._watch.probes.values())
        start, moved = step(), step()
        view.freeze()
        frozen = [step() for _ in range(3)]
        view.unfreeze()
        released = step()
    assert not torch.equal(start, moved)
    assert all(torch.equal(each, moved) for each in frozen)
    assert not torch.equal(released, moved)


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("order", ["before", "after"])
def test_intercepted_methods_report_from_compiled_code(order: str) -> None:
    """The exchanged class is part of what a graph was made for, so that it is made anew."""

    class ByMethod(Plain):
        def quantize(self, x: Tensor) -> Any:
            return super().forward(x)

    class Calls(Small):
        def forward(self, x: Tensor) -> Any:
            quantizer: Any = self.quantizer
            return quantizer.quantize(self.encoder(x))

    model = Calls(ByMethod(16, 8))
    seen: list[int] = []
    interception = Interception(model.quantizer, {"quantize": lambda *_: seen.append(1)})
    compiled = torch.compile(model, backend="eager")
    if order == "after":
        compiled(torch.randn(2, 5, 8))
    interception.install()
    for _ in range(3):
        compiled(torch.randn(2, 5, 8))
    assert len(seen) == 3
    interception.remove()
    compiled(torch.randn(2, 5, 8))
    assert len(seen) == 3
