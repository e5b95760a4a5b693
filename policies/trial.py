"""A trial: one case carried out on its policy, and what differs from what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .decisions import Decision, DecisionKind
from .engine import PolicyEngine
from .reading import Reading
from .schema import Policy
from .series import Series

__all__ = ["Difference", "try_case", "words_of"]

_QUIET = {DecisionKind.PENDING, DecisionKind.SKIP}
_UNKNOWN: dict[str, Any] = dict.fromkeys(("perplexity", "perplexity_ratio", "usage", "dead_fraction", "top_share"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One decision too few or too many.

    Attributes:
        step: where. missing: what was expected and not decided; empty for a decision too many.
        surplus: what was decided and not expected; empty for one too few. reason: of the surplus decision, or why
            the missing one could not be there.
    """

    step: int
    missing: str = ""
    surplus: str = ""
    reason: str = ""

    def __str__(self) -> str:
        sign, words = ("-", self.missing) if self.missing else ("+", self.surplus)
        return f"{sign} step {self.step}: {words or 'nothing'}" + (f" ({self.reason})" if self.reason else "")


def try_case(policy: Policy, case: Case, ceiling_of: Callable[[int, int], float] | None = None) -> list[Difference]:
    """Return how what is decided differs from what is expected; an empty list for a case that holds.

    Args:
        policy: which decides.
        case: what is read and expected.
        ceiling_of: the perplexity of uniform codes for so many tokens and codes, where the case does not say;
            without it the smaller of the two.
    """
    ceiling = ceiling_of(case.tokens, case.codes) if ceiling_of else float(min(case.tokens, case.codes))
    course = _Course(policy, case, ceiling)
    course.run()
    differences: list[Difference] = []
    for step in sorted({*case.expect, *course.decided}):
        if step in case.expect and step not in course.steps:
            near = sorted(course.steps, key=lambda other: (abs(other - step), other))[:2]
            reason = f"there is no reading at this step; the nearest are at {' and '.join(map(str, sorted(near)))}"
            words = case.expect[step] or ("nothing",)
            differences += [Difference(step=step, missing=each, reason=reason) for each in words]
        elif step in case.expect or case.elsewhere == "nothing":
            differences += _differences(step, case.expect.get(step, ()), course.decided.get(step, []))
    return differences


def words_of(decision: Decision) -> str:
    """Write a decision as an expectation would: `collapsed outcome reset_codes failed undone`.

    The end of a ladder is followed by what the rule then asks for: `collapsed exhausted stop_training`.
    """
    words = [decision.rule, decision.kind.value]
    if decision.kind in (DecisionKind.ACT, DecisionKind.OUTCOME):
        words.append(decision.action or "")
    if decision.outcome is not None:
        words += [decision.outcome.value, "undone" if decision.rollback else "kept" if decision.kept else ""]
    if decision.skip is not None:
        words.append(decision.skip.value)
    words.append(decision.then or "")
    return " ".join(word for word in words if word)


class _Course:
    """The readings of a case as they come, and the decisions on them."""

    def __init__(self, policy: Policy, case: Case, ceiling: float) -> None:
        self.steps: set[int] = set()
        self.decided: dict[int, list[Decision]] = {}
        self._policy, self._case, self._ceiling = policy, case, ceiling
        self._engine = PolicyEngine(policy)
        self._effects: dict[int, tuple[int, dict[str, Series]]] = {}  # by attempt: index it begins at, series
        self._index = 0
        self._end = max(map(len, case.series.values()), default=1)

    def run(self) -> None:
        """Take readings until every series has come to its end."""
        sample, step = self._policy.sample, 0
        while self._index < self._end:
            is_dense = self._engine.is_suspect and self._case.stage == "train"
            own = sample.when_suspect_steps if is_dense else sample.every_steps
            step += self._case.every.count if self._case.every else own
            self.steps.add(step)
            self._take(self._engine.observe(self._reading(step)))
            self._index += 1

    def _reading(self, step: int) -> Reading:
        fields: dict[str, Any] = _UNKNOWN | {"ceiling": self._ceiling}
        fields |= {name: _at(series, self._index) for name, series in self._case.series.items()}
        for begin, effect in self._effects.values():
            fields |= {name: _at(series, self._index - begin) for name, series in effect.items()}
        if fields["perplexity_ratio"] is None and fields["perplexity"] is not None and fields["ceiling"]:
            fields["perplexity_ratio"] = fields["perplexity"] / fields["ceiling"]
        case = self._case
        epoch = (step - 1) // case.epoch.count if case.epoch else None
        given: dict[str, Any] = {
            "codebook": case.codebook,
            "K": case.codes,
            "D": 0,
            "tokens": case.tokens,
            "stage": case.stage,
        }
        return Reading(step=step, epoch=epoch, causes=case.causes, **given, **fields)

    def _take(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            self.decided.setdefault(decision.step, []).append(decision)
            attempt = decision.attempt or 0
            if decision.kind is DecisionKind.ACT:
                applied = decision.action not in self._case.refuses
                if applied and (effect := self._case.after.get(decision.action or "")):
                    self._effects[attempt] = self._index + 1, effect
                    self._end = max(self._end, self._index + 1 + max(map(len, effect.values())))
                self._take(self._engine.report(decision, applied=applied, reason="" if applied else "refused here"))
            elif decision.kind is DecisionKind.OUTCOME and decision.rollback:
                self._effects.pop(attempt, None)


def _at(series: Series, index: int) -> float | None:
    return series[min(index, len(series) - 1)]


def _differences(step: int, expected: Iterable[str], decided: Iterable[Decision]) -> list[Difference]:
    """Match expectations with decisions, each with one at most; quiet decisions need no expectation."""
    left = list(decided)
    missing = []
    for words in expected:
        found = next((each for each in left if f"{words_of(each)} ".startswith(f"{words} ")), None)
        if found is None:
            missing.append(Difference(step=step, missing=words))
        else:
            left.remove(found)
    loud = [each for each in left if each.kind not in _QUIET]
    return missing + [Difference(step=step, surplus=words_of(each), reason=each.reason) for each in loud]
