"""Whether positions were taken for features, as the graph shows it: never said where it may be otherwise."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from collapse_guard.diagnosis.origin import mix_of
from collapse_guard.mix import Mix

B, T, C, D = 2, 6, 3, 4
X = torch.randn(B, T, C)
IMAGE = torch.randn(B, C, 4, 6)

Make = Callable[[], Tensor]


def linear(width: int = D, x: Tensor = X, **options: Any) -> Tensor:
    """(B, T, width)."""
    made: Tensor = nn.Linear(C, width, **options)(x)
    return made


def conv1() -> Tensor:
    """(B, D, T)."""
    made: Tensor = nn.Conv1d(C, D, 1)(X.mT)
    return made


def conv2() -> Tensor:
    """(B, D, 4, 6)."""
    made: Tensor = nn.Conv2d(C, D, 1)(IMAGE)
    return made


def mixed(z: Tensor) -> Tensor:
    """(B, T, D) by way of (B, D, T)."""
    return z.mT.reshape(z.shape)


def weighted(x: Tensor, width: int = D) -> Tensor:
    return torch.einsum("btc,dc->btd", x, nn.Parameter(torch.randn(width, C)))


def deep(x: Tensor) -> Tensor:
    for _ in range(70):
        x = x * 1.01
    return x


def in_bfloat16(make: Make) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return make().float()


MIXED: dict[str, tuple[Make, Mix]] = {
    "a linear layer": (lambda: mixed(linear()), Mix(True, T)),
    "without bias": (lambda: mixed(linear(bias=False)), Mix(True, T)),
    "of what is not contiguous": (lambda: mixed(linear(x=torch.randn(T, B, C).transpose(0, 1))), Mix(True, T)),
    "a product by hand": (lambda: mixed(X @ nn.Parameter(torch.randn(C, D))), Mix(True, T)),
    "an einsum": (lambda: mixed(weighted(X)), Mix(True, T)),
    "weights from the left": (lambda: (nn.Parameter(torch.randn(D, C)) @ X.mT).reshape(B, T, D), Mix(True, T)),
    "made contiguous before": (lambda: linear().mT.contiguous().view(B, T, D), Mix(True, T)),
    "activation and norm between": (
        lambda: functional.layer_norm(mixed(functional.gelu(linear())), (D,)), Mix(True, T)),
    "normalised after": (lambda: functional.normalize(mixed(linear()), dim=-1), Mix(True, T)),
    "dropout and scale": (lambda: mixed(functional.dropout(linear(), 0.5) * 3.0 + 1.0), Mix(True, T)),
    "a residual": (lambda: mixed(functional.relu(z := linear()) + nn.Linear(D, D)(z)), Mix(True, T)),
    "positions embedded": (lambda: mixed(linear() + nn.Parameter(torch.randn(1, T, D))), Mix(True, T)),
    "half precision": (lambda: mixed(in_bfloat16(linear)), Mix(True, T)),
    "fewer positions than features": (lambda: mixed(linear(x=torch.randn(B, 2, C))), Mix(True, 2)),
    "a convolution": (lambda: conv1().reshape(B, T, D), Mix(True, T)),
    "of images": (lambda: conv2().reshape(B, 24, D), Mix(True, 24)),
    "of images, rows kept": (
        lambda: nn.Conv2d(C, D, 1)(torch.randn(B, C, 3, 8)).reshape(B, 3, 8, D), Mix(True, 24)),
    "normalised in batches": (
        lambda: nn.BatchNorm2d(D)(conv2()).flatten(2).contiguous().view(B, 24, D), Mix(True, 24)),
    "a convolution, flat": (lambda: conv2().reshape(-1, D), Mix(True, 24, is_told=False)),
    "a linear layer, flat": (lambda: linear().mT.reshape(-1, D), Mix(True, T, is_told=False)),
    "one by one": (lambda: linear().mT.reshape(-1, 1, D), Mix(True, T, is_told=False)),
    "to channels first": (lambda: linear().reshape(B, D, T), Mix(False, T)),
    "to an image": (lambda: linear(x=torch.randn(B, 24, C)).reshape(B, D, 4, 6), Mix(False, 24)),
    "mixed, then permuted": (lambda: mixed(linear()).mT, Mix(True, T)),
    "to channels first, then permuted": (lambda: linear().reshape(B, D, T).mT, Mix(False, T)),
}  # fmt: skip

WHOLE: dict[str, Make] = {
    "a linear layer": linear,
    "flat": lambda: linear().reshape(-1, D),
    "channels first": lambda: linear().mT,
    "a convolution": conv1,
    "permuted": lambda: conv1().permute(0, 2, 1),
    "permuted, flat": lambda: conv2().permute(0, 2, 3, 1).reshape(-1, D),
    "an image": conv2,
    "an image, flat positions": lambda: conv2().flatten(2),
    "there and back": lambda: linear().mT.contiguous().mT,
    "reshaped and back": lambda: linear().reshape(B, T * D).reshape(B, T, D),
    "mixed and back": lambda: mixed(linear()).reshape(B, D, T).mT,
    "a cut": lambda: linear(2 * D).view(B, 2 * T, D),
    "a cut, flat": lambda: linear(2 * D).view(-1, D),
    "heads": lambda: linear(2 * D).view(B, T, 2, D).transpose(1, 2),
    "heads first": lambda: linear(2 * D).view(B, T, 2, D).permute(2, 0, 1, 3),
    "heads in one batch": lambda: linear(2 * D).view(B, T, 2, D).transpose(1, 2).reshape(-1, T, D),
    "product quantization": lambda: nn.Conv1d(C, 3 * D, 1)(X.mT).view(B, 3, D, T).permute(0, 1, 3, 2),
    "every second channel": lambda: linear(2 * D).view(B, T, D, 2).transpose(2, 3).reshape(B, 2 * T, D),
    "time first": lambda: linear(x=torch.randn(T, B, C)).transpose(0, 1),
    "one position": lambda: linear(x=torch.randn(B, 1, C)),
    "looked up": lambda: nn.Embedding(9, D)(torch.zeros(B, T, dtype=torch.long)),
}

UNKNOWN: dict[str, Make] = {
    "no graph": lambda: mixed(linear()).detach(),
    "an input that wants a gradient": lambda: torch.randn(B, T, D, requires_grad=True),
    "a leaf behind a mix": lambda: mixed(torch.randn(B, T, D, requires_grad=True)),
    "channel-wise, as many positions as features": lambda: linear(9, torch.randn(B, D, C)).mT,
    "channel-wise of an image": lambda: nn.Conv2d(C, 5, 1)(torch.randn(B, C, 2, 2)).reshape(B, 5, 4),
    "channel-wise, flat": lambda: nn.Conv2d(C, 5, 1)(torch.randn(B, C, 2, 2)).reshape(-1, 4),
    "rows of an image": lambda: nn.Conv2d(C, D, 1)(torch.randn(B, C, 6, D)).reshape(B, 6 * D, D),
    "patches of each channel": lambda: conv2().reshape(B, D, 2, 2, 3, 2).permute(0, 1, 2, 4, 3, 5).reshape(B, -1, 4),
    "patches of all channels": lambda: (
        nn.Conv2d(C, 2, 1)(IMAGE).reshape(B, 2, 2, 2, 6).permute(0, 2, 4, 3, 1).reshape(B, 12, 4)),
    "groups of channels over all positions": lambda: linear(12, torch.randn(B, 2, C)).mT.reshape(B, 6, 4),
    "cut, then mixed": lambda: mixed(linear(2 * D).reshape(B, 2 * T, D)),
    "a product over positions": lambda: linear(8, torch.randn(B, D, C)).mT,
    "square": lambda: linear(x=torch.randn(B, D, C)),
    "pooled between": lambda: mixed(functional.avg_pool1d(linear().mT, 2).mT),
    "sorted between": lambda: mixed(linear().sort(dim=1).values),
    "attention": lambda: mixed(functional.scaled_dot_product_attention(linear(), linear(), linear())),
    "one branch alone is mixed": lambda: linear() + mixed(linear()),
    "a long way": lambda: mixed(deep(linear())),
    "activation checkpointing": lambda: mixed(checkpoint(nn.Linear(C, D), X.clone().requires_grad_(),
                                                         use_reentrant=True)),
    "no such width": lambda: linear(D + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_positions_taken_for_features_are_seen_and_can_be_taken_back(name: str) -> None:
    make, expected = MIXED[name]
    assert mix_of(make(), D) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_features_that_are_channels_are_left_alone(name: str) -> None:
    assert mix_of(WHOLE[name](), D) is False


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_told_is_not_said(name: str) -> None:
    assert mix_of(UNKNOWN[name](), D) is None


@drawn(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(2, 7), st.integers(1, 2)),
    first=st.booleans(),
    flips=st.lists(st.booleans(), max_size=3),
)
def test_what_is_said_to_be_mixed_is_had_back_number_by_number(
    sizes: tuple[int, int, int, int], first: bool, flips: list[bool]
) -> None:
    """Against numbers that name their own places: `taken_back` gives vectors of one position each, in order."""
    batch, positions, width, groups = sizes
    z = nn.Linear(2, groups * width, bias=False)(torch.randn(batch, positions, 2))
    names = torch.arange(z.numel()).reshape(z.shape)

    def journey(values: Tensor) -> Tensor:
        tokens = values.reshape(batch, positions * groups, width)
        for flip in flips:
            tokens = tokens.mT.reshape(tokens.shape) if flip else tokens.reshape(batch, width, -1).mT
        return tokens.mT if first else tokens

    given = journey(z)
    found = mix_of(given, width)
    shown = journey(names).mT if first else journey(names)
    is_whole = torch.equal(shown, shown[..., :1] + torch.arange(width))
    if found is False:
        assert is_whole or (shown // (groups * width) == shown[..., :1] // (groups * width)).all()
    elif found is not None:
        assert not is_whole
        right = names.reshape(shown.shape)
        assert groups == 1
        assert torch.equal(found.taken_back(shown), right)
        assert torch.equal(found.made(right), shown)
        assert found.positions == positions


class Kept:
    """What a graph has saved of a forward."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


def test_looking_keeps_no_graph() -> None:
    kept: list[weakref.ref[Kept]] = []

    def pack(values: Tensor) -> Kept:
        saved = Kept(values)
        kept.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.values):
        given = mixed(functional.gelu(linear()))
    found = mix_of(given, D)
    assert any(each() is not None for each in kept)
    del given
    gc.collect()
    assert all(each() is None for each in kept)
    assert found == Mix(True, T)
