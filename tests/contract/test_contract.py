"""One contract for every real quantizer class: what a view promises is true of it.

Each class is the attribute `quantizer` of a small model that is trained as its users would train it. What the library
itself returns, and searches in float64, are the references.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collapse_guard import CodebookView, Guard, discover
from collapse_guard.adapters import CAPABILITIES, Observation
from collapse_guard.interventions import Site, Transaction, find_intervention
from collapse_guard.policies import FallbackTokenizer, ResetCodes
from collapse_guard.probe import Probe

from .all_cases import CASES
from .case import Case, Run

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


class Model(nn.Module):
    """An encoder that moves, before the quantizer; `scale` is its one weight."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.quantizer = case.build()
        self._case = (case,)  # in a tuple: no part of the module's state

    def forward(self, x: Tensor) -> Run:
        return self._case[0].run(self.quantizer, x * self.scale)


def build(case: Case, *, seed: int = 0) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model(case).train()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def train(
    case: Case, model: Model, optimizer: torch.optim.Optimizer, steps: int, after: Callable[[], Any] = lambda: None
) -> Iterator[Run]:
    """Yield each step's run after the optimizer has stepped."""
    for _ in range(steps):
        run = model(case.batch())
        optimizer.zero_grad()
        loss = model.scale.square() + (run.loss if run.loss is not None else 0.0)
        loss.backward()
        optimizer.step()
        after()
        yield run


def train_for(case: Case, model: Model, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in train(case, model, optimizer, steps):
        pass


def found(model: Model) -> tuple[CodebookView, ...]:
    return discover(model, model._case[0].adapters).views


@contextmanager
def probes_on(model: Model) -> Iterator[dict[str, Probe]]:
    def fail(error: Exception) -> None:
        raise error

    probes = {view.name: Probe(view, seed=0, on_error=fail) for view in found(model)}
    for probe in probes.values():
        probe.install()
    try:
        yield probes
    finally:
        for probe in probes.values():
            probe.remove()


@contextmanager
def observations_of(model: Model, view: CodebookView) -> Iterator[list[Observation]]:
    """Collect what readers of their own say of each call, through the probe's own hooks."""
    seen: list[Observation] = []
    (own,) = (each for each in found(model) if each.name == view.name)
    probe = Probe(own, seed=0, on_error=_raise)

    def add(codes: Tensor, latents: Tensor | None, *, in_graph: bool = False, is_update: bool = True) -> None:
        seen.append(Observation(codes, latents))

    probe.window.add = add  # type: ignore[method-assign]
    probe.install()
    try:
        yield seen
    finally:
        probe.remove()


def _raise(error: Exception) -> None:
    raise error


def distances(view: CodebookView, latents: Tensor, rows: Tensor) -> Any:
    """(n, K) in float64, as the view says that they are compared; the smaller the nearer."""
    z, table = latents.double().numpy(), rows.double().numpy()
    if view.metric == "cosine":
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
        table = table / np.linalg.norm(table, axis=-1, keepdims=True)
    return np.square(z[:, None] - table[None]).sum(-1)


def assert_nearest(view: CodebookView, observation: Observation, table: Tensor) -> None:
    """Each token's code is as near as the nearest row of the table that was searched, up to what float32 can tell."""
    assert observation.latents is not None
    is_token = observation.codes >= 0
    assert is_token.any()
    all_distances = distances(view, observation.latents[is_token], table)
    chosen = np.take_along_axis(all_distances, observation.codes[is_token].numpy()[:, None], 1)[:, 0]
    scale = 1 + np.abs(all_distances).max(1)
    np.testing.assert_array_less(chosen - all_distances.min(1), 1e-5 * scale)


def assert_seen(case: Case, view: CodebookView, seen: list[Observation], run: Run, table: Tensor | None) -> None:
    """What was seen of one forward is what the library returned, and nearest in `table`."""
    assert len(seen) == case.calls
    codes = torch.cat([observation.codes for observation in seen])
    assert torch.equal(codes.long(), run.codes[view.name].long())
    if table is not None and case.nearest:
        for observation in seen:
            assert_nearest(view, observation, table)


def site_of(view: CodebookView, probe: Probe, optimizer: torch.optim.Optimizer) -> Site:
    tallies = probe.window.tallies
    assert tallies is not None
    return Site(view, probe.window, [optimizer], tallies[: view.K].numpy().copy(), seed=0)


def spoil(view: CodebookView, latents: Tensor) -> Tensor:
    """Make the upper half of the codes useless: all at one place far from the data; return their indices."""
    K, D = view.K, view.D
    rows = torch.arange(K // 2, K)
    place = -50 * torch.ones(D) if view.metric == "l2" else lonely_direction(view, latents)
    jitter = 1e-3 * torch.randn(len(rows), D, generator=torch.Generator().manual_seed(1))
    view.write_rows(rows, place + jitter, torch.ones(len(rows)))
    return rows


def lonely_direction(view: CodebookView, latents: Tensor) -> Tensor:
    """The one, of some, that fewest latents come nearer to than to the lower half of the codes."""
    unit = torch.nn.functional.normalize
    tries = unit(torch.randn(4096, view.D, generator=torch.Generator().manual_seed(2)), dim=-1)
    z = unit(latents, dim=-1)
    best = (z @ unit(view.codebook()[: view.K // 2], dim=-1).T).amax(dim=1, keepdim=True)
    return tries[(z @ tries.T - best).amax(dim=0).argmin()]


def require(case: Case, *capabilities: str) -> None:
    if missing := case.lacks & set(capabilities):
        pytest.skip(f"{case.id} has no {', '.join(sorted(missing))}, which another test checks that it says")


@every_case
def test_every_codebook_is_found_and_says_what_it_lacks(case: Case) -> None:
    model, _ = build(case)
    views = found(model)
    assert tuple(view.name for view in views) == case.views
    for view in views:
        lacking = {capability for capability in CAPABILITIES if view.why_not(capability) is not None}
        assert lacking == case.lacks
        assert all(len(view.lacks[capability]) > 20 for capability in lacking)  # a reason, not a word


@every_case
def test_codes_are_the_librarys_own_and_the_nearest_rows_of_the_table(case: Case) -> None:
    model, optimizer = build(case)
    train_for(case, model, optimizer, 3)
    for view in found(model):
        with observations_of(model, view) as seen:
            table = view.codebook().clone()  # an average moves after the search
            run = model(case.batch())
        assert_seen(case, view, seen, run, None if "reset" in case.lacks else table)


@every_case
def test_observing_changes_no_bit_of_ten_training_steps(case: Case) -> None:
    ends = []
    for watched in (False, True):
        model, optimizer = build(case)
        guard = Guard("observe", console=False, adapters=case.adapters)
        if watched:
            guard.attach(model, optimizer)
        for _ in train(case, model, optimizer, 10, after=guard.step):
            pass
        guard.close()
        ends.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0, equal_nan=True)


@every_case
def test_a_reset_survives_the_next_training_forward_and_its_rows_are_selected(case: Case) -> None:
    require(case, "reset")
    model, optimizer = build(case)
    with probes_on(model) as probes:
        train_for(case, model, optimizer, 3)
        for name, probe in probes.items():
            view = probe.view
            latents = probe.window.sample()
            view.take_over()  # what the library itself replaces would not stay spoilt
            rows = spoil(view, latents)
            probe.window.restart()
            train_for(case, model, optimizer, 2)
            view.give_back()
            before = {role: tensor.clone() for role, tensor in view.tensors()}
            moments = rows_of_optimizer(view, optimizer)
            site = site_of(view, probe, optimizer)
            dead = torch.as_tensor(site.counts < 0.1 * site.counts.mean()).nonzero().flatten()
            assert len(set(dead.tolist()) & set(rows.tolist())) >= len(rows) - 2, "the spoilt rows are hardly used"
            intervention = find_intervention("reset_codes")(ResetCodes(scope="dead"), site)
            assert intervention.refusal() is None
            transaction = Transaction(intervention.parts())
            intervention.apply()
            transaction.check()
            others = torch.tensor([row for row in range(view.K) if row not in set(dead.tolist())], dtype=torch.int64)
            for role, tensor in view.tensors():
                assert torch.equal(tensor[others], before[role][others]), f"{name}: {role} of other rows"
            for key, tensor in rows_of_optimizer(view, optimizer).items():
                assert torch.equal(tensor[others], moments[key][others]), f"{name}: {key} of other rows"
                assert not tensor[dead].any(), f"{name}: {key} of reset rows"
            written = view.codebook()[dead].clone()
            with observations_of(model, view) as seen:
                model(case.batch()[:1])  # a training forward: averages move
            hit = {code for observation in seen for code in observation.codes.tolist()}
            unhit = torch.tensor([index for index, row in enumerate(dead.tolist()) if row not in hit])
            if len(unhit):
                torch.testing.assert_close(view.codebook()[dead][unhit], written[unhit], rtol=1e-4, atol=1e-4)
            probe.window.restart()
            train_for(case, model, optimizer, 5)
            counts = site_of(view, probe, optimizer).counts
            assert (counts[dead.numpy()] > 0).mean() >= 0.5, f"{name}: {counts[dead.numpy()]}"
            transaction.undo()


def rows_of_optimizer(view: CodebookView, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return clones of what Adam remembers of this table, row by row; nothing for a table that it does not move."""
    table = view.refs().get("table")
    if table is None or not table.is_parameter:
        return {}
    state = optimizer.state.get(table.whole(), {})
    return {key: table.part_of(state[key]).clone() for key in ("exp_avg", "exp_avg_sq") if key in state}


@every_case
def test_undoing_a_reset_is_bit_equal(case: Case) -> None:
    require(case, "reset")
    model, optimizer = build(case)
    with probes_on(model) as probes:
        train_for(case, model, optimizer, 4)
        for probe in probes.values():
            saved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            intervention = find_intervention("reset_codes")(
                ResetCodes(scope="all"), site_of(probe.view, probe, optimizer)
            )
            transaction = Transaction(intervention.parts())
            intervention.apply()
            assert transaction.manifest()
            transaction.undo()
            torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0, equal_nan=True)
            assert not probe.view.is_taken_over


@every_case
def test_a_frozen_codebook_is_bit_equal_after_training_and_moves_again_when_released(case: Case) -> None:
    require(case, "freeze")
    model, optimizer = build(case)
    train_for(case, model, optimizer, 2)
    for view in found(model):
        before = {role: tensor.clone() for role, tensor in view.tensors()}
        table = view.codebook().clone()
        view.freeze()
        for _ in train(case, model, optimizer, 5, after=view.hold):
            pass
        assert torch.equal(view.codebook(), table)
        for role, tensor in view.tensors():
            assert torch.equal(tensor, before[role]), role
        view.unfreeze()
        if case.trains:
            train_for(case, model, optimizer, 3)
            assert not torch.equal(view.codebook(), table)


@every_case
def test_the_fallback_gives_every_token_its_nearest_centroid(case: Case) -> None:
    require(case, "reset", "freeze", "fallback")
    model, optimizer = build(case)
    with probes_on(model) as probes:
        train_for(case, model, optimizer, 4)
        for probe in probes.values():
            fallback = find_intervention("fallback_tokenizer")(
                FallbackTokenizer(backend="sklearn"), site_of(probe.view, probe, optimizer)
            )
            assert fallback.refusal() is None
            fallback.apply()

        def hold() -> None:
            for probe in probes.values():
                probe.view.hold()

        for probe in probes.values():
            placed = probe.view.codebook().clone()
            for _ in train(case, model, optimizer, 2, after=hold):
                pass
            assert torch.equal(probe.view.codebook(), placed)
            with observations_of(model, probe.view) as seen:
                run = model(case.batch())
            assert_seen(case, probe.view, seen, run, placed)
        for probe in probes.values():
            probe.view.unfreeze()


@every_case
def test_the_commitment_weight_is_the_factor_of_what_pulls_the_encoder_and_of_nothing_else(case: Case) -> None:
    require(case, "commitment")
    model, optimizer = build(case)
    train_for(case, model, optimizer, 3)
    batch = case.batch()
    encoder, table = zip(*(pulls(case, model, batch, weight) for weight in (0.5, 1.0, 2.0)), strict=True)
    assert (encoder[1] - encoder[0]).norm() > 1e-3 * encoder[1].norm() > 0
    torch.testing.assert_close(encoder[2] - encoder[1], 2 * (encoder[1] - encoder[0]), rtol=1e-3, atol=1e-6)
    for other in table[1:]:
        torch.testing.assert_close(other, table[0])


def pulls(case: Case, model: Model, batch: Tensor, weight: float) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the library's own loss, at a commitment weight, for a batch and for the tables."""
    twin = copy.deepcopy(model)
    views = found(twin)
    for view in views:
        assert view.commitment is not None
        view.commitment.set(weight)
        assert view.commitment.get() == weight
    given = batch.clone().requires_grad_()
    torch.manual_seed(3)
    loss = case.run(twin.quantizer, given).loss
    assert loss is not None
    loss.backward()
    assert given.grad is not None
    tables = [view.refs()["table"].whole() for view in views if view.table.is_parameter]
    return given.grad, [table.grad for table in tables if table.grad is not None]


@every_case
def test_detaching_leaves_no_trace(case: Case) -> None:
    twin, its_optimizer = build(case)  # never watched; a quantizer's own counters go on while it is
    train_for(case, twin, its_optimizer, 3)
    model, optimizer = build(case)
    train_for(case, model, optimizer, 1)
    classes = [type(module) for module in model.modules()]
    guard = Guard("observe", console=False, adapters=case.adapters)
    guard.attach(model, optimizer)
    for view in guard._watch.probes.values():
        if "freeze" not in case.lacks:
            view.view.freeze()
        view.view.take_over()
    for _ in train(case, model, optimizer, 2, after=guard.step):
        pass
    guard.close()
    assert [type(module) for module in model.modules()] == classes
    assert traces(model) == traces(twin)


def traces(model: nn.Module) -> list[Any]:
    """Return what a guest could have left behind: attributes, settings, hooks, keys of the state dict."""
    return [
        (
            name,
            sorted(module.__dict__),
            {key: value for key, value in module.__dict__.items() if isinstance(value, (int, float, str, bool))}
            | {"training": module.training},
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
            sorted(module.state_dict()),
        )
        for name, module in model.named_modules()
    ]
