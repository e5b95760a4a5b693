"""Finding the codebooks of a model: explicit descriptions first, then structures that are known, then trials.

Structures are looked for from the outside inwards, since a known quantizer accounts for all that is below it; trials go
from the inside outwards, since whoever owns a quantizer acts much like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from .base import K_OF_ONE, SHARDED_MAKER, CodebookView, Unrecognised
from .explicit import GenericVQ
from .families.factorised import weigh_by_configuration
from .levels import assign_levels
from .refs import TensorRef
from .registry import Adapter, adapters

__all__ = ["Discovery", "NoQuantizerError", "discover", "survey"]

_FROZEN = "its table is frozen (requires_grad is False), and is only watched: attach the guard once the table trains"


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
        raise NoQuantizerError(_explain_nothing(model, found.unrecognised) + _explain_sharded(model))
    return found


def _explain_sharded(model: nn.Module) -> str:
    """Say what keeps quantizers from being recognised in a model of which every rank holds a part only."""
    if not any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        return ""
    return (
        "\nParameters of this model are sharded over the ranks (DTensor), and such a table cannot be tried. Leave the "
        "quantizer out of it: fully_shard(model, ignored_params=set(quantizer.parameters()))"
    )


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
    told = [adapter for adapter in adapters() if not adapter.innermost]
    tried = [adapter for adapter in adapters() if adapter.innermost]
    outermost = [(path, module, told) for path, module in modules.items()]
    innermost = [(path, module, tried) for path, module in reversed(modules.items())]
    for path, module, asked in (*outermost, *innermost):
        if any(path == outer or path.startswith(f"{outer}.") or not outer for outer in taken):
            continue
        found = _match(path or "model", module, asked)
        if found and asked is told:
            taken.append(path)
        for item in found if path else [_below_the_top(each, modules) for each in found]:
            if isinstance(item, Unrecognised):
                unrecognised.append(item)
            elif item.is_sharded and not isinstance(item.table, TensorRef):  # nobody can say what it is
                unrecognised.append(Unrecognised(item.name, SHARDED_MAKER))
            elif item.K < 2:
                unrecognised.append(Unrecognised(item.name, K_OF_ONE))
            elif all(item.table != known.table for known in views):
                # a codebook that several levels share is one codebook, called several times
                views.append(_watch_only(item) if _is_frozen(item) else item)
    candidates = list(_worth_saying(model, views, unrecognised))
    order = {path or "model": index for index, path in enumerate(modules)}
    views.sort(key=lambda view: _place(order, view.name))
    candidates.sort(key=lambda item: _place(order, item.name))
    assign_levels(model, views)
    weigh_by_configuration(model, views)
    return Discovery(tuple(views), tuple(candidates))


def _is_frozen(view: CodebookView) -> bool:
    """Whether the table is a parameter that its owner keeps from training, and no averages move it either."""
    whole = view.table.whole() if isinstance(view.table, TensorRef) else None
    return isinstance(whole, nn.Parameter) and not whole.requires_grad and view.ema_sum is None


def _watch_only(view: CodebookView) -> CodebookView:
    """Refuse what would move the rows of a codebook that is meant to stay."""
    return replace(view, lacks=dict.fromkeys(("reset", "fallback"), _FROZEN) | dict(view.lacks))


def _below_the_top(item: CodebookView | Unrecognised, modules: Mapping[str, nn.Module]) -> CodebookView | Unrecognised:
    """Name what lies below a top module that an adapter took as a whole by its path, as anything else."""
    path = item.name.removeprefix("model.")
    if path == item.name or path not in modules:
        return item
    if isinstance(item, Unrecognised):
        return replace(item, name=path)
    return replace(item, name=path, group=item.group and item.group.removeprefix("model."))


def _place(order: Mapping[str, int], name: str) -> int:
    """Return where a module stands in its model; the name of a view may end in the number of a head."""
    while name and name not in order:
        name = name.rpartition(".")[0]
    return order.get(name, 0)


def _worth_saying(
    model: nn.Module, views: Sequence[CodebookView], unrecognised: Sequence[Unrecognised]
) -> Iterator[Unrecognised]:
    """Leave out what is said of a table that is watched, or that was said of a module further in."""
    said = {id(ref.whole()) for view in views for ref in view.refs().values()}
    for item in unrecognised:
        tensor = _tensor(model, item) if item.table else None
        if tensor is None or id(tensor) not in said:
            yield item
            said |= set() if tensor is None else {id(tensor)}


def _tensor(model: nn.Module, item: Unrecognised) -> object:
    path, _, attribute = item.table.rpartition(".")
    try:
        owner = model.get_submodule("" if item.name == "model" else item.name)
        return getattr(owner.get_submodule(path), attribute, None)
    except AttributeError:
        return None


def _match(name: str, module: nn.Module, asked: Sequence[Adapter]) -> Sequence[CodebookView | Unrecognised]:
    """Ask some adapters about one module."""
    for adapter in asked:
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
        for candidate in unrecognised:
            lines.append(f"  - {candidate.name}: {candidate.reason}")
            lines += [f"    {candidate.advice}"] if candidate.advice else []
    lines.append("Recognised by themselves:")
    lines += [f"  - {adapter.name}: {adapter.covers}" for adapter in adapters()]
    lines.append(
        "For any other, describe it: "
        "adapters={'path.to.quantizer': GenericVQ(table='embedding.weight', codes=lambda output: output[1])}"
    )
    return "\n".join(lines)
