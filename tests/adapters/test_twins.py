"""Copies for trials: what a copy would share with its original is not tried."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from collapse_guard.adapters.recognition.twins import CannotTryError, copy_apart


def over_method(layer: nn.Module) -> Callable[..., Any]:
    method = layer.forward
    return lambda rows: method(rows)


def over_module(layer: nn.Module) -> Callable[..., Any]:
    return lambda rows: layer.weight @ rows


def over_tensor(layer: nn.Module) -> Callable[..., Any]:
    table = layer.weight
    return lambda rows, weight=table: weight @ rows


def over_a_part(layer: nn.Module) -> Callable[..., Any]:
    return partial(over_module(layer), torch.ones(2))


def over_another_function(layer: nn.Module) -> Callable[..., Any]:
    inner = over_module(layer)
    return lambda rows: inner(rows)


@pytest.mark.parametrize("replaced", [over_method, over_module, over_tensor, over_a_part, over_another_function])
def test_a_module_with_a_function_that_holds_on_to_it_is_not_copied(replaced: Callable[..., Any]) -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    model[0].score = replaced(model[0])
    with pytest.raises(CannotTryError, match=r"the function at 0\.score holds on to what a copy would then share"):
        copy_apart(model)


@pytest.mark.parametrize(
    "harmless", [torch.relu, partial(torch.add, 1), lambda rows: rows + 1, nn.Linear(2, 2).forward]
)
def test_functions_that_hold_on_to_nothing_and_bound_methods_are_copied(harmless: Callable[..., Any]) -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    model[0].score = harmless
    copied: Any = copy_apart(model)
    assert copied[0] is not model[0]
