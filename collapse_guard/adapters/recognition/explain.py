"""Reading a trial: which table was searched, by which metric, from which latents, and where the output shows it.

Only what an independent search confirms is an explanation: codes that equal the nearest rows of the table, quantised
vectors that equal the rows of these codes, and both again after the rows were rolled. All else is a doubt, which says
how far a module came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from collapse_guard.adapters.base import Metric
from collapse_guard.adapters.nested import flatten_tensors

from .permutation import rolls_with_rows
from .structure import Structure, Table
from .trace import Comparison
from .twins import Bench, Trial, shapes_of

__all__ = ["Doubt", "Explanation", "Findings", "Layout", "explain_trials", "find_codes", "nearest", "read_codes"]

_RUNS_IN_VAIN = 2
_COMPARED_ROWS = 64  # of a table, to see which tensor was used


class Doubt(Enum):
    """Why a table was not confirmed, in the order in which a trial may come to it."""

    NOT_COMPARED = "no trial forward on random latents ran and compared one of its tables with them"
    TABLE_TRANSFORMED = "its table is transformed before the comparison, by more than L2 normalisation"
    OTHER_LATENTS = "what it compares with its table is neither its input nor its L2-normalised input"
    INNER_PRODUCT = "it picks rows by the largest inner product, as a classifier's head does, and not the nearest ones"
    NO_CODES = "its forward returns no codes (indices or one-hot) that equal the nearest codes"
    PROJECTED = (
        "what it compares with its table is neither its input nor its L2-normalised input: it is computed inside, "
        "where no hook sees it"
    )
    NO_VECTORS = (
        "it returns the nearest codes and no quantised vectors: it may as well be a classifier or a retrieval, whose "
        "rows must not be moved"
    )
    NOT_ROLLED = "its codes do not follow when the rows of its table are rolled, or its quantised vectors move"


@dataclass(frozen=True, slots=True)
class Layout:
    """How an input becomes (n, D) latents.

    Attributes:
        D: their width.
        channel_first_ndims: numbers of axes with which an input has D as its second axis, not its last.
        normalise: whether they are L2-normalised.
    """

    D: int
    channel_first_ndims: frozenset[int]
    normalise: bool

    def latents(self, given: Tensor) -> Tensor:
        """Return the latents of an input, detached."""
        first = given.ndim in self.channel_first_ndims or given.shape[-1] != self.D
        rows = (given.movedim(1, -1) if first and given.ndim > 2 else given).detach().reshape(-1, self.D)
        return functional.normalize(rows, dim=-1) if self.normalise else rows


@dataclass(frozen=True, slots=True)
class Explanation:
    """What trials turned out to be.

    Attributes:
        table: that was searched.
        metric: by which.
        decodes: whether quantised vectors are rows as they are stored, or L2-normalised ones.
        layout: how inputs become latents.
        codes_index: which of the output's tensors holds the codes in evaluation.
        shapes: of the inputs that it was confirmed on.
    """

    table: Table
    metric: Metric
    decodes: Literal["raw", "unit"]
    layout: Layout
    codes_index: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the trials of one entry came to.

    Attributes:
        explanation: of the table that was confirmed, if one was.
        doubt: how far it came otherwise.
        table: the table that came so far; `None` where none was compared.
        looked_up: names of stored tensors that were searched and of which rows were then looked up.
    """

    explanation: Explanation | None
    doubt: Doubt
    table: Table | None
    looked_up: frozenset[str]


def explain_trials(bench: Bench, structure: Structure, entry: str) -> Findings:
    """Try inputs of the usual layouts and widths; the first table that is confirmed wins."""
    doubts: dict[Doubt, Table | None] = {Doubt.NOT_COMPARED: None}
    looked_up: set[str] = set()
    for width in structure.widths:
        found: Explanation | None = None
        in_vain_count = 0
        for shape in shapes_of(width):
            scouted = bench.scout(entry, shape)
            if scouted is None:
                continue
            looked_up |= scouted.looked_up
            tables = [found.table] if found is not None else structure.tables
            tables = [table for table in tables if _may_be(table, scouted, width)]
            in_vain_count += not tables
            if in_vain_count == _RUNS_IN_VAIN and found is None:
                break  # what shows no codes in two layouts shows none in a third
            trial = bench.run(entry, shape) if tables else None
            for table in tables if trial is not None else ():
                assert trial is not None
                result = _explain(bench, entry, trial, table, width, is_first=found is None)
                if isinstance(result, Explanation):
                    found = result if found is None else _joined(found, result)
                    break
                doubts.setdefault(result, None if result is Doubt.NOT_COMPARED else table)
        if found is not None:
            return Findings(found, Doubt.NOT_COMPARED, found.table, frozenset(looked_up))
    furthest = max(doubts, key=list(Doubt).index)
    return Findings(None, furthest, doubts[furthest], frozenset(looked_up))


def _may_be(table: Table, trial: Trial, width: int) -> bool:
    """Whether an output holds anything that may be codes of this table, or its rows were looked up."""
    n = trial.given.numel() // width
    return table.name in trial.looked_up or any(
        read_codes(tensor, n, table.K) is not None and (not tensor.is_floating_point() or _is_one_hot(tensor))
        for tensor in flatten_tensors(trial.output)
    )


def _joined(first: Explanation, other: Explanation) -> Explanation:
    """Return one explanation for the shapes of two."""
    ndims = first.layout.channel_first_ndims | other.layout.channel_first_ndims
    return replace(
        first, layout=replace(first.layout, channel_first_ndims=ndims), shapes=(*first.shapes, *other.shapes)
    )


def _explain(
    bench: Bench, entry: str, trial: Trial, table: Table, width: int, *, is_first: bool
) -> Explanation | Doubt:
    """Read what a table met in one trial; of several doubts the one that came furthest. Rows are rolled once."""
    doubts = {Doubt.NOT_COMPARED}
    for comparison in trial.comparisons:
        if comparison.source != table.name:
            continue
        result = _read(comparison, trial, table, width)
        if isinstance(result, Explanation):
            if not is_first or rolls_with_rows(bench, entry, trial, table, _numbers(trial, result)):
                return result
            result = Doubt.NOT_ROLLED
        doubts.add(result)
    return max(doubts, key=list(Doubt).index)


def _read(comparison: Comparison, trial: Trial, table: Table, width: int) -> Explanation | Doubt:
    """Read one comparison, or say why it is not the search of a quantizer."""
    used = [rows[:_COMPARED_ROWS] for rows in _as_rows(comparison.table, table.K, table.D)]
    # A codebook that starts from its first latents does so before it searches, in evaluation too.
    for raw in (table.rows(trial.before[table.name]), table.rows(trial.after.get(table.name, comparison.table))):
        some = raw[:_COMPARED_ROWS]
        if any(_same_up_to_scale(some, each) for each in used):
            return _match(comparison, trial, table, width, raw, "l2")
        if any(_same_up_to_scale(functional.normalize(some, dim=-1), each) for each in used):
            return _match(comparison, trial, table, width, raw, "cosine")
    return Doubt.TABLE_TRANSFORMED


def _match(
    comparison: Comparison, trial: Trial, table: Table, width: int, raw: Tensor, metric: Metric
) -> Explanation | Doubt:
    """Say what the other operand was, and whether the output agrees."""
    rows = raw if metric == "l2" else functional.normalize(raw, dim=-1)
    others = _as_rows(comparison.other, trial.given.numel() // width, table.D)
    for layout in _layouts(trial.given, table.D) if width == table.D else ():
        latents = layout.latents(trial.given)
        if not any(_same_up_to_scale(latents, other) for other in others):
            continue
        codes = nearest(latents, rows)
        index = find_codes(trial.output, codes, table.K)
        if index is None:
            by_product = find_codes(trial.output, (latents @ rows.t()).argmax(-1), table.K)
            return Doubt.NO_CODES if by_product is None else Doubt.INNER_PRODUCT
        shapes = (tuple(trial.given.shape),)
        if _find_vectors(trial.output, raw[codes]) is not None:
            return Explanation(table, metric, "raw", layout, index, shapes)
        if _find_vectors(trial.output, functional.normalize(raw[codes], dim=-1)) is not None:
            return Explanation(table, metric, "unit", layout, index, shapes)
        return Doubt.NO_VECTORS
    scales = (1.0, 0.5, -0.5)
    searches = (nearest(other * scale, rows) for other in others for scale in scales)
    return (
        Doubt.PROJECTED
        if any(find_codes(trial.output, c, table.K) is not None for c in searches)
        else (Doubt.OTHER_LATENTS)
    )


def nearest(latents: Tensor, rows: Tensor) -> Tensor:
    """Return the nearest row of each of a few random latents: a search of its own, to compare with the module's."""
    return (rows.square().sum(-1) / 2 - latents.to(rows) @ rows.t()).argmin(-1)


def _numbers(trial: Trial, explanation: Explanation) -> tuple[int, int]:
    """Return which of the output's tensors hold the codes and the quantised vectors."""
    raw = explanation.table.rows(trial.before[explanation.table.name])
    tensors = list(flatten_tensors(trial.output))
    K = explanation.table.K
    codes = read_codes(tensors[explanation.codes_index], trial.given.numel() // explanation.table.D, K)
    assert codes is not None
    rows = raw[codes] if explanation.decodes == "raw" else functional.normalize(raw[codes], dim=-1)
    vectors = _find_vectors(trial.output, rows)
    return explanation.codes_index, -1 if vectors is None else vectors


def _layouts(given: Tensor, D: int) -> Iterator[Layout]:
    """Yield the ways in which this input may have become latents."""
    for normalise in (False, True):
        if given.shape[-1] == D:
            yield Layout(D, frozenset(), normalise)
        if given.ndim > 2 and given.shape[1] == D:
            yield Layout(D, frozenset({given.ndim}), normalise)


def _as_rows(tensor: Tensor, rows: int, D: int) -> list[Tensor]:
    """Return the readings of a tensor as (rows, D): as it lies, and transposed; none where the size is another."""
    if tensor.numel() != rows * D:
        return []
    options = [tensor.reshape(rows, D)] if tensor.shape[-1] == D else []
    squeezed = tensor.squeeze()
    return [*options, squeezed.t()] if squeezed.shape == (D, rows) else options


def _same_up_to_scale(latents: Tensor, other: Tensor) -> bool:
    """Whether two (n, D) operands are equal up to the factors that expanded squares put in front."""
    if latents.shape != other.shape:
        return False
    return any(torch.allclose(latents * factor, other, rtol=1e-4, atol=1e-5) for factor in (1.0, 2.0, -2.0))


def find_codes(output: Any, codes: Tensor, K: int) -> int | None:
    """Return the position, among the output's tensors, of the one that holds these codes."""
    for index, tensor in enumerate(flatten_tensors(output)):
        read = read_codes(tensor, codes.numel(), K)
        one_hot = not tensor.is_floating_point() or _is_one_hot(tensor)
        if read is not None and one_hot and bool((read == codes).float().mean() >= 0.99):
            return index
    return None


def read_codes(tensor: Tensor, n: int, K: int) -> Tensor | None:
    """Return (n,) codes from indices or from a one-hot tensor; `None` where the tensor is neither by its size."""
    if not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() == n:
        return tensor.detach().reshape(-1).long()
    if tensor.numel() == n * K and tensor.ndim and tensor.shape[-1] == K:
        return tensor.detach().reshape(n, K).argmax(-1)
    return None


def _is_one_hot(tensor: Tensor) -> bool:
    """Whether each row is one 1 among zeros, up to what a straight-through estimator leaves."""
    rows = tensor.detach().reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.detach().reshape(1, 1)
    top, rest = rows.amax(-1), rows.abs().sum(-1)
    return torch.allclose(top, torch.ones_like(top), atol=1e-4) and torch.allclose(rest, top, atol=1e-3)


def _find_vectors(output: Any, rows: Tensor) -> int | None:
    """Return the position of the output's tensor that holds these (n, D) rows, channel last or first."""
    n, D = rows.shape
    for index, tensor in enumerate(flatten_tensors(output)):
        if not tensor.is_floating_point() or tensor.numel() != n * D or tensor.ndim < 2:
            continue
        options = [tensor] if tensor.shape[-1] == D else []
        options += [tensor.movedim(1, -1)] if tensor.ndim > 2 and tensor.shape[1] == D else []
        if any(torch.allclose(each.detach().reshape(n, D), rows, rtol=1e-3, atol=1e-4) for each in options):
            return index
    return None
