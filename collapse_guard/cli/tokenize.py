"""`collapse-guard tokenize`: from a file of latents to a file of ids by a saved tokenizer, without any training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import complain, say

__all__ = ["tokenize"]

_SUFFIXES = (".npy", ".safetensors")


def tokenize(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help="Directory that KMeansTokenizer.save wrote.")],
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A .npy or .safetensors file of (..., D) latents.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where ids go, .npy or .safetensors; LATENTS.ids.npy if not given."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which tensor of a .safetensors file holds the latents.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Search exactly, even if there is an approximate index.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Latents encoded at once.")] = 65_536,
) -> None:
    """Encode a file of latents: each becomes the id of its nearest code.

    The ids have the shape of the latents without the last axis. Files that do not fit, and latents with NaN or Inf, are
    refused before anything is written.
    """
    import numpy as np
    import torch

    from collapse_guard.kmeans import KMeansTokenizer

    target = output if output is not None else latents.with_suffix(".ids.npy")
    if target.resolve() == latents.resolve():
        complain(f"{target}: the ids would take the place of the latents; name another file by --output.")
    if target.suffix not in _SUFFIXES:
        complain(
            f"{target}: expected a file that ends in {' or '.join(_SUFFIXES)}, got {target.suffix or 'no suffix'!r}."
        )
    try:
        loaded = KMeansTokenizer.load(tokenizer)
    except ValueError as error:
        complain(str(error))
    values = _latents(latents, key)
    if values.ndim < 1 or values.shape[-1] != loaded.D or values.dtype.kind != "f":
        complain(
            f"{latents}: expected floating point of shape (..., {loaded.D}), as {tokenizer} was fitted to, "
            f"got {values.dtype} of {tuple(values.shape)}."
        )
    rows = values.reshape(-1, loaded.D)
    ids = np.empty(len(rows), dtype=np.int64)
    for part in _parts(len(rows), batch):
        try:
            batched = torch.from_numpy(_native(rows[part]))
            found = loaded.encode(batched, search="exact" if exact else "auto")
        except ValueError as error:
            complain(f"{latents}: rows {part.start} to {min(part.stop, len(rows)) - 1}: {error}.")
        ids[part] = found.numpy()
    _write(target, ids.reshape(values.shape[:-1]))
    used = f"{len(ids)} ids of {len(np.unique(ids))} of {loaded.K} codes"
    say(f"{target}: {used}, by codebook version {loaded.version} ({loaded.metric}, {_how(loaded, exact)})")


def _how(tokenizer: Any, exact: bool) -> str:
    if exact or tokenizer.index is None:
        return "exact search"
    settings = tokenizer.index.settings
    return f"approximate search, recall {settings.recall:.4f} on {settings.tried} latents"


def _latents(path: Path, key: str | None) -> Any:
    """Return the array in a file, mapped rather than read where the format allows."""
    import numpy as np

    if path.suffix not in _SUFFIXES:
        complain(f"{path}: expected latents in a file that ends in {' or '.join(_SUFFIXES)}.")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            name = names[0] if key is None and len(names) == 1 else key
            tensor = file.get_tensor(name) if name in names else None
    except Exception as error:  # what a damaged file makes the readers raise is not one kind
        complain(f"{path}: cannot be read: {type(error).__name__}: {error}.")
    if tensor is None:
        wanted = "name the tensor by --key" if key is None else f"there is no tensor {key!r}"
        complain(f"{path}: {wanted}; it has: {', '.join(names) or 'none'}.")
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _native(rows: Any) -> Any:
    """Return a copy of floating point rows in a type that torch knows: of this machine's byte order, at most float64.

    What is infinite in that type is refused with the rest.
    """
    import numpy as np

    wide = rows.dtype.itemsize > np.dtype(np.float64).itemsize
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float64 if wide else rows.dtype.newbyteorder("="))


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _write(path: Path, ids: Any) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        if path.suffix == ".npy":
            import numpy as np

            np.save(path, ids)
        else:
            save_file({"ids": torch.from_numpy(ids)}, path)
    except (OSError, SafetensorError) as error:
        complain(f"{path}: cannot be written: {error}.")
