"""Positions taken for features, in front of every real quantizer class: never seen where they are not, and taken back.

Each class is called with what a product has made of data of the contract, along each axis in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collapse_guard import CodebookView
from collapse_guard.adapters.nested import flatten_tensors
from collapse_guard.interventions import Site, find_intervention
from collapse_guard.interventions.layout_hold import LayoutHold
from collapse_guard.mix import Mix
from collapse_guard.policies import RestoreLayout
from collapse_guard.window import Window

from .all_cases import CASES
from .case import Case
from .test_contract import Model, build, found, probes_on, train_for

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
SEEN = Mix(channels_first=True, positions=4)


def made(x: Tensor, axis: int) -> Tensor:
    """Let an axis be the channels of a product that changes no number."""
    layer = nn.Linear(x.shape[axis], x.shape[axis])
    with torch.no_grad():
        layer.weight.copy_(torch.eye(x.shape[axis]))
        layer.bias.zero_()
    result: Tensor = layer(x.movedim(axis, -1)).movedim(-1, axis)
    return result


@every_case
def test_positions_are_never_said_to_be_features_where_nothing_was_reshaped(case: Case) -> None:
    model, optimizer = build(case)
    train_for(case, model, optimizer, 2)
    x = case.batch()
    said = []
    for axis in range(1, x.ndim):
        with probes_on(model) as probes:
            case.run(model.quantizer, made(x, axis))
            said.append({probe.reshaped for probe in probes.values()})
    assert not any(1 in each for each in said)


def hold_on(model: Model, view: CodebookView) -> LayoutHold | str:
    """Return the hooks of `restore_layout` on a codebook, or why it is refused."""
    site = Site(view, Window(view.K, view.D), [], torch.ones(view.K).numpy(), seed=0, model=model, mix=lambda: SEEN)
    remedy = find_intervention("restore_layout")(RestoreLayout(), site)
    if (why := remedy.refusal()) is not None:
        return why
    (hold,) = remedy.holds()
    assert isinstance(hold, LayoutHold)
    return hold


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], Mapping[str, Any], Any]]]:
    seen: list[tuple[tuple[Any, ...], Mapping[str, Any], Any]] = []
    handle = module.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args, kwargs, output)), with_kwargs=True
    )
    yield seen
    handle.remove()


def mixed(values: Tensor, mix: Mix, *, is_last: bool) -> Tensor:
    tokens = values if is_last else values.movedim(1, -1)
    changed = mix.made(tokens.reshape(len(tokens), -1, tokens.shape[-1])).reshape(tokens.shape)
    return (changed if is_last else changed.movedim(-1, 1)).contiguous()


@every_case
@torch.no_grad()
def test_mixed_latents_get_the_codes_and_vectors_of_those_that_are_not_or_it_is_refused(case: Case) -> None:
    """The quantizer itself is called as its class was in a run of the contract, with what it was given mixed up."""
    model, optimizer = build(case)
    with torch.enable_grad():
        train_for(case, model, optimizer, 3)
    model.eval()
    for view in found(model):
        hold = hold_on(model, view)
        if isinstance(hold, str):
            assert len(hold) > 20
            continue
        module = model.get_submodule(view.name)
        with calls_of(module) as calls:
            case.run(model.quantizer, case.batch())
        for args, kwargs, output in calls:
            tensors = list(flatten_tensors((args, kwargs)))
            if len(tensors) != 1 or tensors[0].ndim < 3:
                continue  # the mix that is seen of such calls is refused
            for first in (True, False):
                hold.mix = mix = Mix(channels_first=first, positions=4)
                hold.install()
                returned = module(mixed(tensors[0], mix, is_last=hold.is_last))
                hold.raise_failure()
                hold.remove()
                for one, other in zip(flatten_tensors(returned), flatten_tensors(output), strict=True):
                    is_vectors = other.is_floating_point() and other.shape == tensors[0].shape
                    expected = mixed(other, mix, is_last=hold.is_last) if is_vectors else other
                    torch.testing.assert_close(one, expected, rtol=0, atol=0)


def test_it_is_taken_by_some_class_of_each_layout() -> None:
    taken = set()
    for case in CASES:
        model, optimizer = build(case)
        train_for(case, model, optimizer, 1)
        holds = [hold_on(model, view) for view in found(model)]
        taken |= {(case.package, hold.is_last) for hold in holds if isinstance(hold, LayoutHold)}
    assert taken >= {
        ("vector-quantize-pytorch", True),
        ("vector-quantize-pytorch", False),
        ("encodec", False),
        ("taming-transformers", False),
        ("diffusers", False),
    }
