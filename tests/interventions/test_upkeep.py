"""Upkeep: idle codes move to where the error is, a few at a time, while a rule is not clear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import GenericVQ, Guard, discover
from collapse_guard.interventions import Site, find_intervention
from collapse_guard.policies import Upkeep
from collapse_guard.probe import Probe
from collapse_guard.window import Window
from tests.loops import Recorder

K, D = 64, 8


def fail(error: Exception) -> None:
    raise error


def data(n: int = 512, *, generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(1, n, D, generator=generator)


class Bench:
    """A quantizer of which half the codes lie far away, watched by a probe."""

    def __init__(self, params: Upkeep, *, progress: float | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.vq = VectorQuantize(dim=D, codebook_size=K, decay=0.9, **options).train()
        with torch.no_grad():
            codebook: Any = self.vq._codebook
            codebook.embed[:, K // 2 :] += 100.0
            codebook.embed_avg.copy_(codebook.embed)
        (self.view,) = discover(nn.Sequential(self.vq)).views
        self.probe = Probe(self.view, seed=0, on_error=fail)
        self.probe.install()
        self.optimizers = [torch.optim.Adam(self.vq.parameters())] if list(self.vq.parameters()) else []
        site = Site(self.view, self.probe.window, self.optimizers, np.zeros(K), seed=3, progress=lambda: progress)
        for _ in range(4):
            self.vq(data())
        self.upkeep = find_intervention("upkeep")(params, site)
        assert self.upkeep.refusal() is None
        self.upkeep.apply()
        self.probe.window.restart()

    def forwards(self, count: int) -> None:
        for _ in range(count):
            self.vq(data())

    @property
    def far(self) -> int:
        return int((self.view.codebook().norm(dim=1) > 50).sum())


EAGER = Upkeep.model_validate({"every": "4 steps", "most": 0.1})


def test_only_idle_codes_move_a_bounded_share_at_once_and_onto_latents() -> None:
    bench = Bench(EAGER)
    bench.forwards(4)
    before = {role: tensor.clone() for role, tensor in bench.view.tensors()}
    used = bench.probe.window.uses
    assert used is not None
    bench.probe.window.restart()
    assert bench.upkeep.tend(4) is None
    moved = (bench.view.codebook() != before["table"]).any(dim=1)
    assert int(moved.sum()) == 6  # a tenth of 64
    assert bench.far == K // 2 - 6
    ring = bench.probe.window.latest(4096)
    assert all(bool((ring == row).all(dim=1).any()) for row in bench.view.codebook()[moved])
    counts, sums = bench.view.ema_count, bench.view.ema_sum
    assert counts is not None
    assert sums is not None
    torch.testing.assert_close(counts.get()[moved], 0.5 * before["ema_count"].mean().expand(6))
    torch.testing.assert_close(sums.get()[moved] / counts.get()[moved].unsqueeze(1), bench.view.codebook()[moved])
    for role, tensor in bench.view.tensors():
        assert torch.equal(tensor[~moved], before[role][~moved]), role


@pytest.mark.parametrize("source", ["distortion", "reservoir"])
def test_places_are_where_the_error_is_or_anywhere(source: str) -> None:
    """A tenth of the latents is far from every code: by error most places are there, at random about a tenth."""
    params = Upkeep.model_validate({"every": "4 steps", "most": 0.5, "source": source})
    bench = Bench(params)
    with torch.no_grad():
        latents = data(generator=torch.Generator().manual_seed(0)).squeeze(0)
        latents[::10] -= 1000.0
        bench.probe.window.forget()
        bench.probe.window.add(torch.zeros(len(latents), dtype=torch.int64), latents)
    before = bench.view.codebook().clone()
    bench.probe.window.restart()
    bench.upkeep.tend(4)
    moved = bench.view.codebook()[(bench.view.codebook() != before).any(dim=1)]
    assert len(moved) == K // 2
    far = float((moved.mean(dim=1) < -500).float().mean())
    assert far > 0.5 if source == "distortion" else far < 0.25


@pytest.mark.parametrize(("silent", "is_silence"), [(0.9, True), (0.4, False)])
def test_no_code_moves_into_what_one_code_has_most_of_the_tokens_for(silent: float, is_silence: bool) -> None:
    """Silence that is not quite the same each time is many different latents, and needs one code all the same."""
    params = Upkeep.model_validate({"every": "4 steps", "most": 0.25, "source": "reservoir"})
    bench = Bench(params)
    with torch.no_grad():
        codebook: Any = bench.vq._codebook
        codebook.embed[:, 0] = 30.0
        latents = data(1024, generator=torch.Generator().manual_seed(0)).squeeze(0)
        latents[: int(silent * 1024)] = 30.0 + 0.01 * latents[: int(silent * 1024)]
        bench.probe.window.forget()
        codes = torch.cdist(latents, bench.view.codebook()).argmin(dim=1)
        bench.probe.window.add(codes, latents)
    before = bench.view.codebook().clone()
    bench.probe.window.restart()
    bench.upkeep.tend(4)
    moved = bench.view.codebook()[(bench.view.codebook() != before).any(dim=1)]
    assert len(moved) == K // 4
    assert bool((moved.mean(dim=1) > 20).any()) is not is_silence


def test_all_idle_codes_come_into_use_after_some_rounds_and_the_end_says_how_many_moves_it_took() -> None:
    bench = Bench(EAGER)
    for step in range(4, 81, 4):
        bench.forwards(4)
        bench.probe.window.restart()
        bench.upkeep.tend(step)
    assert bench.far == 0
    assert bench.upkeep.writes >= 6
    ending = bench.upkeep.ending()
    assert ending is not None
    assert int(ending.split()[0]) >= K // 2
    table = bench.view.codebook().clone()
    bench.forwards(4)
    assert torch.bincount(bench.vq(data())[1].flatten(), minlength=K).gt(0).float().mean() > 0.9
    assert not torch.equal(bench.view.codebook(), table)  # the quantizer's own update went on


@pytest.mark.parametrize(
    ("step", "begun", "forwards", "progress"),
    [(3, False, 4, None), (4, True, 4, None), (4, False, 0, None), (4, False, 4, 0.95)],
    ids=["too early", "in the middle of a window", "too few tokens", "near the end of training"],
)
def test_nothing_moves(step: int, begun: bool, forwards: int, progress: float | None) -> None:
    bench = Bench(EAGER, progress=progress)
    bench.forwards(forwards)
    if not begun:
        bench.probe.window.restart()
    table = bench.view.codebook().clone()
    bench.upkeep.tend(step)
    assert torch.equal(bench.view.codebook(), table)
    assert bench.upkeep.writes == 0


def test_the_quantizers_own_replacement_is_off_meanwhile_and_back_afterwards() -> None:
    bench = Bench(EAGER, threshold_ema_dead_code=2)
    assert bench.view.is_taken_over
    bench.upkeep.ending()
    assert not bench.view.is_taken_over
    assert bench.vq._codebook.threshold_ema_dead_code == 2


def test_moments_of_moved_rows_are_cleared_and_others_are_left() -> None:
    bench = Bench(EAGER, learnable_codebook=True, ema_update=False)
    for _ in range(4):
        bench.vq(data())[2].sum().backward()
        bench.optimizers[0].step()
    bench.probe.window.restart()
    before = bench.view.codebook().clone()
    moments = bench.optimizers[0].state[bench.vq._codebook.embed]["exp_avg"][0]
    kept = moments.clone()
    bench.upkeep.tend(4)
    moved = (bench.view.codebook() != before).any(dim=1)
    assert int(moved.sum()) == 6
    assert not moments[moved].any()
    assert torch.equal(moments[~moved], kept[~moved])


def test_a_row_that_is_decoded_raw_gets_the_length_of_its_own_latents() -> None:
    """Half the latents are long and served; codes move to the short ones, and no long one makes their length."""
    generator = torch.Generator().manual_seed(0)
    served = torch.tensor([100.0, 0.0, 0.0]).expand(64, 3)
    short = functional.normalize(torch.tensor([0.0, 1.0, 0.0]) + 0.1 * torch.randn(64, 3, generator=generator), dim=1)
    quantizer = nn.Module()
    quantizer.rows = nn.Parameter(torch.tensor([[100.0, 0, 0], [0, 0, -5.0], [0, 0, -6.0], [0, 0, -7.0]]))
    described = GenericVQ(table="rows", codes=lambda output: output, metric="cosine", decodes_raw=True)
    window = Window(4, 3)
    window.add(torch.zeros(128, dtype=torch.int64), torch.cat([served, short]))
    params = Upkeep.model_validate({"every": "1 steps", "most": 1.0})
    upkeep = find_intervention("upkeep")(params, Site(described.view("vq", quantizer), window, [], np.zeros(4), seed=1))
    upkeep.apply()
    window.add(torch.zeros(128, dtype=torch.int64), torch.cat([served, short]))
    window.restart()
    upkeep.tend(1)
    assert upkeep.writes == 1
    torch.testing.assert_close(quantizer.rows[1:].norm(dim=1), torch.ones(3), atol=0.05, rtol=0)


POLICY: dict[str, Any] = {
    "version": 1,
    "name": "upkeep",
    "sample": {"every": "10 steps", "when_suspect": "5 steps"},
    "rules": [
        {
            "name": "starving",
            "when": "dead_fraction > 0.3",
            "for": 2,
            "clear": {"when": "dead_fraction < 0.1", "for": 3},
            "severity": "info",
            "verify": {"within": "400 steps"},
            "ladder": [{"upkeep": {"every": "10 steps"}}],
        }
    ],
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.scale = nn.Parameter(torch.ones(()))
        self.vq = VectorQuantize(dim=D, codebook_size=K, decay=0.9)
        with torch.no_grad():
            codebook: Any = self.vq._codebook
            codebook.embed[:, K // 2 :] += 100.0
            codebook.embed_avg.copy_(codebook.embed)


def train(model: Model, optimizer: torch.optim.Optimizer, guard: Guard, steps: range) -> None:
    for step in steps:
        x = data(generator=torch.Generator().manual_seed(step))
        loss = model.vq(x * model.scale)[2].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step()


def test_codes_of_a_fallback_are_left_to_its_refits() -> None:
    bench = Bench(EAGER)
    bench.view.freeze()
    assert "a fallback tokenizer is in force" in (bench.upkeep.refusal() or "")
    bench.view.unfreeze()
    assert bench.upkeep.refusal() is None


def test_a_rule_switches_upkeep_on_and_its_clear_switches_it_off() -> None:
    recorder, model = Recorder(), Model()
    optimizer = torch.optim.Adam(model.parameters())
    with Guard(POLICY, console=False, sinks=[recorder]) as guard:
        guard.attach(model, optimizer)
        train(model, optimizer, guard, range(300))
        (view,) = (probe.view for probe in guard._watch.probes.values())
        assert not view.is_taken_over
    (act,), (outcome,), (tended,) = (recorder.of(event) for event in ("intervention", "outcome", "tended"))
    assert (act.fields["action"], outcome.fields["outcome"]) == ("upkeep", "recovered")
    assert int(tended.fields["summary"].split()[0]) >= K // 2 - K // 10
    assert tended.step == outcome.step
    assert tended.fields["codebook_version"] > act.fields["codebook_version"]


def test_a_resumed_upkeep_moves_the_same_codes_at_the_same_steps() -> None:
    ends = []
    for cut in (None, 33, 57):
        model = Model()
        optimizer = torch.optim.Adam(model.parameters())
        guard = Guard(POLICY, console=False).attach(model, optimizer)
        train(model, optimizer, guard, range(cut or 120))
        if cut is not None:
            saved = guard.state_dict()
            twin = Model()
            twin.load_state_dict(model.state_dict())
            guard.close()
            again = torch.optim.Adam(twin.parameters())
            again.load_state_dict(optimizer.state_dict())
            model, optimizer = twin, again
            guard = Guard(POLICY, console=False).attach(model, optimizer)
            guard.load_state_dict(saved)
            train(model, optimizer, guard, range(cut, 120))
        ends.append(({key: value.clone() for key, value in model.state_dict().items()}, guard.readings))
        guard.close()
    for state, readings in ends[1:]:
        torch.testing.assert_close(state, ends[0][0], rtol=0, atol=0)
        assert readings == ends[0][1]
