"""TensorBoard event files: the scalars in them, as rows of a table.

Reads what `torch.utils.tensorboard`, Lightning's `TensorBoardLogger` and TensorFlow write, with the package
`tensorboard`, which is optional and imported only here, when it is needed. Images, histograms and all else that is no
scalar are passed over. A file that is torn, as a killed run leaves it, or damaged gives what is whole in it, and a
note.

The frame of a record (TFRecord): its length in 8 bytes, a checksum of these, the record, a checksum of it; all
little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Scalars", "event_files", "folders_with_event_files", "scalars_in"]

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_LARGE = 2**16  # bytes; a scalar takes less than a hundred, and the checksum is slow
_STEP = "step"

Series = dict[str, dict[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """What a run wrote.

    Attributes:
        tags: names of the scalars, in the order in which they first appear.
        rows: one mapping a step, with the step under `step` and each scalar of that step under its tag.
        notes: what could not be read, or was decided on the way, in whole sentences.
    """

    tags: tuple[str, ...]
    rows: tuple[dict[str, float | None], ...]
    notes: tuple[str, ...]


def event_files(path: Path) -> list[Path]:
    """Return the event files at a path, a file or a directory, in the order in which they were begun."""
    files = [path] if path.is_file() else [each for each in path.iterdir() if each.is_file()]
    return sorted((each for each in files if "tfevents" in each.name), key=_begun)


def folders_with_event_files(path: Path) -> list[Path]:
    """Return the directories below a directory that hold event files, sorted."""
    return sorted({each.parent for each in path.rglob("*tfevents*") if each.is_file()})


def scalars_in(files: list[Path]) -> Scalars:
    """Read the scalars of event files that belong together, and merge them by step.

    A run that was resumed goes on in another file, from its checkpoint. What the file before it says of the steps from
    there on is left out, tag by tag: the run itself has forgotten it.

    Raises:
        ValueError: if the package `tensorboard` is not installed.
    """
    merged: Series = {}
    notes: list[str] = []
    dropped = 0
    for path in files:
        for tag, points in _scalars_of(path, notes).items():
            before = merged.setdefault(tag, {})
            late = [step for step in before if step >= min(points)]
            dropped += len(late)
            for step in late:
                del before[step]
            before |= points
    if dropped:
        notes.append(
            f"Later event files go back to steps that earlier ones hold: {dropped} earlier values are left out."
        )
    merged.pop(_STEP, None)  # a tag of that name is not what counts the steps
    steps = sorted({step for points in merged.values() for step in points})
    rows = tuple(_row(step, merged) for step in steps)
    return Scalars(tags=tuple(merged), rows=rows, notes=tuple(notes))


def _row(step: int, merged: Series) -> dict[str, float | None]:
    return {_STEP: float(step), **{tag: points.get(step) for tag, points in merged.items()}}


def _scalars_of(path: Path, notes: list[str]) -> Series:
    """Return the scalars of one file by tag and step; of a step written twice the last value."""
    event_type, checksum = _tensorboard()
    found: Series = {}
    damaged = 0
    with path.open("rb") as file:
        for record in _records(path, file, checksum, notes):
            try:
                if record is None:
                    raise ValueError("a checksum that does not fit")
                event = event_type.FromString(record)
            except Exception:  # protobuf's own error has no public name that all its versions share
                damaged += 1
                continue
            for value in event.summary.value:
                if (number := _number(value)) is not None:
                    found.setdefault(value.tag, {})[event.step] = number
    if damaged:
        plural = "s that are" if damaged > 1 else " that is"
        notes.append(f"{path}: {damaged} record{plural} damaged; skipped.")
    return found


def _records(path: Path, file: BinaryIO, checksum: Any, notes: list[str]) -> Iterator[bytes | None]:
    """Yield the records of a file, `None` for a damaged one; stop where the frame itself is torn."""
    while header := file.read(_HEADER.size):
        place = file.tell() - len(header)
        whole = len(header) == _HEADER.size
        length, length_checksum = _HEADER.unpack(header) if whole else (0, 0)
        if whole and checksum(header[:8]) != length_checksum:
            notes.append(f"{path}: damaged from byte {place} on; what comes after that cannot be read.")
            return
        record = file.read(length)
        tail = file.read(_CHECKSUM.size)
        if not whole or len(tail) < _CHECKSUM.size:
            notes.append(f"{path}: torn at byte {place}, in the middle of a record; what comes before it is read.")
            return
        is_whole = length > _LARGE or checksum(record) == _CHECKSUM.unpack(tail)[0]
        yield record if is_whole else None


def _number(value: Any) -> float | None:
    """Return the number of a summary value, in either of the forms that writers use; `None` where it holds another."""
    if value.WhichOneof("value") == "simple_value":
        return float(value.simple_value)
    if value.WhichOneof("value") != "tensor" or value.tensor.tensor_shape.dim:
        return None
    from tensorboard.util import tensor_util

    array = tensor_util.make_ndarray(value.tensor)
    return float(array) if array.dtype.kind in "fiub" else None


def _tensorboard() -> tuple[Any, Any]:
    """Return what reads an event, and what computes a checksum.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        events = import_module("tensorboard.compat.proto.event_pb2")  # made by protobuf, so its names are not declared
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    except ImportError:
        raise ValueError(
            "expected the package `tensorboard`, which reads its event files; it is not installed. "
            "Run `pip install tensorboard`."
        ) from None
    return events.Event, masked_crc32c


def _begun(path: Path) -> tuple[int, str]:
    """Return when a file was begun, which stands in its name: `events.out.tfevents.<seconds>.<host>...`."""
    seconds = path.name.partition("tfevents.")[2].partition(".")[0]
    return int(seconds) if seconds.isascii() and seconds.isdigit() else 0, path.name
