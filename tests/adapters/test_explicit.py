"""Quantizers that their owners describe, on classes of others: what is read, and what a wrong description is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collapse_guard import GenericVQ, Guard, discover
from tests.contract.case import offset_data
from tests.contract.dac import build_quietly, dac
from tests.contract.described import taming
from tests.loops import Recorder

K, D = 16, 8


def first(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def codes_of(output: Any) -> Tensor:
    codes: Tensor = output[2][2]
    return codes


def faults(described: GenericVQ, x: Tensor) -> list[str]:
    """Train on x with a described VectorQuantizer2; return what the guard says is wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(taming.VectorQuantizer2(K, D, 0.25, legacy=False)).train()
    recorder = Recorder()
    guard = Guard("observe", console=False, sinks=[recorder], adapters={"0": described}).attach(model)
    for _ in range(2):
        model(x)[1].backward()  # the run itself goes on
        guard.step()
    guard.close()
    return [event.fields["reason"] for event in recorder.of("fault")]


def narrow() -> Tensor:
    return offset_data(4, D, 6, 5, channel=1)


def square() -> Tensor:
    return offset_data(4, D, D, D, channel=1) - 2.0  # around the origin, so that many codes are used


@pytest.mark.parametrize("x", [narrow(), square()], ids=["narrow", "square"])
def test_a_right_description_has_nothing_to_answer_for(x: Tensor) -> None:
    assert faults(GenericVQ(table="embedding.weight", codes=codes_of, latents=first), x) == []


@pytest.mark.parametrize(
    ("options", "x", "expected"),
    [
        (
            {"codes": lambda output: output[5], "latents": first},
            narrow(),
            "GenericVQ(codes=...) raised IndexError: tuple index out of range; "
            "the forward returned (float32 (4, 8, 6, 5), float32 (), (None, None, int64 (120,)))",
        ),
        (
            {"codes": lambda output: output[2], "latents": first},
            narrow(),
            "GenericVQ(codes=...) found (None, None, int64 (120,)), expected a tensor; the forward returned (float32",
        ),
        ({"codes": lambda output: output[0], "latents": first}, narrow(), "expected integer codes, got torch.float32"),
        (
            {"codes": lambda output: output[2][2] + 100, "latents": first},
            narrow(),
            "expected codes from 0 to 15 (-1 for no token), got ",
        ),
        (
            {"codes": lambda output: output[2][2][:7], "latents": first},
            narrow(),
            "expected one code for each of 120 latents, got (7,)",
        ),
        (
            {"codes": codes_of},
            narrow(),
            "expected latents of (..., 8), as wide as the table, got (4, 8, 6, 5): say how they come from the "
            "forward's arguments, for channels at axis 1: latents=lambda x: x.movedim(1, -1)",
        ),
        (
            {"codes": codes_of},
            square(),
            "has 8 channels at axis 1 and by chance as many at the last: 100% of the codes are nearest to it "
            "with the channels at axis 1, ",
        ),
        (
            {"codes": codes_of, "latents": lambda x, mask: x[mask]},
            narrow(),
            "GenericVQ(latents=...) raised TypeError: ",
        ),
    ],
    ids=["index", "no tensor", "float", "offset", "few", "channels", "channels by chance", "arguments"],
)
def test_a_wrong_description_is_told_in_its_own_words_and_training_goes_on(
    options: dict[str, Any], x: Tensor, expected: str
) -> None:
    (reason,) = faults(GenericVQ(table="embedding.weight", **options), x)
    assert expected in reason
    assert reason.endswith("0 is no longer watched")


def test_a_call_that_assigns_no_codes_is_no_token_and_no_fault() -> None:
    described = GenericVQ(table="embedding.weight", codes=lambda output: None, latents=first)
    assert faults(described, narrow()) == []


@pytest.mark.parametrize("codes_dtype", [torch.int32, torch.int64])
def test_what_is_masked_is_not_counted(codes_dtype: torch.dtype) -> None:
    def unpadded(output: Any) -> Tensor:
        codes: Tensor = output[2][2].to(codes_dtype).reshape(4, 6, 5).clone()
        codes[:, -2:] = -1
        return codes

    model = taming.VectorQuantizer2(K, D, 0.25)
    described = GenericVQ(table="embedding.weight", codes=unpadded, latents=first)
    (view,) = discover(nn.ModuleDict({"vq": model}), {"vq": described}).views
    x = narrow()
    output = model(x)
    observation = view.readers["forward"]((x,), {}, output)
    assert observation is not None
    assert int((observation.codes >= 0).sum()) == 4 * 4 * 5
    kept = output[2][2].reshape(4, 6, 5)[:, :4].reshape(-1)
    assert torch.equal(observation.codes[observation.codes >= 0].long(), kept)


def described_dac(module: Any, **options: Any) -> GenericVQ:
    def projected(z: Tensor) -> Tensor:
        latents: Tensor = module.in_proj(z)
        return latents.movedim(1, -1)

    return GenericVQ(
        table="codebook.weight", codes=lambda output: output[3], latents=projected, metric="cosine", **options
    )


@pytest.mark.parametrize("decodes_raw", [True, False])
def test_rows_of_a_raw_decoder_keep_the_length_that_they_are_given(decodes_raw: bool) -> None:
    module: Any = build_quietly(lambda: dac.VectorQuantize(D, K, 4))()
    model = nn.ModuleDict({"vq": module})
    (view,) = discover(model, {"vq": described_dac(module, decodes_raw=decodes_raw)}).views
    (recognised,) = discover(model).views
    x = offset_data(4, D, 12, channel=1)
    output = module(x)
    mine, theirs = (each.readers["forward"]((x,), {}, output) for each in (view, recognised))
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine.codes, theirs.codes)
    assert mine.latents is not None
    assert theirs.latents is not None
    torch.testing.assert_close(mine.latents, theirs.latents)
    vectors = 7.0 * torch.nn.functional.normalize(torch.randn(3, 4))
    view.write_rows(torch.arange(3), vectors)
    lengths = view.codebook()[:3].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full((3,), 7.0 if decodes_raw else 1.0))


def test_decoding_raw_rows_says_nothing_where_the_metric_is_l2() -> None:
    described = GenericVQ(table="embedding.weight", codes=codes_of, decodes_raw=True)
    with pytest.raises(ValueError, match="decodes_raw is about metric 'cosine'"):
        discover(nn.Sequential(taming.VectorQuantizer2(K, D, 0.25)), {"0": described})
