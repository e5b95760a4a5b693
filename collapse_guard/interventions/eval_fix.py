"""`eval_fix`: evaluation assigns codes as training does, by what removes the difference that was found.

The quantizer may assign as in training for the length of each forward in evaluation, after which everything that it
wrote is put back; running statistics of batch normalisation may be recomputed from kept inputs before each evaluation;
dropout before the quantizer may be switched off in training. Nothing is done about data that differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from collapse_guard.adapters.recognition import CannotTryError
from collapse_guard.adapters.refs import Knob
from collapse_guard.evaluation.state import tensors_of
from collapse_guard.policies import LEADING, Cause, Diagnosis, EvalFix

from .base import Intervention, Site
from .evaluation_holds import AssignmentHold, StatisticsHold
from .holds import Hold
from .parts import CodebookPart, HoldPart, InterventionError, KnobPart, Part, TensorsPart
from .placement import why_nowhere
from .reset_codes import place_all

__all__ = ["EvalFixIntervention"]

_METHODS = {
    Cause.EVAL_UPDATE: "assignment",
    Cause.EVAL_START: "assignment",
    Cause.EVAL_SAMPLING: "assignment",
    Cause.EVAL_PATH: "assignment",
    Cause.EVAL_AVERAGED_WEIGHTS: "assignment",
    Cause.EVAL_BATCH_NORM: "statistics",
    Cause.EVAL_DROPOUT: "dropout",
}
_AS_TRAINING = (Cause.EVAL_START, Cause.EVAL_SAMPLING, Cause.EVAL_PATH)
"""Causes for which the quantizer runs in training mode; for the others it is enough to put back what it wrote."""


class EvalFixIntervention(Intervention[EvalFix]):
    """Right when training is healthy and evaluation is not. Ends with the guard: it is no part of a checkpoint."""

    touches = frozenset({"evaluation"})
    stays = True

    def __init__(self, params: EvalFix, site: Site) -> None:
        """Choose what to do by the cause that was found; on resume that is told later."""
        super().__init__(params, site)
        self._method: str = params.method
        self._trains, self._why = params.method == "assignment", ""
        self._quantizer: nn.Module | None = None
        self._holds: dict[str, Hold] = {}
        if site.evaluations is not None and site.model is not None:
            evaluations, name = site.evaluations, site.view.name
            self._quantizer = site.model.get_submodule(evaluations.quantizer_of(name))
            seed = site.seed
            self._holds["assignment"] = AssignmentHold(self._quantizer, name, evaluations, lambda: self._trains, seed)
            self._holds["statistics"] = StatisticsHold(site.model, name, evaluations)
            if params.method == "auto":
                self._choose(evaluations.causes(name))
        self._note_touched()

    def _choose(self, causes: Sequence[Diagnosis]) -> None:
        if not causes or causes[0].confidence < LEADING:
            self._why = "no cause was found that it could remove: as far as seen, both modes assign alike"
            return
        first = causes[0]
        method = _METHODS.get(first.cause) if first.remedy else None
        if method is None:
            advice = f"{first.advice[:1].upper()}{first.advice[1:]}"
            self._why = f"it removes no {first.cause.value}: {first.says}. {advice}"
        else:
            self._method, self._trains = method, first.cause in _AS_TRAINING

    def _note_touched(self) -> None:
        if self._method == "dropout":  # this method alone permutes ids
            self.touches = frozenset({"evaluation", "codebook"})  # type: ignore[misc]

    def refusal(self) -> str | None:
        """Refuse where no evaluation was compared with training, or where another cause was found."""
        evaluations, view = self.site.evaluations, self.site.view
        if (reason := super().refusal()) is not None:
            return reason
        if evaluations is None or self._quantizer is None:
            return "no evaluation is known to this guard: run it within guard.evaluate()"
        if self._method == "auto":
            return self._why
        if self._method == "assignment" and "forward" not in view.readers:
            return (
                f"its codes are assigned in {', '.join(view.readers)}(), which is called past every hook on its forward"
            )
        if self._method == "statistics" and not self._found("batch_norm"):
            return f"no batch normalisation that trains {self._where()}"
        return self._why_not_dropout() if self._method == "dropout" else None

    def _why_not_dropout(self) -> str | None:
        """Say why dropout cannot be switched off, which takes codes placed anew with it."""
        if not self._found("dropout"):
            return f"no dropout that is on {self._where()}"
        if (why := self.site.view.why_not("reset")) is not None:
            return f"without dropout its codes must be placed anew, and it {why}"
        latents = self._latents()
        return "the quantizer does not show its latents" if latents is None else why_nowhere(self.site.view, latents)

    def _where(self) -> str:
        comparison = self.site.evaluations.comparison(self.site.view.name) if self.site.evaluations else None
        if comparison is None or comparison.sees_before:
            return "runs before the quantizer"
        return "was seen before the quantizer, whose own input alone was: hand the batches in by guard.offer(batch)"

    def _latents(self) -> Tensor | None:
        comparison = self.site.evaluations.comparison(self.site.view.name) if self.site.evaluations else None
        return comparison.latents if comparison is not None else None

    def _found(self, group: str) -> Sequence[str]:
        comparison = self.site.evaluations.comparison(self.site.view.name) if self.site.evaluations else None
        return comparison.modules.get(group, ()) if comparison is not None else ()

    def parts(self) -> list[Part]:
        """Return what the chosen method may change; what any may, where that is not known yet."""
        model, quantizer, view = self.site.model, self._quantizer, self.site.view
        if model is None or quantizer is None:
            return []
        parts: list[Part] = []
        if self._method in ("assignment", "auto"):
            # What an evaluation wrote into the codebook of a run that goes on is not put there again.
            parts.append(TensorsPart("quantizer", lambda: dict(tensors_of(quantizer)), is_undone=False))
            parts.append(HoldPart(self._holds["assignment"]))
        if self._method in ("statistics", "auto"):
            parts.append(TensorsPart("running_statistics", lambda: _statistics_of(model)))
            parts.append(HoldPart(self._holds["statistics"]))
        if self._method in ("dropout", "auto"):
            parts += [_DropoutPart(f"{path}.p", Knob(module, "p")) for path, module in _dropouts_of(model)]
            parts.append(CodebookPart(view, self.site.optimizers))
        return parts

    def holds(self) -> Sequence[Hold]:
        """Return the hooks of both methods that keep some."""
        return tuple(self._holds.values())

    def apply(self) -> str:
        """Do what was chosen."""
        evaluations, name = self.site.evaluations, self.site.view.name
        assert evaluations is not None
        if self._method == "statistics":
            return self._recompute()
        if self._method == "dropout":
            return self._switch_off()
        self._holds["assignment"].install()
        done = "in evaluation its quantizer runs in training mode" if self._trains else "its quantizer evaluates"
        state = evaluations.as_trained(name)
        back = ""
        if state is not None and any(float(moved) > 0 for moved in state.changed().values()):
            state.restore()
            back = "; what the last evaluation wrote was put back"
        return f"{done} with the codebook that training left, and what it writes does not last{back}"

    def _recompute(self) -> str:
        hold = self._holds["statistics"]
        assert isinstance(hold, StatisticsHold)
        try:
            layers = hold.recompute()
        except CannotTryError as error:
            raise InterventionError(f"running statistics could not be recomputed: {error}") from error
        hold.install()
        which = ", ".join(layers)
        return f"running statistics of {which} recomputed from inputs of training; before each evaluation anew"

    def _switch_off(self) -> str:
        model = self.site.model
        assert model is not None
        told = []
        for path in self._found("dropout"):
            knob = Knob(model.get_submodule(path), "p")
            told.append(f"{path} {knob.get():g} -> 0")
            knob.set(0.0)
        latents = self._latents()
        assert latents is not None
        place_all(self.site, latents, 0.5)
        placed = f"all codes placed on {len(latents)} latents without it"
        return f"dropout before the quantizer switched off in training, too ({', '.join(told)}), and {placed}"

    def tend(self, steps: int) -> str | None:
        """Do nothing but be asked: a hook that has failed in evaluation is told at the next step."""
        return None

    def in_words(self) -> str:
        """Say what an evaluation after the end of the guard will show."""
        if self._method == "dropout":
            return "dropout before the quantizer is off"
        return "evaluation was made to assign as training does, by hooks that end with the guard: repair the model"

    def state_dict(self) -> dict[str, Any]:
        """Return which method is in force."""
        return {"method": self._method, "trains": self._trains}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take hold again."""
        self._method, self._trains = str(state["method"]), bool(state["trains"])
        self._note_touched()
        if self._method in self._holds:
            self._holds[self._method].install()


class _DropoutPart(KnobPart):
    """The probability of a dropout, which nobody sets on resume unless it was changed."""

    def standing(self) -> Any:
        """Return the probability in force, if it is not the owner's own."""
        return self._knob.get() if self.changes() else None


def _statistics_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": buffer
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }


def _dropouts_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, each) for path, each in model.named_modules() if isinstance(each, nn.modules.dropout._DropoutNd)]
