"""`substitute`: finite scalar quantization between two learned projections stands in for the quantizer.

FSQ (Mentzer et al. 2024) has no codebook that could collapse: each of a few dimensions is rounded to a few levels. The
quantizer's forward still runs, with its updates kept out, and what it returns is replaced. Its own table holds the
vectors that FSQ's codes stand for, kept up to date, so that what decodes ids, a checkpoint, and a run without the guard
find the same vectors there.

The projections are parameters that no checkpoint of the model holds, since it would load nowhere else: the guard's
state carries them, and the optimizer's state dict is written without them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import LBFGS

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import Substitute

from .base import Intervention, Site
from .fsq import Layout, StandIn, find_layout, levels_for, make_fsq, table_of
from .holds import Hold
from .placement import why_nowhere
from .scopes import why_no_optimizer

__all__ = ["SubstituteIntervention"]

_ABSENT = "vector-quantize-pytorch is not installed: `pip install vector-quantize-pytorch`"


class SubstituteIntervention(Intervention[Substitute]):
    """Right when this quantizer does not work on these latents, whatever is done to its codebook."""

    touches = frozenset({"codebook", "quantizer"})
    needs = ("reset", "freeze", "fallback")
    stays = True

    def __init__(self, params: Substitute, site: Site) -> None:
        """Store the parts; nothing is made before `apply`."""
        super().__init__(params, site)
        self._stand_in: StandIn | None = None

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse without the package, and a codebook that cannot hold FSQ's vectors."""
        if (why := super().why_unsupported(view)) is not None:
            return why
        if importlib.util.find_spec("vector_quantize_pytorch") is None:
            return _ABSENT
        return None if view.metric == "l2" else "it searches by angle: its table cannot hold vectors of other lengths"

    def refusal(self) -> str | None:
        """Refuse where new parameters cannot be trained, or where the quantizer's output is not understood."""
        site = self.site
        if (why := super().refusal()) is not None:
            return why
        if (ranks := self.site.ranks) > 1:
            return f"{ranks} ranks train together: gradients of parameters that came later would not be averaged"
        if (why := why_no_optimizer(site.optimizers)) is not None:
            return why
        if any(isinstance(each, LBFGS) for each in site.optimizers):
            return "LBFGS takes no parameters that come later"
        if site.view.is_frozen:
            return "the quantizer's own updates are kept out already"
        levels, layout = self._levels(), self._layout()
        if isinstance(levels, str):
            return levels
        return layout if isinstance(layout, str) else why_nowhere(site.view, site.window.sample())

    def _levels(self) -> tuple[int, ...] | str:
        return levels_for(self.site.view.K, self.site.view.D, self.params.levels)

    def _layout(self) -> Layout | str:
        if self.site.model is None:
            return "the model is not known here"
        return find_layout(self.site.model, self.site.view)

    def _made(self) -> StandIn | None:
        """Return the stand-in, made at the first call; `None` where it cannot be."""
        if self._stand_in is None:
            levels, layout = self._levels(), self._layout()
            if not isinstance(levels, str) and not isinstance(layout, str) and self.site.optimizers:
                latents = self.site.window.sample()
                latents = latents if len(latents) > 1 else self.site.view.codebook().float()
                fsq = make_fsq(levels, self.site.view, latents, seed=self.site.seed)
                moves = {id(each) for each in self.site.encoder()}
                held = [
                    each
                    for each in self.site.optimizers
                    if any(id(parameter) in moves for group in each.param_groups for parameter in group["params"])
                ]
                self._stand_in = StandIn(layout, fsq, (held or list(self.site.optimizers))[0])
        return self._stand_in

    def holds(self) -> tuple[Hold, ...]:
        """Return the replaced forward."""
        made = self._stand_in
        return () if made is None else (made,)

    def parts(self) -> list[Any]:
        """Return the codebook and the replaced forward."""
        if self.why_unsupported(self.site.view) is None:
            self._made()
        return super().parts()

    def apply(self) -> str:
        """Write FSQ's vectors into the table, freeze it, replace the forward, let the optimizer train the rest."""
        view, made = self.site.view, self._made()
        assert made is not None
        view.take_over()
        self._write()
        view.freeze()
        made.install()
        levels = "x".join(map(str, made.levels))
        return f"FSQ of {levels} levels stands in; its projections ({made.size} numbers) joined the optimizer"

    def _write(self) -> None:
        view = self.site.view
        assert self._stand_in is not None
        counts = None if view.ema_count is None else torch.ones(view.K)
        view.write_rows(torch.arange(view.K), table_of(self._stand_in.fsq), counts)

    def tend(self, steps: int) -> str | None:
        """Keep the table at what FSQ's codes stand for."""
        self._write()
        return None

    def in_words(self) -> str:
        """Say what stands in."""
        return (
            "FSQ with learned projections stands in for the quantizer, whose table holds FSQ's vectors; without the "
            "guard it searches them by distance, and its own update is back"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return projections and their optimizer state."""
        assert self._stand_in is not None
        optimizers = list(map(id, self.site.optimizers))
        return {**self._stand_in.state_dict(), "optimizer": optimizers.index(id(self._stand_in.optimizer))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand in again."""
        made = self._made()
        if made is None or made.levels != list(state["levels"]):
            raise ValueError(f"the quantizer of {self.site.view.name} has changed: FSQ cannot stand in for it again")
        made.optimizer = self.site.optimizers[int(state["optimizer"])]
        self.site.view.freeze()
        super().load_state_dict(state)
        made.load_state_dict(state)
