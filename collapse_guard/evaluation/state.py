"""The whole state of a module: tensors and plain numbers, saved and put back bit-equal and in place.

Evaluation may run code that writes: moving averages, flags of initialisation, step counters. What a module and its
children hold can be saved before and put back after, whoever wrote it and under whatever name.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["ModuleState"]

_PLAIN = (bool, int, float, str, type(None))


class ModuleState:
    """What a module held at one time.

    Args:
        module: of which all parameters, buffers and plain attributes are saved, its children's too; `training` and the
            attributes that torch keeps for itself are not.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module) -> None:
        """Save it; tensors are copied on their device."""
        self._module = module
        self._tensors = {place: (tensor, tensor.detach().clone()) for place, tensor in tensors_of(module)}
        self._plain = [(part, dict(_plain_attributes(part))) for part in module.modules()]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The saved tensors by dotted name."""
        return {name: saved for name, (_, saved) in self._tensors.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, past the version counters: graphs that saved a tensor find in it what they saw."""
        for name, (tensor, saved) in self._tensors.items():
            path, _, attribute = name.rpartition(".")
            owner = self._module.get_submodule(path)
            tensor.data.copy_(saved)
            for table in (owner._parameters, owner._buffers):
                if attribute in table:
                    table[attribute] = tensor  # type: ignore[assignment]
        self.restore_attributes()

    def restore_attributes(self) -> None:
        """Put plain attributes back, and take away those that have come since."""
        for part, before in self._plain:
            for name in [name for name, _ in _plain_attributes(part) if name not in before]:
                part.__dict__.pop(name)
            for name, value in before.items():
                part.__dict__[name] = value

    @torch.no_grad()
    def copy_to(self, other: nn.Module) -> None:
        """Write what was saved into a copy of the module, where names and shapes are the same."""
        for name, tensor in tensors_of(other):
            saved = self._tensors.get(name, (None, None))[1]
            if saved is not None and saved.shape == tensor.shape:
                tensor.data.copy_(saved)
        for (_, attributes), part in zip(self._plain, other.modules(), strict=True):
            part.__dict__.update(attributes)

    @torch.no_grad()
    def changed(self) -> dict[str, Tensor]:
        """Return, by name, how far each floating tensor has moved: norm of the change over its norm, one element each.

        Asks the device nothing. A tensor that is gone, or of another shape, is left out.
        """
        moved = {}
        for name, tensor in tensors_of(self._module):
            saved = self._tensors.get(name, (None, None))[1]
            if saved is not None and saved.shape == tensor.shape and saved.is_floating_point():
                size = saved.float().norm().clamp(min=1e-12)
                moved[name] = (tensor.detach().to(saved) - saved).float().norm() / size
        return moved


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, tensor) of all parameters and buffers, also those that no checkpoint holds."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _plain_attributes(part: nn.Module) -> Iterator[tuple[str, object]]:
    for name, value in list(part.__dict__.items()):
        if name != "training" and not name.startswith("_") and isinstance(value, _PLAIN):
            yield name, value
