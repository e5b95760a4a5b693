"""What is no quantizer gets no slot, whatever it shares with one; what looks much like one is named with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from collapse_guard import NoQuantizerError, discover
from collapse_guard.adapters import survey
from tests.adapters import learnable, negatives
from tests.contract.packages import import_inside

ALL: dict[str, Callable[[], nn.Module]] = {**negatives.REPORTED, **negatives.SILENT}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "inside"])
def test_no_slot_and_the_same_weights(name: str, wrapped: bool) -> None:
    model = nn.ModuleDict({"part": ALL[name]()}) if wrapped else ALL[name]()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert survey(model).views == ()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", negatives.SILENT)
def test_what_does_not_act_like_a_quantizer_is_not_even_reported(name: str) -> None:
    assert survey(nn.ModuleDict({"part": negatives.SILENT[name]()})).unrecognised == ()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("TiedHead", "largest inner product"),
        ("FeedsBack", "largest inner product"),
        ("CosineClassifier", "may as well be a classifier or a retrieval"),
        ("Prototypes", "may as well be a classifier or a retrieval"),
        ("NearestLabel", "may as well be a classifier or a retrieval"),
        ("TopMemory", "no quantised vectors"),
        ("GroupStatistics", "no trial forward on random latents ran and compared"),
    ],
)
def test_what_acts_much_like_one_is_reported_with_the_reason(name: str, reason: str) -> None:
    (item,) = survey(nn.ModuleDict({"part": negatives.REPORTED[name]()})).unrecognised
    assert item.name == "part"
    assert reason in item.reason


def test_beside_all_of_them_the_one_quantizer_is_found() -> None:
    model = nn.ModuleDict({name: kind() for name, kind in ALL.items()} | {"quantizer": learnable.Textbook()})
    assert [view.name for view in survey(model).views] == ["quantizer"]


def test_the_refusal_of_a_model_without_a_quantizer_lists_what_to_write() -> None:
    with pytest.raises(NoQuantizerError, match="could not be confirmed") as error:
        discover(nn.ModuleDict({"head": negatives.Prototypes()}))
    assert "GenericVQ(table='prototypes'" in str(error.value)


def test_audiocrafts_dummy_quantizer_whose_codes_are_latents_has_no_slot() -> None:
    distributed = ModuleType("flashy.distrib")
    distributed.broadcast_tensors = lambda *_: None  # type: ignore[attr-defined]
    flashy = ModuleType("flashy")
    flashy.distrib = distributed  # type: ignore[attr-defined]
    module = import_inside("audiocraft", "quantization.base", flashy=flashy)
    found = survey(nn.ModuleDict({"quantizer": module.DummyQuantizer()}))
    assert (found.views, found.unrecognised) == ((), ())


def language_models() -> Iterator[nn.Module]:
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    small: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    yield transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, **small))
    yield transformers.BertForMaskedLM(
        transformers.BertConfig(
            num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=32, vocab_size=64
        )
    )
    yield transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            hidden_size=16,
            intermediate_size=32,
            **small,
        )
    )


def test_real_language_models_have_no_slot_and_nothing_is_said_of_them() -> None:
    for model in language_models():
        found = survey(model)
        assert (found.views, found.unrecognised) == ((), ()), type(model).__name__
