"""`freeze_encoder`: the optimizers do not move what feeds the quantizer, for a while.

Gradients are computed as ever, so that nothing changes for wrappers that count on them (DistributedDataParallel); for
the length of each step the encoder's are hidden, so that neither momentum nor weight decay moves it. Buffers, such as
the running statistics of a BatchNorm, go on as the model moves them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.policies import FreezeEncoder

from .base import Site
from .holds import StepHold
from .lasting import Lasting
from .scopes import encoder_of, named, names_of, paths_of

__all__ = ["FreezeEncoderIntervention"]


class FreezeEncoderIntervention(Lasting[FreezeEncoder]):
    """Right when the encoder runs away from a codebook that is sound, above all at the start of a run."""

    touches = frozenset({"encoder"})

    def __init__(self, params: FreezeEncoder, site: Site) -> None:
        """Make the hooks; none is in before `apply`."""
        super().__init__(params, site)
        found = encoder_of(site, params.module)
        self._why = found if isinstance(found, str) else None
        self._frozen: list[nn.Parameter] = [] if isinstance(found, str) else found
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._hold = StepHold(
            "freeze_encoder", site.optimizers, before=self._hide, after=self._show, needs_gradients=True
        )

    def refusal(self) -> str | None:
        """Refuse where no encoder can be told."""
        return super().refusal() or self._why

    def in_words(self) -> str:
        """Say what stays as it is."""
        return f"the optimizers do not move {names_of(self.site.model, self._frozen)}"

    def state_dict(self) -> dict[str, list[str]]:
        """Return the names of what is frozen: a resumed run has seen no forward yet."""
        return {"frozen": paths_of(self.site.model, self._frozen)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:  # type: ignore[override]
        """Freeze the same parameters again."""
        self._frozen = named(self.site.model, state["frozen"])
        super().load_state_dict(state)

    def _hide(self, optimizer: Optimizer) -> None:
        for parameter in self._frozen:
            if parameter.grad is not None:
                self._hidden.append((parameter, parameter.grad))
                parameter.grad = None

    def _show(self, optimizer: Optimizer) -> None:
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self._hidden = []
