"""Observing methods by class exchange: what copies, pickles and spawned processes get of an observed module."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.nn.utils.parametrizations import weight_norm

from collapse_guard import Guard
from collapse_guard.adapters import Interception, InterceptionError
from tests.contract import encodec, moshi, transformers_codecs

CODECS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "Mimi": (transformers_codecs.mimi_model, lambda model: model.encode(transformers_codecs.sound()).audio_codes),
    "Encodec's quantizer": (
        lambda: transformers_codecs.encodec_model().quantizer,
        lambda model: model.encode(noise(8)),
    ),
    "XCodec's quantizer": (lambda: transformers_codecs.xcodec_model().quantizer, lambda model: model.encode(noise(24))),
    "encodec": (
        lambda: encodec.vq.ResidualVectorQuantizer(dimension=8, n_q=2, bins=16, kmeans_init=False),
        lambda model: model.encode(noise(8), 50),
    ),
    "moshi": (
        lambda: moshi.started(moshi.vq.ResidualVectorQuantizer(dimension=8, n_q=2, bins=16), 50),
        lambda model: model.encode(noise(8)),
    ),
}


def noise(D: int) -> Tensor:
    return torch.randn(2, D, 40)


def saved_whole(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(protocol: int, module: Any) -> Any:
    return pickle.loads(pickle.dumps(module, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "torch.save": saved_whole,
    "what spawn sends": lambda module: pickle.loads(ForkingPickler.dumps(module)),
    **{f"pickle, protocol {protocol}": partial(pickled, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@contextmanager
def watched(model: Any) -> Iterator[Guard]:
    guard = Guard("observe", console=False)
    guard.attach(model)
    try:
        yield guard
    finally:
        guard.close()


def tokens(guard: Guard) -> list[int]:
    windows = [probe.window.tallies for probe in guard._watch.probes.values()]
    return [0 if tallies is None else int(tallies.sum()) for tallies in windows]


@pytest.mark.parametrize("way", ["deepcopy", "torch.save", "what spawn sends", "pickle, protocol 4"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_copy_of_a_watched_codec_is_of_its_own_class_and_reports_to_nobody(codec: str, way: str) -> None:
    build, call = CODECS[codec]
    torch.manual_seed(0)
    model = build().train()
    classes = [type(module) for module in model.modules()]
    with watched(model) as guard:
        assert [type(module) for module in model.modules()] != classes
        copied = COPIES[way](model)
        assert [type(module) for module in copied.modules()] == classes
        assert not any(Interception.is_on(module) for module in copied.modules())
        codes = []
        for each in (copied, model):
            torch.manual_seed(1)
            codes.append(call(each))
            assert sum(tokens(guard)) == (codes[0].numel() if each is model else 0)
        assert torch.equal(*codes)
        with watched(copied) as second:  # and may be watched for itself
            call(copied)
            assert sum(tokens(second)) == codes[0].numel() == sum(tokens(guard))
    assert [type(module) for module in model.modules()] == classes


def test_what_was_pickled_of_an_observed_module_is_read_without_this_package(tmp_path: Path) -> None:
    module, x = nn.Linear(8, 8), torch.randn(20, 8)
    interception = Interception(module, {"forward": lambda *call: None})
    interception.install()
    torch.save({"model": module, "x": x, "output": module(x)}, tmp_path / "whole.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['collapse_guard'] = None\n"
        "saved = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(saved['model'](saved['x']), saved['output'])\n"
        "print(type(saved['model']) is torch.nn.Linear, [name for name in vars(saved['model']) if 'guard' in name])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "whole.pt")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == "True []\n", run.stderr


def test_a_spawned_process_gets_an_observed_module_that_works() -> None:
    module, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(20, 8)
    seen: list[Any] = []
    interception = Interception(module, {"forward": lambda *call: seen.append(call)})
    interception.install()
    with get_context("spawn").Pool(1) as pool:
        output = pool.apply_async(operator.methodcaller("forward", x), (module,)).get(timeout=120)
    assert not seen
    assert torch.equal(output, module(x))


class Own(nn.Module):
    """Pickles and copies in the ways that classes have of their own."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = size

    def encode(self, x: Tensor) -> Tensor:
        return x + self.size


class ByArguments(Own):
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size,)


class ByKeywords(Own):
    def __new__(cls, *args: int, size: int = 2) -> ByKeywords:
        made: ByKeywords = super().__new__(cls)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, int]]:
        return (), {"size": self.size}


class WithSlots(Own):
    __slots__ = ("extra",)

    def __init__(self, size: int = 2) -> None:
        super().__init__(size)
        object.__setattr__(self, "extra", 5)


class CopiedByItself(Own):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedByItself:
        made = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made


@pytest.mark.parametrize("way", [*COPIES, "copy"])
@pytest.mark.parametrize("cls", [Own, ByArguments, ByKeywords, WithSlots, CopiedByItself])
def test_classes_that_copy_in_ways_of_their_own_keep_them(cls: type[Own], way: str) -> None:
    module = cls(size=3)
    seen: list[Any] = []
    interception = Interception(module, {"encode": lambda *call: seen.append(call)})
    interception.install()
    copied = copy.copy(module) if way == "copy" else COPIES[way](module)
    assert type(copied) is cls
    assert not Interception.is_on(copied)
    assert copied.encode(torch.zeros(1)).item() == 3
    assert getattr(copied, "extra", 5) == 5
    assert not seen
    module.encode(torch.zeros(1))
    assert len(seen) == 1
    interception.remove()
    assert type(module) is cls


def test_a_parametrised_module_copies_as_ever_and_says_itself_that_it_cannot_be_pickled() -> None:
    module = weight_norm(nn.Linear(2, 2))
    cls = type(module)
    seen: list[Any] = []
    interception = Interception(module, {"forward": lambda *call: seen.append(call)})
    interception.install()
    copied = copy.deepcopy(module)
    assert type(copied) is cls
    assert not Interception.is_on(copied)
    copied(torch.zeros(2))
    assert not seen
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(module)


def test_a_method_that_the_module_lacks_is_refused_and_nothing_is_exchanged() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(InterceptionError, match="Linear has no method 'encode'"):
        Interception(module, {"encode": lambda *call: None}).install()
    assert type(module) is nn.Linear
