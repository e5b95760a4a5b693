"""Finding the codebooks of a model: explicit descriptions first, then the known families, then structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from .base import CodebookView
from .explicit import GenericVQ
from .lucidrains import match_lucidrains
from .structure import K_OF_ONE, Unrecognised, match_structure

__all__ = ["Discovery", "NoQuantizerError", "discover"]


class NoQuantizerError(ValueError):
    """The model has no codebook that can be watched; a guard without one would be a silent no-op."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found: views to watch, and modules that look like quantizers but could not be confirmed."""

    views: tuple[CodebookView, ...]
    unrecognised: tuple[Unrecognised, ...]


def discover(model: nn.Module, explicit: Mapping[str, GenericVQ] | None = None) -> Discovery:
    """Find every codebook of a model.

    Args:
        model: the model that is trained.
        explicit: module path -> description; wins over recognition.

    Raises:
        NoQuantizerError: nothing was found; the message lists the candidates and what to do.
        ValueError: an explicit path or name that the model does not have.
    """
    explicit = dict(explicit or {})
    views: list[CodebookView] = []
    unrecognised: list[Unrecognised] = []
    taken: list[str] = []
    modules = dict(model.named_modules())
    if unknown := [path for path in explicit if path not in modules]:
        raise ValueError(f"adapters: the model has no module {unknown[0]!r}; modules: {', '.join(list(modules)[1:40])}")
    for path, description in explicit.items():
        views.append(description.view(path, modules[path]))
        taken.append(path)
    for path, module in modules.items():
        if any(path == outer or path.startswith(f"{outer}.") for outer in taken):
            continue
        found, rejected = _match(path or "model", module)
        if found or rejected:
            taken.append(path)
        # A codebook that several levels share is one codebook, called several times.
        views.extend(view for view in found if all(view.table != known.table for known in views))
        unrecognised.extend(rejected)
    if not views:
        raise NoQuantizerError(_explain_nothing(model, unrecognised))
    return Discovery(tuple(views), tuple(unrecognised))


def _match(name: str, module: nn.Module) -> tuple[list[CodebookView], list[Unrecognised]]:
    """Try the known families on one module."""
    known = match_lucidrains(name, module)
    if known is not None:
        single = [view for view in known if view.K < 2]
        return [view for view in known if view.K >= 2], [Unrecognised(view.name, K_OF_ONE) for view in single]
    match = match_structure(name, module)
    if isinstance(match, CodebookView):
        return [match], []
    return [], [match] if match is not None else []


def _explain_nothing(model: nn.Module, unrecognised: list[Unrecognised]) -> str:
    lines = [f"found no quantizer to guard in {type(model).__name__}."]
    if unrecognised:
        lines.append("These modules look like one but could not be confirmed:")
        lines += [f"  - {candidate.name}: {candidate.reason}" for candidate in unrecognised]
    lines.append(
        "Recognised by themselves: vector-quantize-pytorch's VectorQuantize, and home-made EMA quantizers with a "
        "(K, D) table, a (K, D) moving sum and a (K,) moving count whose forward returns its codes. For any other, "
        "describe it: "
        "adapters={'path.to.quantizer': GenericVQ(table='embedding.weight', codes=lambda output: output[1])}"
    )
    return "\n".join(lines)
