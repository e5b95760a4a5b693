"""Which codebooks are levels of one residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ, VectorQuantize

from collapse_guard import GenericVQ
from collapse_guard.adapters import discover
from tests.quantizers import Learnable, Plain


class ResidualQuantizer(nn.Module):
    """Home-made, with quantizers that are recognised by their structure."""

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Plain() for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        left, total = x, torch.zeros_like(x)
        for quantizer in self.quantizers:
            quantized = quantizer(left)[0]
            left, total = left - quantized.detach(), total + quantized
        return total


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantizer = ResidualQuantizer()


class ProductQuantizer(nn.Module):
    """Each quantizer codes a part of the input of its own: none leaves anything over for another."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Plain() for _ in range(3))


class ResidualBlocks(nn.Module):
    """Residual connections in the network are no residual of a quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"conv": nn.Linear(8, 8), "vq": Plain()}) for _ in range(2))


def places(model: nn.Module, **options: Any) -> dict[str, tuple[str | None, int | None]]:
    return {view.name: (view.group, view.level) for view in discover(model, **options).views}


def test_the_levels_of_a_residual_are_a_group_with_the_path_of_their_list() -> None:
    assert places(nn.Sequential(ResidualVQ(dim=8, num_quantizers=3, codebook_size=16))) == {
        f"0.layers.{level}": ("0.layers", level) for level in range(3)
    }


def test_a_home_made_residual_is_known_by_the_name_of_its_class() -> None:
    assert places(Codec()) == {f"quantizer.quantizers.{level}": ("quantizer.quantizers", level) for level in range(3)}


def test_the_name_of_the_list_may_say_that_what_is_residual_quantizes() -> None:
    class ResidualStack(ResidualBlocks):
        def __init__(self) -> None:
            super().__init__()
            del self.blocks
            self.codebooks = nn.ModuleList(Plain() for _ in range(2))

    assert places(ResidualStack()) == {f"codebooks.{level}": ("codebooks", level) for level in range(2)}


def test_each_part_of_a_grouped_residual_is_a_group_of_its_own() -> None:
    model = GroupedResidualVQ(dim=16, groups=2, num_quantizers=2, codebook_size=16)
    assert places(model) == {
        f"rvqs.{part}.layers.{level}": (f"rvqs.{part}.layers", level) for part in range(2) for level in range(2)
    }


def test_heads_are_no_levels() -> None:
    heads = VectorQuantize(dim=16, codebook_size=16, heads=2, separate_codebook_per_head=True)
    assert set(places(heads).values()) == {(None, None)}


@pytest.mark.parametrize("model", [ProductQuantizer, ResidualBlocks, lambda: ResidualQuantizer(1)])
def test_what_only_looks_like_levels_is_no_group(model: Any) -> None:
    assert set(places(model()).values()) == {(None, None)}


def test_a_description_says_which_level_it_is_where_names_do_not() -> None:
    model = nn.ModuleList(Learnable() for _ in range(2))
    described = {
        str(level): GenericVQ(
            table="embedding.weight", codes=lambda output: output[2], group="mine", level=level, commitment="beta"
        )
        for level in range(2)
    }
    assert places(model, explicit=described) == {"0": ("mine", 0), "1": ("mine", 1)}


@pytest.mark.parametrize("place", [{"group": "mine"}, {"level": 0}, {"group": "mine", "level": -1}])
def test_a_group_without_a_level_is_refused(place: Any) -> None:
    described = GenericVQ(table="embedding.weight", codes=lambda output: output[2], **place)
    with pytest.raises(ValueError, match="expected group and level, from 0, of a residual, or neither"):
        discover(nn.ModuleList([Learnable()]), {"0": described})
