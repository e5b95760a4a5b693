"""Finding the codebooks of a model: explicit descriptions first, then the registered adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from .base import K_OF_ONE, CodebookView, Unrecognised
from .explicit import GenericVQ
from .families.factorised import weigh_by_configuration
from .levels import assign_levels
from .registry import adapters

__all__ = ["Discovery", "NoQuantizerError", "discover", "survey"]


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
    found = survey(model, explicit)
    if not found.views:
        raise NoQuantizerError(_explain_nothing(model, found.unrecognised))
    return found


def survey(model: nn.Module, explicit: Mapping[str, GenericVQ] | None = None) -> Discovery:
    """Find every codebook of a model; `discover` that is content with none.

    Raises:
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
        if any(path == outer or path.startswith(f"{outer}.") or not outer for outer in taken):
            continue
        found = _match(path or "model", module)
        if found:
            taken.append(path)
        for item in found if path else [_below_the_top(each, modules) for each in found]:
            if isinstance(item, Unrecognised):
                unrecognised.append(item)
            elif item.K < 2:
                unrecognised.append(Unrecognised(item.name, K_OF_ONE))
            elif all(item.table != known.table for known in views):
                views.append(item)  # a codebook that several levels share is one codebook, called several times
    assign_levels(model, views)
    weigh_by_configuration(model, views)
    return Discovery(tuple(views), tuple(unrecognised))


def _below_the_top(item: CodebookView | Unrecognised, modules: Mapping[str, nn.Module]) -> CodebookView | Unrecognised:
    """Name what lies below a top module that an adapter took as a whole by its path, as anything else."""
    path = item.name.removeprefix("model.")
    if path == item.name or path not in modules:
        return item
    if isinstance(item, Unrecognised):
        return replace(item, name=path)
    return replace(item, name=path, group=item.group and item.group.removeprefix("model."))


def _match(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised]:
    """Ask the adapters about one module."""
    for adapter in adapters():
        try:
            found = adapter.match(name, module)
        except Exception as error:  # a quantizer that an adapter cannot read is reported, the model is not to blame
            reason = f"adapter {adapter.name!r} raised {type(error).__name__}: {error}"
            return (Unrecognised(name, reason),)
        if found is not None:
            return found
    return ()


def _explain_nothing(model: nn.Module, unrecognised: Sequence[Unrecognised]) -> str:
    lines = [f"found no quantizer to guard in {type(model).__name__}."]
    if unrecognised:
        lines.append("These modules look like one but could not be confirmed:")
        lines += [f"  - {candidate.name}: {candidate.reason}" for candidate in unrecognised]
    lines.append("Recognised by themselves:")
    lines += [f"  - {adapter.name}: {adapter.covers}" for adapter in adapters()]
    lines.append(
        "For any other, describe it: "
        "adapters={'path.to.quantizer': GenericVQ(table='embedding.weight', codes=lambda output: output[1])}"
    )
    return "\n".join(lines)
