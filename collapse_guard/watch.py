"""What a guard watches: one probe per codebook, the latest reading of each, and who has gone quiet.

It turns windows into readings when told to, over all ranks where several train together. It decides nothing and writes
nothing to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from collapse_guard.policies import Reading

from .adapters import CodebookView
from .execution import Capture, explain_compiled, has_compiled
from .measure import reading_of
from .probe import Probe
from .ranks import Alone, Part, PartedError, Purpose, Roll, Word, bring_together, call_roll, fingerprint, meet
from .sums import Sums, sum_up

__all__ = ["Watch"]

_QUIET_READINGS = 2
_UNSEEN = "no forward of its module in training mode has shown a code"
_UNSTARTED = "its codebook is not initialised yet: it awaits its weights, or the start that its quantizer makes"
_SILENT_STEPS = 2
_DRIFTS = (
    "its codebook is not the same on all ranks: each updates it from its own tokens alone. Let the quantizer add up "
    "its updates over the ranks (vector-quantize-pytorch: sync_codebook=True; where there is no such option, "
    "all-reduce counts and sums of its update). Until then what is measured of the codebook itself is the first rank's"
)

Fault = Callable[[str, str], None]
"""(where, reason): told once of each thing that went wrong."""


class Watch:
    """The probes of a run.

    Args:
        views: the codebooks.
        seed: of the probes' random streams, one after another; levels of one residual share one.
        fault: where to say what went wrong.
        compiled: paths of the parts of the model that are compiled.
        ranks: that train together, each with the same codebooks.

    Attributes:
        probes: by codebook name. readings, first: the latest and the first reading of each, by name.
        evaluated: the latest reading of each in evaluation, by name.
    """

    def __init__(
        self,
        views: Sequence[CodebookView],
        *,
        seed: int,
        fault: Fault,
        compiled: Sequence[str] = (),
        ranks: Alone | None = None,
    ) -> None:
        """Make the probes; nothing is hooked before `install`."""
        self._ranks = ranks if ranks is not None else Alone()
        self._failures: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._drifted: set[str] = set()
        self._fault = fault
        self._compiled = tuple(compiled)
        self._steps = 0
        self._captures: dict[str, Capture] = {}
        self._empty: dict[str, int] = {}
        self._marks: dict[str, int] = {}  # of each codebook at its latest reading
        self._is_started: dict[str, bool] = {}
        self.readings: dict[str, Reading] = {}
        self.first: dict[str, Reading] = {}
        self.evaluated: dict[str, Reading] = {}
        # Levels of one residual draw alike, so that their rings hold the same tokens.
        firsts: dict[str, int] = {}
        streams = [firsts.setdefault(view.group or view.name, index) for index, view in enumerate(views)]
        self.probes: dict[str, Probe] = {
            view.name: Probe(view, seed=seed + stream, on_error=self._failure_of(view))
            for view, stream in zip(views, streams, strict=True)
        }

    def install(self) -> None:
        """Begin to record.

        Raises:
            RuntimeError: another guard watches one of the quantizers.
        """
        for name, probe in self.probes.items():
            if Probe.is_on(probe.view.module):
                raise RuntimeError(f"{name} is watched by another guard already; close that one first")
        for probe in self.probes.values():
            probe.install()

    def release(self) -> None:
        """Stop recording and leave the quantizers to themselves again."""
        for probe in self.probes.values():
            probe.remove()
            probe.view.release()

    def rest(self, rests: bool) -> None:
        """Say whether the coming step is left out."""
        for probe in self.probes.values():
            probe.rests = rests

    def misses(self, step: int) -> bool:
        """Whether a codebook that is in use was not read at a step: one that is read, or was until lately."""
        return any(
            probe.is_recording
            and (name not in self.readings or self.readings[name].step != step)
            and self._empty.get(name, 0) < _QUIET_READINGS
            for name, probe in self.probes.items()
        )

    def notice_silence(self) -> None:
        """Told of each optimizer step: say early what graphs, compiled or captured, hide of a codebook."""
        self._steps += 1
        for name, probe in self.probes.items():
            if probe.capture is not None and probe.capture is not self._captures.get(name):
                self._captures[name] = probe.capture
                self._fault(name, probe.capture.value)
        if self._steps != _SILENT_STEPS:
            return
        silent = [name for name, probe in self.probes.items() if probe.is_recording and probe.window.tallies is None]
        if silent and (self._compiled or has_compiled()):
            what = f"{', '.join(silent)} showed no code in the first {_SILENT_STEPS} steps"
            self._fault("torch.compile", f"{what}. {explain_compiled(self._compiled)}")

    @property
    def seconds(self) -> float:
        """Time spent in hooks."""
        return sum(probe.seconds for probe in self.probes.values())

    def read(
        self,
        word: Word,
        *,
        dead_below: float,
        min_tokens: int,
        known: Callable[[str], Mapping[str, Any]] = lambda codebook: {},
    ) -> Iterator[tuple[Reading, np.ndarray]]:
        """Yield a reading and its (K,) counts for each codebook that showed tokens; begin new windows.

        A window with fewer than `min_tokens` tokens, too few for a verdict, goes on instead of beginning anew.

        Args:
            word: what this rank says of itself. dead_below: share of the uniform share under which a code is dead.
            min_tokens: fewest for a verdict.
            known: returns further fields of a codebook's reading, which are not measured.

        Raises:
            PartedError: the ranks cannot go on as one.
        """
        told = {name: self._tell(probe) for name, probe in self.probes.items()}
        roll = call_roll(self._ranks, word, told, self._views())
        if why := roll.why_parted():
            raise PartedError(why)
        self._drop_failed(roll)
        self._notice_differences(roll)
        for name, probe in self.probes.items():
            if not probe.is_recording:
                continue
            if self._began_unstarted(probe, word.step, all(part.is_started for part in roll.parts[name])):
                continue
            sums = roll.sums[name]
            if not sums.tokens:
                self._count_empty(name, word.step, _UNSEEN)
                continue
            self._empty[name] = 0
            reading, counts = reading_of(
                sums,
                probe.view,
                step=word.step,
                epoch=roll.epoch,
                loss=roll.loss,
                dead_below=dead_below,
                unmoved=self._compare(name, sums),
                reshaped=roll.reshaped(name),
                replacement_share=self._replacement_share(probe.view, sums.tokens, roll.calls(name)),
                **known(name),
            )
            if reading.tokens >= min_tokens:
                probe.window.restart()
            self.readings[name] = reading
            self.first.setdefault(name, reading)
            yield reading, counts

    def _replacement_share(self, view: CodebookView, tokens: int, calls: int) -> float | None:
        """Return the threshold of a quantizer's own replacement over the uniform share; asks no device."""
        if view.threshold is None or not calls:
            return None
        size = self._ranks.size if view.threshold.adds_ranks else 1
        return view.replacement_share(tokens * size / calls)

    def _compare(self, name: str, sums: Sums) -> int | None:
        """Return whether a codebook is the one of its reading before, 1 or 0; `None` where nobody can say."""
        if np.isnan(sums.table_norms.sum()):
            return None
        mark = crc32(sums.table_covariance.data, crc32(sums.table_norms.data))
        before = self._marks.get(name)
        self._marks[name] = mark
        return None if before is None else int(mark == before)

    def meet(self, word: Word) -> None:
        """Begin what all ranks do together other than a reading.

        Args:
            word: what this rank says of itself.

        Raises:
            PartedError: a rank has come for something else, or not at all.
        """
        if why := meet(self._ranks, word, self._views()).why_parted():
            raise PartedError(why)

    def farewell(self, step: int) -> bool:
        """Tell the other ranks that this one takes no reading any more; return whether none of them does."""
        words = meet(self._ranks, Word(step, purpose=Purpose.LEAVING), self._views()).words
        return all(word.purpose is Purpose.LEAVING for word in words)

    def _views(self) -> dict[str, CodebookView]:
        return {name: probe.view for name, probe in self.probes.items()}

    def _tell(self, probe: Probe) -> tuple[Part, Sums | None]:
        """Return what this rank says of one codebook; one that cannot be read must not keep the others from it."""
        if not probe.is_recording:
            return Part(has_failed=True), None
        size, view = self._ranks.size, probe.view
        try:
            if not (self._is_started.get(view.name) or view.is_initialised()):
                return Part(is_started=False), None
            has_changed = view.follow()
            mark = int(fingerprint(view.codebook())) if size > 1 and not view.is_sharded else 0
            calls = probe.window.calls if not view.is_captured else 0
            part = Part(is_frozen=view.is_frozen, fingerprint=mark, reshaped=probe.reshaped, calls=calls)
            # What a level's own output is given no gradient of, its residual as a whole may hand on all the same.
            task = probe.pulse.task if view.group is None else None
            sums = sum_up(probe.window, view, size=size, task=task)
            if has_changed:  # its counts are of the last steps, and most of them as it is now
                probe.window.forget()
            return part, sums
        except Exception as error:
            probe.remove()
            self._failure_of(view)(error)
            return Part(has_failed=True), None

    def _drop_failed(self, roll: Roll) -> None:
        """A codebook that one rank cannot read is not watched on any; every rank is told why."""
        if self._ranks.size == 1:
            return
        for name, parts in roll.parts.items():
            if name not in self._dropped and any(part.has_failed for part in parts):
                self._dropped.add(name)
                self.probes[name].remove()
                self._fault(name, self._ranks.word(self._failures.get(name, "")))

    def _notice_differences(self, roll: Roll) -> None:
        """Say once of each codebook that it is not the same on all ranks; what is frozen on some only is let go."""
        if self._ranks.size == 1:
            return
        for name, parts in roll.parts.items():
            if name in self._dropped or not all(part.is_started for part in parts):
                continue
            if name not in self._drifted and len({part.fingerprint for part in parts}) > 1:
                self._drifted.add(name)
                self._fault(name, _DRIFTS)
            frozen = [part.is_frozen for part in parts]
            if any(frozen) and not all(frozen):
                self.probes[name].view.unfreeze()
                self._fault(name, f"rank {frozen.index(False)} no longer holds its codebook, so no rank does")

    def _began_unstarted(self, probe: Probe, step: int, is_started: bool) -> bool:
        """Whether the window began before the codebook made its start; what it holds is forgotten then.

        A table of zeros gives every token the same code, which is no collapse. Once started, a codebook is not asked
        again: the answer waits for the device.
        """
        name = probe.view.name
        if self._is_started.get(name):
            return False
        was_asked = name in self._is_started
        self._is_started[name] = is_started
        if not is_started:
            self._count_empty(name, step, _UNSTARTED)
        elif not was_asked:
            return False
        probe.window.restart()
        probe.window.forget()
        return True

    def _count_empty(self, name: str, step: int, why: str) -> None:
        """Say so when nothing is seen for long: a codebook that is not measured is not guarded."""
        self._empty[name] = self._empty.get(name, 0) + 1
        if self._empty[name] == _QUIET_READINGS:
            self._fault(name, f"{why}, for {_QUIET_READINGS} readings, up to step {step}: it is not being measured")

    def _failure_of(self, view: CodebookView) -> Callable[[Exception], None]:
        def failed(error: Exception) -> None:
            why = f"its probe raised {type(error).__name__}: {error}; {view.name} is no longer watched"
            self._failures[view.name] = why
            if self._ranks.size == 1:  # else all ranks are told at the next reading
                self._fault(view.name, why)

        return failed

    def state_dict(self, *, together: bool = False) -> dict[str, Any]:
        """Return windows, first and latest readings, and what is known of each codebook, as plain data and tensors.

        Args:
            together: all ranks call it; the first one's state then holds the windows of all.

        Raises:
            PartedError, OtherRankError: the windows of the others could not be had.
        """

        def windows() -> dict[str, Any]:
            return {name: probe.window.state_dict() for name, probe in self.probes.items()}

        of_all = bring_together(self._ranks, windows) if together else []
        return {
            "rank": self._ranks.index,
            "windows": of_all[0] if of_all else windows(),
            "elsewhere": of_all[1:],
            "first": {name: reading.as_dict() for name, reading in self.first.items()},
            "readings": {name: reading.as_dict() for name, reading in self.readings.items()},
            "started": dict(self._is_started),
            "empty": dict(self._empty),
            "marks": dict(self._marks),
            "mixes": {name: probe.look_state() for name, probe in self.probes.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; a window that does not fit is told and left out."""
        self.first = {name: Reading.from_dict(record) for name, record in state["first"].items()}
        self.readings = {name: Reading.from_dict(record) for name, record in state.get("readings", {}).items()}
        self._is_started = {name: bool(started) for name, started in state.get("started", {}).items()}
        self._empty = {name: int(count) for name, count in state.get("empty", {}).items()}
        self._marks = {name: int(mark) for name, mark in state.get("marks", {}).items()}
        for name, seen in state.get("mixes", {}).items():
            if name in self.probes:
                self.probes[name].load_look_state(seen)
        for name, window in self._windows_of_mine(state).items():
            try:
                probe = self.probes[name]
                probe.window.load_state_dict(window, probe.view.codebook().device)
            except (KeyError, ValueError) as error:
                why = "the model has no such codebook" if isinstance(error, KeyError) else error
                self._fault("resume", f"window of {name!r}: {why}; it begins empty")

    def _windows_of_mine(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the windows of this rank; none where only another's were kept, which must not count twice."""
        whose, index, elsewhere = state.get("rank", 0), self._ranks.index, state.get("elsewhere", [])
        if whose == index:
            found: Mapping[str, Any] = state["windows"]
        else:
            found = elsewhere[index - 1] if len(elsewhere) == self._ranks.size - 1 and whose == 0 else {}
        return found

    def begin_afresh(self) -> None:
        """Forget what was recorded and leave the quantizers to themselves, as if nothing had been restored."""
        self.first, self.readings, self._is_started, self._empty, self._marks = {}, {}, {}, {}, {}
        for probe in self.probes.values():
            probe.window = probe.window.emptied()
            probe.view.release()
