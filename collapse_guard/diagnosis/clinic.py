"""The clinic: keeps the memory of every codebook of a run, and says why when a rule is about to speak.

At a healthy reading it takes a mark, if the last one was some steps ago, and nothing else. What raises in here is told
once and switched off: a run goes on without knowing why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from collapse_guard.policies import Diagnosis, Reading

from .examiners import EXAMINERS, Examiner, diagnose
from .facts import Facts, gather
from .memory import Mark, Memory, mark_of

if TYPE_CHECKING:
    from collapse_guard.probe import Probe

__all__ = ["Clinic"]

Fault = Callable[[str, str], None]


class Clinic:
    """Diagnoses the codebooks of one run.

    Args:
        fault: where to say what went wrong: (where, reason).
        examiners: who looks for what.
    """

    def __init__(self, fault: Fault, examiners: Sequence[Examiner] = EXAMINERS) -> None:
        """Begin without any codebook."""
        self._fault = fault
        self._examiners = list(examiners)
        self._probes: Mapping[str, Probe] = {}
        self._paths: dict[int, str] = {}
        self._memories: dict[str, Memory] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._versions: dict[str, int] = {}  # of the codebooks, as last told

    def begin(self, probes: Mapping[str, Probe], model: nn.Module | None = None) -> None:
        """Take the first marks: codebooks as they are before the first step, if they have started by then.

        Args:
            probes: by codebook name.
            model: whose modules are named in lines of code.
        """
        self._probes, self._memories, self._counts = probes, {}, {}
        self._paths = {id(module): path for path, module in model.named_modules()} if model is not None else {}
        for name, probe in probes.items():
            self._memories[name] = Memory()
            try:
                if not probe.view.is_sharded and probe.view.is_initialised():
                    self._memories[name].add(mark_of(probe.view))
            except Exception as error:  # a codebook that cannot be read is told by its probe
                self._fail(name, error)

    def arm(self, step: int, *, is_suspect: bool) -> None:
        """Feel the gradients of the coming step, where a reading is due after it that is worth a mark.

        Args:
            step: the coming one. is_suspect: whether a rule is at work.
        """
        for name, probe in self._probes.items():
            if self._memories[name].is_due(step, is_suspect=is_suspect):
                probe.pulse.arm()

    def note(self, reading: Reading, counts: np.ndarray, *, is_suspect: bool, version: int = 0) -> None:
        """Remember a reading.

        Args:
            reading: just taken. counts: (K,) of its window.
            is_suspect: whether a rule was at work before it.
            version: how often the guard has written the codebook, or put it back.
        """
        name = reading.codebook
        self._counts[name], self._versions[name] = counts, version
        if self._memories[name].is_due(reading.step, is_suspect=is_suspect):
            self._mark(reading)

    def _mark(self, reading: Reading) -> None:
        name = reading.codebook
        probe, counts = self._probes[name], self._counts[name]
        if probe.view.is_sharded:  # no rank has the vectors that latents are compared with
            return
        try:
            beat = probe.pulse.take()
            mark = mark_of(probe.view, probe.window, reading, counts, beat=beat, version=self._versions[name])
            self._memories[name].add(mark)
        except Exception as error:
            self._fail(name, error)

    def explain(
        self, readings: Sequence[Reading], wanted: Callable[[Sequence[Reading]], frozenset[str]]
    ) -> list[Reading]:
        """Return readings of one step with their causes, where somebody wants to know them.

        Args:
            readings: of the levels of one residual, or of one codebook.
            wanted: returns the codebooks of which the causes are wanted, given the readings with what is known.
        """
        found = list(readings)
        for _ in readings:  # what is known of one level may let another speak
            asked = wanted(found)
            if not asked:
                break
            found = [self._explained(each, found) if each.codebook in asked else each for each in found]
        return found

    def _explained(self, reading: Reading, together: Sequence[Reading]) -> Reading:
        try:
            return replace(reading, causes=self._causes_of(reading, together))
        except Exception as error:
            self._fail(reading.codebook, error)
            return reading

    def _causes_of(self, reading: Reading, together: Sequence[Reading]) -> tuple[Diagnosis, ...]:
        marks = self._marks_of(reading)
        if not marks:
            return ()
        probe = self._probes[reading.codebook]
        levels = {each.level: each for each in together if each.level is not None}
        first = levels[min(levels)] if levels else reading
        is_finer = first.codebook != reading.codebook
        coarsest = self._marks_of(first) if is_finer else ()
        window = self._probes[first.codebook].window if is_finer else None
        counts = self._counts[reading.codebook]
        facts: Facts = gather(probe.view, probe.window, reading, counts, marks, levels, coarsest, window, self._paths)
        return diagnose(facts, self._examiners, self._dismiss)

    def _marks_of(self, reading: Reading) -> Sequence[Mark]:
        """Return the marks of a codebook, one of this reading included."""
        memory = self._memories[reading.codebook]
        if not memory.marks or memory.marks[-1].step != reading.step:
            self._mark(reading)
        return memory.marks

    def _dismiss(self, examiner: Examiner, error: Exception) -> None:
        """Ask an examiner that raised no more."""
        self._examiners.remove(examiner)
        what = ", ".join(cause.value for cause in examiner.causes)
        self._fault(
            "diagnosis", f"looking for {what} raised {type(error).__name__}: {error}; it is not looked for again"
        )

    def _fail(self, codebook: str, error: Exception) -> None:
        self._fault("diagnosis", f"of {codebook} raised {type(error).__name__}: {error}; its causes are not known")

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data and tensors."""
        counts = {name: values.tolist() for name, values in self._counts.items()}
        return {"memories": {name: each.state_dict() for name, each in self._memories.items()}, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; codebooks that the model no longer has are forgotten."""
        for name, marks in state.get("memories", {}).items():
            if name in self._probes:
                self._memories[name].load_state_dict(marks, self._probes[name].view.codebook().device)
        self._counts = {name: np.asarray(values, dtype=np.int64) for name, values in state.get("counts", {}).items()}
