"""The codebooks of one residual at one step, coarse first, and what is common to their turns.

What a finer level codes is what the coarser levels left over. So the levels are judged together: coarse first, one
number and one charge to the budget for an intervention that several of them ask for at once. A codebook that is no
level of anything is a group of its own. Like a turn, a group lives for one call and is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from .decisions import Decision
from .plan import Plan, RulePlan, RungPlan
from .reading import Reading
from .states import CodebookState, EngineState, RuleState, changed
from .turn import Turn

__all__ = ["UNSEEN", "Group", "taken_together"]

_CODEBOOK_OF = attrgetter("codebook")

UNSEEN = CodebookState()
"""The state of a codebook of which nothing has been read yet."""


class Group:
    """The turns of a group's codebooks, the run's counters, and the decisions so far.

    Args:
        plan: the compiled policy.
        state: of the run, before these turns.
        step: optimizer step of the turns.
        name: of the residual; `None` for a codebook that is no level of one.
        codebook: a member. readings: of this step, of members only, all of one stage.
        stage: what the turns are about, where there are no readings.

    Attributes:
        turns: by codebook, coarse first, of every member that was read now or has an intervention open.
        asked: numbers of the interventions that were asked for in these turns, by rule and action.
    """

    def __init__(
        self,
        plan: Plan,
        state: EngineState,
        *,
        step: int,
        name: str | None,
        codebook: str,
        readings: Sequence[Reading] = (),
        stage: str = "train",
    ) -> None:
        """Gather the members and make their turns."""
        self.plan, self.step, self.name = plan, step, name
        self.attempts, self.spent = state.attempts, state.spent
        self.decisions: list[Decision] = []
        self.asked: dict[tuple[str, str], int] = {}
        self._state = state
        self._read = dict(zip(map(_CODEBOOK_OF, readings), readings, strict=True))
        self.stage = readings[0].stage if readings else stage
        self._books = self._members(codebook)
        self.turns: dict[str, Turn] = {}
        for member, book in self._books.items():
            reading = self._read.get(member) or self._before(book)
            if reading is not None:
                is_read = member in self._read
                self.turns[member] = Turn(self, book, member, step=step, reading=reading, is_read=is_read)

    def _members(self, codebook: str) -> dict[str, CodebookState]:
        """Return the states of all members, coarse first."""
        known = self._state.codebooks
        if self.name is None:
            book = known.get(codebook, UNSEEN)
            return {codebook: book if book.group is None else changed(book, group=None, level=None)}
        books = {name: book for name, book in known.items() if book.group == self.name}
        for name, reading in self._read.items():
            book = books.get(name) or known.get(name, UNSEEN)
            if (book.group, book.level) != (reading.group, reading.level):
                book = changed(book, group=reading.group, level=reading.level)
            books[name] = book
        return dict(sorted(books.items(), key=lambda item: (item[1].level or 0, item[0])))

    def _before(self, book: CodebookState) -> Reading | None:
        """Return what was last read of a codebook before the intervention that is open there, as of this epoch."""
        before = next((rule.before for rule in book.rules.values() if rule.attempt is not None), None)
        epoch = next((reading.epoch for reading in self._read.values()), None)
        return before if before is None or epoch is None else replace(before, epoch=epoch)

    def number_of(self, rule: RulePlan, rung: RungPlan) -> int:
        """Return the number of an intervention, counted and charged once for all levels that ask for it now."""
        key = rule.name, rung.description
        if key not in self.asked:
            self.spent += 1
            self.attempts += 1
            self.asked[key] = self.attempts
        return self.asked[key]

    def coarser(self, turn: Turn, rule: RulePlan, state: RuleState, *, fires: bool) -> str | None:
        """Return a coarser level whose open intervention a rule must wait for.

        A rule that `fires` need not wait for the very intervention that it would ask for, if others ask for it now. No
        rule waits for one that is gradual: a level may collapse in the thousand steps that its verification takes.
        """
        if turn.level == 0:
            return None
        rung = rule.next_rung(turn.taught(rule, state), turn.reading.causes) if fires else None
        shared = self.asked.get((rule.name, rung.description)) if rung is not None else None
        for other in self.turns.values():
            occupant = other.occupant() if other.level < turn.level else None
            if occupant is not None and occupant[1].attempt != shared and not occupant[0].is_gradual(occupant[1]):
                return other.codebook
        return None

    def open_below(self, turn: Turn) -> Iterator[tuple[Turn, RulePlan, RuleState]]:
        """Yield the open interventions of all finer levels."""
        for other in self.turns.values():
            occupant = other.occupant() if other.level > turn.level else None
            if occupant is not None:
                yield other, *occupant

    def concluded(self) -> list[tuple[Turn, RulePlan, RuleState]]:
        """Return the open interventions on which every level that shares them has its verdict, coarse first."""
        opened = [(turn, *occupant) for turn in self.turns.values() if (occupant := turn.occupant()) is not None]
        undecided = {state.attempt for _, _, state in opened if state.verdict is None}
        return [each for each in opened if each[2].attempt not in undecided]

    def disturb_below(self, level: int, action: str) -> None:
        """Let what finer levels show count as evidence only once an intervention on a coarser one has settled."""
        for name, book in self._books.items():
            if (book.level or 0) <= level:
                continue
            if name in self.turns:
                self.turns[name].unsettle(action)
            else:
                self._books[name] = changed(book, settling_after=action, settled=0, past=book.past.restarted())

    def after(self) -> EngineState:
        """Return the run's state after these turns; the old one itself where nothing has changed."""
        known, new = self._state.codebooks, {}
        for name, before in self._books.items():
            book = self.turns[name].after() if name in self.turns else before
            if known.get(name) is not book:
                new[name] = book
        if not new:
            return self._state
        return changed(self._state, codebooks={**known, **new}, attempts=self.attempts, spent=self.spent)

    @property
    def codebooks(self) -> Iterable[str]:
        """Names of all members, coarse first."""
        return self._books.keys()


def taken_together(readings: Iterable[Reading]) -> Iterator[tuple[Reading, ...]]:
    """Bundle readings, in the order of a run: those of one step, stage and group go together, others alone."""
    for _, of_one_step in groupby(readings, key=attrgetter("step", "stage")):
        bundles: list[list[Reading]] = []
        of_group: dict[str, list[Reading]] = {}
        for reading in of_one_step:
            bundle = of_group.get(reading.group) if reading.group is not None else None
            if bundle is None or any(reading.codebook == other.codebook for other in bundle):
                bundle = []
                bundles.append(bundle)
            if reading.group is not None:
                of_group[reading.group] = bundle
            bundle.append(reading)
        yield from map(tuple, bundles)
