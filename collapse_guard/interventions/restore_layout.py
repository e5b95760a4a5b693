"""`restore_layout`: the quantizer is given its latents position by position, as a permutation would have brought them.

Where (B, D, T) features were reshaped to (B, T, D), each latent is a run of positions, which no codebook serves well.
From then on they are rearranged before the quantizer, and what it returns is put back where the rest of the model
expects it. The codes were fitted to the mix: they are placed anew as soon as some of the rearranged latents were seen.

It lasts until the guard goes. Without it the model mixes again, and its codes do not fit that: only the owner can
write the permutation, and with it the codebook is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from collapse_guard.adapters import CodebookView
from collapse_guard.mix import Mix
from collapse_guard.policies import RestoreLayout

from .base import Site
from .fsq import find_layout
from .layout_hold import LayoutHold
from .parts import CodebookPart, LayoutPart, Part
from .placed_anew import PlacedAnew
from .reset_codes import write_drawn, write_kmeans

__all__ = ["RestoreLayoutIntervention"]

_LOOK_EVERY = 20


class RestoreLayoutIntervention(PlacedAnew[RestoreLayout]):
    """Right when positions are taken for features."""

    touches = frozenset({"codebook", "layout"})

    def __init__(self, params: RestoreLayout, site: Site) -> None:
        """Make the hooks; none is in before `apply`."""
        super().__init__(params, site)
        self._is_placed = False
        self._hold: LayoutHold | None = None
        try:
            if site.model is not None:
                self._hold = LayoutHold(site.model.get_submodule(site.view.name), site.view.D)
        except AttributeError:  # a head's: refused with its reason
            pass

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse what is no quantizer by itself, and one whose forward is not called."""
        if (why := super().why_unsupported(view)) is not None:
            return why
        if view.group is not None:
            return "it is a level of a residual: what it is given is what the coarser levels leave over"
        if "forward" not in view.readers:
            return f"its codes are assigned in {', '.join(view.readers)}(), which is called past every hook"
        return None

    def refusal(self) -> str | None:
        """Refuse where no mix was seen, where its samples are not told, and a quantizer that is not understood."""
        if (why := super().refusal()) is not None:
            return why
        mix, model = self.site.mix(), self.site.model
        if mix is None:
            return "its graph does not show that positions are taken for features"
        if not mix.is_told:
            return (
                "it is given vectors whose shape does not say which positions are of one sample: call it with "
                "(B, T, D), or write the permutation"
            )
        if not mix.is_alone:
            return "it is given more than latents, such as a mask, whose positions would have to be rearranged, too"
        if model is None:
            return "the model is not known here"
        layout = find_layout(model, self.site.view, least_ndim=3)
        if isinstance(layout, str):
            return layout
        if (other := _who_else_calls(self.site.view, model)) is not None:
            return f"{other} searches its codebook, too, with latents that would not be rearranged"
        assert self._hold is not None
        self._hold.mix, self._hold.is_last = mix, layout.is_last
        return "its latents are rearranged already" if self._is_held() else None

    def _is_held(self) -> bool:
        others = [each for each in self.site.standing() if isinstance(each, RestoreLayoutIntervention)]
        return any(hold.place == mine.place for each in others for hold in each.holds() for mine in self.holds())

    def holds(self) -> tuple[LayoutHold, ...]:
        """Return the hooks on the quantizer."""
        return () if self._hold is None else (self._hold,)

    def parts(self) -> list[Part]:
        """Return the codebook and the arrangement."""
        own = [LayoutPart(hold, self.site.window) for hold in self.holds()]
        return [CodebookPart(self.site.view, self.site.optimizers), *own]

    def apply(self) -> str:
        """Rearrange from the next forward on; the ring holds mixed latents, which are none any more."""
        assert self._hold is not None
        self._hold.install()
        self.site.window.forget()
        source = self.params.source
        return f"{self.in_words()}; codes are placed by {source} once {self._enough} of them were seen"

    def is_due(self, steps: int) -> bool:
        """Whether codes wait to be placed; now and then also whether a hook has failed."""
        return not self._is_placed or steps % _LOOK_EVERY == 0

    def tend(self, steps: int) -> str | None:
        """Place the codes once there are latents enough; after that there is nothing to do."""
        return None if self._is_placed else super().tend(steps)

    def place(self, latents: Tensor) -> str:
        """Place the codes where the rearranged latents are.

        Raises:
            RuntimeError: none was: the quantizer is not called as a module.
        """
        if self._hold is None or not self._hold.has_acted:
            raise RuntimeError(f"{self.site.view.name} is called past its hooks: nothing was rearranged")
        view, source, refill = self.site.view, self.params.source, self.params.refill
        ids = "token ids have another meaning from here on"
        if source == "kmeans":
            whole, _ = write_kmeans(self.site, latents, refill)
            self.facts = whole.facts
            ids = f"{self.facts['ids_changed']} of {self.facts['ids_compared']} ids changed"
        else:
            write_drawn(self.site, torch.arange(view.K), latents, source, refill)
        self._is_placed = True
        return f"{view.K} codes placed by {source} on {len(latents)} rearranged latents; {ids}"

    def release(self) -> None:
        """Leave the quantizer to its owner; what it is given from now on is mixed, and what was recorded is not."""
        super().release()
        self.site.window.forget()

    def in_words(self) -> str:
        """Say what stays, and what is to be written in its place."""
        return (
            "the quantizer is given its latents position by position; without the guard its input is mixed again, "
            "unless the reshape before it, and the one after it, become permutations"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what is taken back, and whether the codes were placed."""
        assert self._hold is not None
        return {"mix": asdict(self._hold.mix), "is_last": self._hold.is_last, "is_placed": self._is_placed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the same mix back again, before the first forward.

        Raises:
            ValueError: the model has no such quantizer any more.
        """
        if self._hold is None:
            raise ValueError(f"the model has no quantizer {self.site.view.name}: nothing can be rearranged there")
        self._hold.mix, self._hold.is_last = Mix(**state["mix"]), bool(state["is_last"])
        self._is_placed = bool(state["is_placed"])
        super().load_state_dict(state)


def _who_else_calls(view: CodebookView, model: nn.Module) -> str | None:
    """Return the path of a codebook's module outside of its quantizer; `None` where it has no other."""
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if module is view.module]
    own = view.name
    return next((path for path in paths if path != own and not path.startswith(f"{own}.")), None)
