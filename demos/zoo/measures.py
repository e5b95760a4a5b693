"""What the cells of the zoo come to: detection, false alarms, recovery, and how the rescued compare with the prevented.

All comparisons are paired: a run is held against the healthy twin of its own scenario and seed, and against the arm in
which nothing was done. A pair counts only if doing nothing does end worse than the twin; where a cause did no harm,
there is nothing to rescue. Of these, detection is asked of those in which a codebook fell: below half of the twin's
perplexity, in training or in evaluation. A cause may cost error and leave the codebook in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .cell import WINDOW, CellResult
from .scenario import Scenario

__all__ = ["TOLERANCE", "Pair", "Pairs", "error_over", "fell_at", "has_as_little_error", "held_since", "is_as_good"]

TOLERANCE = 0.1
"""How far below the twin's perplexity, or above its error, a run may end and count as recovered, as a share."""
_FALLEN = 0.5
"""A codebook has fallen where its perplexity is below this share of the twin's at the same time."""


def has_as_little_error(run: CellResult, twin: CellResult) -> bool:
    """Whether a run's error is at most a tenth above its twin's."""
    return run.error is not None and twin.error is not None and run.error <= (1 + TOLERANCE) * twin.error


def error_over(run: CellResult, error: float | None) -> float | None:
    """Return a run's error over another one, infinite where it is no number; `None` where the other one is none."""
    if not error:
        return None
    return math.inf if run.error is None else run.error / error


def is_as_good(run: CellResult, twin: CellResult) -> bool:
    """Whether a run ended within a tenth of its twin: error, and perplexity in evaluation of every level."""
    if not has_as_little_error(run, twin):
        return False
    if len(run.perplexity) != len(twin.perplexity):
        return False
    return all(own >= (1 - TOLERANCE) * its for own, its in zip(run.perplexity, twin.perplexity, strict=True))


def _is_below(own: Sequence[float], its: Sequence[float], share: float) -> bool:
    """Whether any level stands below a share of the twin's; also where a level shows no token any more."""
    return len(own) < len(its) or any(mine < share * theirs for mine, theirs in zip(own, its, strict=False))


def fell_at(run: CellResult, twin: CellResult, *, onset: int) -> int | None:
    """Return the step at the end of the first window, at or after the onset, in which a level has fallen.

    Args:
        run: of the arm in which nothing is done.
        twin: of the same seed.
        onset: the step from which the cause is there.

    Returns:
        `None` where no level fell below half of the twin's perplexity in training.
    """
    for index, (own, its) in enumerate(zip(run.trace, twin.trace, strict=False)):
        end = (index + 1) * WINDOW
        if end > onset and its and _is_below(own, its, _FALLEN):
            return end
    return None


def held_since(run: CellResult, twin: CellResult, *, onset: int) -> int | None:
    """Return the steps from the onset to when all levels are within a tenth of the twin's perplexity for good.

    Returns:
        `None` where they are not so at the end.
    """
    since: int | None = None
    for index, (own, its) in enumerate(zip(run.trace, twin.trace, strict=False)):
        if its and _is_below(own, its, 1 - TOLERANCE):
            since = None
        elif since is None:
            since = (index + 1) * WINDOW
    return None if since is None else max(since - onset, 0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One arm of a collapse, beside its twin and the arm in which nothing is done, all of one seed.

    Attributes:
        scenario: which. seed: which.
        run, nothing, twin: the cells.
        peers: the cells of the preventions, by arm.
    """

    scenario: Scenario
    seed: int
    run: CellResult
    nothing: CellResult
    twin: CellResult
    peers: Mapping[str, CellResult]

    @property
    def is_recovered(self) -> bool:
        """Whether the run ended as good as its twin."""
        return is_as_good(self.run, self.twin)

    @property
    def has_fallen(self) -> bool:
        """Whether a codebook fell where nothing was done, in training or in evaluation."""
        return self.fell_at is not None or _is_below(self.nothing.perplexity, self.twin.perplexity, _FALLEN)

    @property
    def fell_at(self) -> int | None:
        """When a codebook fell in training where nothing was done; `None` where none did."""
        return fell_at(self.nothing, self.twin, onset=self.scenario.onset)

    @property
    def detected_at(self) -> int | None:
        """The step of the first alert once the cause was there, one of severity `info` left out; `None` without."""
        steps = [step for step, _, severity in self.run.alerts if step > self.scenario.onset and severity != "info"]
        return min(steps, default=None)

    @property
    def delay(self) -> int | None:
        """Steps from the cause to the alert; `None` without an alert, or where no codebook fell."""
        at = self.detected_at
        return at - self.scenario.onset if at is not None and self.has_fallen else None

    @property
    def delay_readings(self) -> int | None:
        """Readings from the cause to the alert, the one that alerts counted; `None` as with `delay`."""
        at = self.detected_at
        if at is None or not self.has_fallen:
            return None
        return sum(self.scenario.onset < step <= at for step in self.run.readings)

    @property
    def recovery_steps(self) -> int | None:
        """Steps from the cause to when the perplexity in training was the twin's for good; `None` if it never was."""
        return held_since(self.run, self.twin, onset=self.scenario.onset)

    @property
    def error_ratio(self) -> float | None:
        """The run's error over that of the best prevention; `None` where there is none, infinite if it is no number."""
        errors = [peer.error for peer in self.peers.values() if peer.error is not None]
        return error_over(self.run, min(errors, default=None))


class Pairs:
    """The cells of a study, put beside one another.

    Args:
        cells: all of them, of one length of run for each scenario.
        scenarios: by name.
        peers: names of the arms that are preventions.
    """

    def __init__(self, cells: Iterable[CellResult], scenarios: Mapping[str, Scenario], peers: Iterable[str]) -> None:
        """Sort the cells; those of scenarios that there are no longer are left out."""
        self._scenarios = scenarios
        self._peers = tuple(peers)
        self._cells = {(each.scenario, each.arm, each.seed): each for each in cells if each.scenario in scenarios}

    @property
    def arms(self) -> list[str]:
        """Names of the arms that have cells, in order of appearance."""
        return list(dict.fromkeys(arm for _, arm, _ in self._cells))

    @property
    def seeds(self) -> list[int]:
        """The seeds that there are."""
        return sorted({seed for _, _, seed in self._cells})

    def cell(self, scenario: str, arm: str, seed: int) -> CellResult | None:
        """Return one cell, if it is there."""
        return self._cells.get((scenario, arm, seed))

    def of(self, arm: str, scenario: str | None = None) -> list[Pair]:
        """Return the pairs of an arm in which doing nothing ended badly, of one collapse or of all."""
        found = []
        for (name, which, seed), run in self._cells.items():
            entry = self._scenarios[name]
            if which != arm or not entry.is_collapse or (scenario is not None and name != scenario):
                continue
            nothing, twin = self.cell(name, "nothing", seed), self.cell(name, "twin", seed)
            if nothing is None or twin is None or is_as_good(nothing, twin):
                continue
            peers = {peer: cell for peer in self._peers if (cell := self.cell(name, peer, seed)) is not None}
            found.append(Pair(entry, seed, run, nothing, twin, peers))
        return found

    def harmless(self) -> list[tuple[str, int]]:
        """Return scenario and seed of the collapses that did not come: doing nothing ended as well as the twin."""
        found = []
        for (name, arm, seed), run in self._cells.items():
            twin = self.cell(name, "twin", seed)
            if arm == "nothing" and self._scenarios[name].is_collapse and twin is not None and is_as_good(run, twin):
                found.append((name, seed))
        return found

    def healthy(self, arm: str) -> tuple[int, int, int]:
        """Return of an arm: readings of healthy codebooks, alerts at them, and interventions.

        Healthy are the controls, and the collapses before their cause. Readings count once for each codebook.
        """
        readings = alerts = interventions = 0
        for (name, which, _), run in self._cells.items():
            entry = self._scenarios[name]
            if which != arm:
                continue
            until = entry.onset if entry.is_collapse else run.steps
            readings += sum(step <= until for step in run.readings) * max(run.codebooks, 1)
            alerts += sum(step <= until and severity != "info" for step, _, severity in run.alerts)
            interventions += sum(step <= until for step, *_ in run.interventions)
        return readings, alerts, interventions
