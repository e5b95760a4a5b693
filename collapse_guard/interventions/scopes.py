"""Which parameters an intervention is about: those behind the quantizer's input, those below a module, a codebook's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from torch import nn
from torch.optim import LBFGS, Optimizer

from collapse_guard.optimizer import why_out_of_reach

from .base import Site

__all__ = ["encoder_of", "moved_by", "named", "names_of", "paths_of", "why_inseparable", "why_no_optimizer"]

_UNKNOWN = (
    "no parameter that trains was found behind the quantizer's input (nothing that feeds it trains, or activation "
    "checkpointing hides it)"
)


def why_no_optimizer(optimizers: Iterable[Optimizer]) -> str | None:
    """Say why nothing that optimizers do can be changed; `None` where it can."""
    optimizers = list(optimizers)
    if not optimizers:
        return "no optimizer is known to the guard: give it to `attach(model, optimizers)`"
    mute = dict.fromkeys(type(each).__name__ for each in optimizers if not hasattr(each, "_optimizer_step_pre_hooks"))
    if mute:
        return f"{', '.join(mute)} takes no hooks: give the optimizer inside of it to `attach`"
    return why_out_of_reach(optimizers)


def why_inseparable(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> str | None:
    """Say why parameters cannot be moved otherwise than the rest of their optimizer; `None` where they can."""
    chosen = {id(each) for each in parameters}
    for optimizer in optimizers:
        own = {id(each) for group in optimizer.param_groups for each in group["params"]}
        if isinstance(optimizer, LBFGS) and own & chosen and own - chosen:
            return "LBFGS moves all its parameters by one direction and one rate: give these an optimizer of their own"
    return None


def encoder_of(site: Site, module: str | None = None) -> list[nn.Parameter] | str:
    """Return the encoder's parameters that an optimizer moves, or why there are none.

    Args:
        site: where an intervention works.
        module: path in the model; where not given, what the quantizer's input was seen to depend on.
    """
    if (why := why_no_optimizer(site.optimizers)) is not None:
        return why
    if module is None:
        found = list(site.encoder())
        if not found:
            return f"{_UNKNOWN}; name the encoder: `module: <path in the model>`"
    else:
        if site.model is None:
            return "the model is not known here"
        try:
            found = list(site.model.get_submodule(module).parameters())
        except AttributeError:
            known = ", ".join(name for name, _ in site.model.named_children())
            return f"the model has no module {module!r}; it has: {known}"
        if not found:
            return f"{module} has no parameters"
    moved = moved_by(site.optimizers, found)
    return why_inseparable(site.optimizers, moved) or moved or "no known optimizer moves a parameter of the encoder"


def moved_by(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of the parameters that stand in a group of some optimizer."""
    held = {id(each) for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    return [each for each in parameters if id(each) in held]


def paths_of(model: nn.Module | None, parameters: Iterable[nn.Parameter]) -> list[str]:
    """Return the paths of the parameters in the model, by which `named` finds them in another process."""
    wanted = {id(each) for each in parameters}
    return [path for path, each in model.named_parameters() if id(each) in wanted] if model is not None else []


def named(model: nn.Module | None, paths: Iterable[str]) -> list[nn.Parameter]:
    """Return the parameters that stand at some paths; a path that the model does not have is left out."""
    known = dict(model.named_parameters()) if model is not None else {}
    return [known[path] for path in paths if path in known]


def names_of(model: nn.Module | None, parameters: Sequence[nn.Parameter]) -> str:
    """Say which parameters these are: the outermost modules that hold no others, and how many numbers.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> names_of(model, list(model[0].parameters()))
    '0 (2 tensors, 9 numbers)'
    >>> names_of(nn.Sequential(model), list(model[0].parameters()))
    '0.0 (2 tensors, 9 numbers)'
    """
    paths = [path.split(".") for path in paths_of(model, parameters)]
    owners = (path[:-1] for path in paths)
    shared = [names[0] for names in takewhile(lambda names: len({*names}) == 1, zip(*owners, strict=False))]
    inside = 0 if model is None else sum(True for _ in model.get_submodule(".".join(shared)).parameters())
    depth = len(shared) if inside > len(paths) else max(len(shared) - 1, 0)
    tops = dict.fromkeys(".".join(path[: depth + 1]) for path in paths)
    shown = ", ".join([*tops][:4]) + (", ..." if len(tops) > 4 else "")
    tensors = f"{len(parameters)} tensor{'s' if len(parameters) != 1 else ''}"
    return f"{shown or 'parameters'} ({tensors}, {sum(each.numel() for each in parameters)} numbers)"
