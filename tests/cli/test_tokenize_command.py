"""`collapse-guard tokenize`: a file of latents in, a file of ids out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from collapse_guard.cli.tokenize import tokenize
from collapse_guard.kmeans import KMeansTokenizer
from tests.cli.test_cli import run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    KMeansTokenizer(torch.randn(7, 3)).save(tmp_path / "tokenizer")
    np.save(tmp_path / "latents.npy", torch.randn(4, 5, 3).numpy())
    return tmp_path


def test_the_ids_are_those_of_the_tokenizer_in_the_shape_of_the_latents(place: Path) -> None:
    done = run("tokenize", "tokenizer", "latents.npy", "--batch", "6", cwd=place)
    assert done.returncode == 0, done.stderr
    ids = np.load(place / "latents.ids.npy")
    expected = KMeansTokenizer.load(place / "tokenizer").encode(torch.from_numpy(np.load(place / "latents.npy")))
    assert (ids == expected.numpy()).all()
    assert done.stdout.startswith("latents.ids.npy: 20 ids of ")
    assert "by codebook version 1 (l2, exact search)" in done.stdout


def test_safetensors_are_read_by_name_and_written(place: Path) -> None:
    latents = torch.randn(9, 3, dtype=torch.bfloat16)
    save_file({"z": latents, "other": torch.zeros(2)}, place / "latents.safetensors")
    unnamed = run("tokenize", "tokenizer", "latents.safetensors", cwd=place)
    assert unnamed.returncode == 2
    assert unnamed.stderr.splitlines() == ["latents.safetensors: name the tensor by --key; it has: other, z."]
    done = run("tokenize", "tokenizer", "latents.safetensors", "--key", "z", "-o", "ids.safetensors", cwd=place)
    assert done.returncode == 0, done.stderr
    expected = KMeansTokenizer.load(place / "tokenizer").encode(latents.float())
    assert torch.equal(load_file(place / "ids.safetensors")["ids"], expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent", "latents.npy"), "expected a directory with tokenizer.json"),
        (("tokenizer", "absent.npy"), "absent.npy: cannot be read"),
        (
            ("tokenizer", "wide.npy"),
            "expected floating point of shape (..., 3), as tokenizer was fitted to, got float64 of (2, 4)",
        ),
        (("tokenizer", "whole.npy"), "got int64 of (2, 3)"),
        (("tokenizer", "nan.npy"), "rows 0 to 1: latents: 1 of 2 have NaN or Inf"),
        (("tokenizer", "torn.npy"), "torn.npy: cannot be read"),
        (("tokenizer", "objects.npy"), "objects.npy: cannot be read"),
        (("tokenizer", "latents.csv"), "expected latents in a file that ends in .npy or .safetensors"),
        (
            ("tokenizer", "latents.npy", "-o", "ids.txt"),
            "expected a file that ends in .npy or .safetensors, got '.txt'",
        ),
        (("tokenizer", "latents.npy", "-o", "nowhere/ids.npy"), "cannot be written"),
        (("tokenizer", "latents.npy", "-o", "nowhere/ids.safetensors"), "cannot be written"),
        (("tokenizer", "latents.npy", "-o", "./latents.npy"), "the ids would take the place of the latents"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(place: Path, arguments: tuple[str, ...], said: str) -> None:
    np.save(place / "wide.npy", np.zeros((2, 4)))
    np.save(place / "whole.npy", np.zeros((2, 3), dtype=np.int64))
    np.save(place / "nan.npy", np.array([[0, 0, 0], [0, np.nan, 0]], dtype=np.float32))
    np.save(place / "objects.npy", np.array([print, 2, 3], dtype=object), allow_pickle=True)
    (place / "torn.npy").write_bytes((place / "latents.npy").read_bytes()[:70])
    done = run("tokenize", *arguments, cwd=place)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(place.glob("*.ids.npy"))


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", "f2", "longdouble"])
def test_latents_of_any_floating_point_type_and_byte_order_are_read(place: Path, dtype: str) -> None:
    latents = np.load(place / "latents.npy").astype(np.float16)
    np.save(place / "other.npy", latents.astype(dtype))
    tokenize(place / "tokenizer", place / "other.npy", None, None, False, 7)
    expected = KMeansTokenizer.load(place / "tokenizer").encode(torch.from_numpy(latents))
    assert (np.load(place / "other.ids.npy") == expected.numpy()).all()
