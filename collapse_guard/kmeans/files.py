"""The files of a tokenizer: `codebook.safetensors` holds the numbers, `tokenizer.json` says what they mean.

The description names the checksum of the numbers, so that files of two tokenizers are never taken for one. Each file
is written beside its place and moved there, the description last: a crash leaves the old tokenizer or the new one, or
a pair that is refused. Neither file can hold code.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from .index import ApproximateIndex, IndexSettings
from .search import METRICS
from .tokenizer import KMeansTokenizer

__all__ = ["DESCRIPTION", "FORMAT", "NUMBERS", "read_tokenizer", "write_tokenizer"]

FORMAT = 1
NUMBERS, DESCRIPTION = "codebook.safetensors", "tokenizer.json"


def write_tokenizer(tokenizer: KMeansTokenizer, directory: Path) -> Path:
    """Write a tokenizer into a directory, which is made where there is none; return the directory.

    Raises:
        OSError: it cannot be written there.
        TypeError: the provenance is nothing that JSON can hold.
    """
    from collapse_guard import __version__

    numbers = bytes_of({"codebook": tokenizer.codebook.detach().cpu().contiguous()})
    description: dict[str, Any] = {
        "format": FORMAT,
        "kind": "collapse_guard k-means tokenizer",
        "written_by": f"collapse_guard {__version__}",
        "K": tokenizer.K,
        "D": tokenizer.D,
        "metric": tokenizer.metric,
        "normalisation": "latents and codes to unit length, for the search" if tokenizer.metric == "cosine" else "none",
        "version": tokenizer.version,
        "index": None if tokenizer.index is None else asdict(tokenizer.index.settings),
        "provenance": tokenizer.provenance,
        "sha256": hashlib.sha256(numbers).hexdigest(),
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    _put(directory / NUMBERS, numbers)
    _put(directory / DESCRIPTION, text.encode())
    return directory


def read_tokenizer(directory: Path) -> KMeansTokenizer:
    """Read a tokenizer.

    Raises:
        ValueError: there is none, or its files are damaged or do not belong together.
    """
    try:
        text, numbers = (directory / DESCRIPTION).read_bytes(), (directory / NUMBERS).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{directory}: expected a directory with {DESCRIPTION} and {NUMBERS}, as KMeansTokenizer.save writes it, "
            f"got: {error.strerror}: {error.filename}"
        ) from error
    try:
        description = json.loads(text)
        known = description["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{directory / DESCRIPTION}: is no description of a tokenizer: {error}") from error
    if known != FORMAT:
        raise ValueError(
            f"{directory / DESCRIPTION}: expected format {FORMAT}, got {known!r}: another collapse_guard wrote it"
        )
    if hashlib.sha256(numbers).hexdigest() != description.get("sha256"):
        raise ValueError(
            f"{directory}: {NUMBERS} is not the file that {DESCRIPTION} describes: one of them was replaced, or a "
            "write was cut off; save the tokenizer again"
        )
    try:
        return _made(directory / DESCRIPTION, description, tensors_of(numbers)["codebook"])
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{directory}: these are not the files of a tokenizer, although they belong together: "
            f"{type(error).__name__}: {error}"
        ) from error


def _made(where: Path, description: dict[str, Any], codebook: torch.Tensor) -> KMeansTokenizer:
    stated = tuple(description.get(key) for key in ("K", "D"))
    if stated != tuple(codebook.shape) or description.get("metric") not in METRICS:
        raise ValueError(
            f"{where}: expected K, D and metric of a {tuple(codebook.shape)} codebook, got K, D = {stated} and metric "
            f"{description.get('metric')!r}"
        )
    tokenizer = KMeansTokenizer(
        codebook,
        metric=description["metric"],
        version=int(description["version"]),
        provenance=description["provenance"],
    )
    if description.get("index") is not None:
        settings = IndexSettings(**description["index"])
        if settings.cells > tokenizer.K:
            raise ValueError(f"{where}: expected an index of at most {tokenizer.K} cells, got {settings.cells}")
        tokenizer.use_index(ApproximateIndex(tokenizer.codebook, tokenizer.metric, settings))
    return tokenizer


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
