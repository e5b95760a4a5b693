"""What the tests of policies share: readings from few numbers, small policies, and a run that answers every ACT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from collapse_guard.policies import Decision, DecisionKind, Policy, PolicyEngine, Reading, Skip, load_policy

K = 256
CEILING = 217.0


def reading(step: int, perplexity: float = 100.0, codebook: str = "vq", **fields: Any) -> Reading:
    """A reading of 2,048 tokens on 256 codes; whatever is not named looks healthy."""
    values: dict[str, Any] = {
        "K": K,
        "D": 16,
        "tokens": 2048,
        "ceiling": CEILING,
        "perplexity_ratio": perplexity / CEILING,
        "usage": 0.9,
        "dead_fraction": 0.1,
        "top_share": 0.05,
        "relative_error": 0.1,
    }
    return Reading(step=step, codebook=codebook, perplexity=perplexity, **(values | fields))


def series(perplexities: Iterable[float], *, start: int = 10, every: int = 10, **fields: Any) -> list[Reading]:
    """One reading after another, `every` steps apart."""
    return [reading(start + every * i, perplexity, **fields) for i, perplexity in enumerate(perplexities)]


def rule(
    name: str = "collapsed", when: Any = "perplexity < 1.5", *, hold: int | None = None, **fields: Any
) -> dict[str, Any]:
    """A rule as YAML would hold it; `hold` stands for `for`, which Python keeps to itself."""
    return {"name": name, "when": when, **({"for": hold} if hold else {}), **fields}


def policy(*rules: dict[str, Any], **fields: Any) -> Policy:
    """A checked policy whose readings count at once: nothing warms up and nothing settles."""
    return load_policy({"version": 1, "sample": {"settle": 0}, "rules": list(rules), **fields})


class Run:
    """An engine with a guard's manners: every ACT is answered at once, with `applies`, and all decisions are kept."""

    def __init__(
        self,
        policy: Policy,
        applies: Callable[[Decision], bool] = lambda _: True,
        refuses: Callable[[Decision], Mapping[str, str]] = lambda _: {},
        postpones: Callable[[Decision], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self.engine = PolicyEngine(policy)
        self.applies, self.refuses, self.postpones = applies, refuses, postpones
        self.decisions: list[Decision] = []

    def feed(self, readings: Iterable[Reading]) -> Run:
        """Observe readings one after another."""
        for each in readings:
            self._take(self.engine.observe(each))
        return self

    def feed_together(self, readings: Iterable[Reading]) -> Run:
        """Observe the readings of several levels of one group at one step."""
        self._take(self.engine.observe_together(readings))
        return self

    def finish(self, step: int) -> Run:
        """End the run."""
        self._take(self.engine.finish(step))
        return self

    def _take(self, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            self.decisions.append(decision)
            if decision.kind is DecisionKind.ACT:
                refused = dict(self.refuses(decision))
                if not self.applies(decision):
                    refused = dict.fromkeys(decision.codebooks, "not today")
                answers = {"refused": refused, "postponed": self.postpones(decision)}
                self._take(self.engine.report_together(decision, **answers))

    @property
    def told(self) -> list[str]:
        """All decisions, one line each: step, rule, kind, and the action, outcome or reason that tells most."""
        return [brief(decision) for decision in self.decisions]


def brief(decision: Decision) -> str:
    """One line: `70 collapsed outcome #1 reset_codes failed, rolled back`."""
    words = [str(decision.step), decision.rule or "-", decision.kind.value]
    if decision.attempt is not None:
        words.append(f"#{decision.attempt} {decision.action}")
    if decision.outcome is not None:
        words.append(decision.outcome.value + (", rolled back" if decision.rollback else ""))
    if decision.skip is not None:
        words.append(decision.skip.value)
    return " ".join(words)


def assert_a_skip_is_told_once_a_streak(policy: Policy, bundles: Iterable[Iterable[Reading]]) -> None:
    """No rule says the same skip at two readings of its codebook that follow each other."""
    run, last = Run(policy), dict[tuple[str, str], tuple[int, Skip]]()
    counts = Counter[str]()
    for bundle in bundles:
        together, seen = tuple(bundle), len(run.decisions)
        run.feed_together(together)
        counts.update(each.codebook for each in together)
        for told in (part for each in run.decisions[seen:] for part in each.parts):
            if told.skip is not None:
                key = told.codebook, told.rule
                assert last.get(key) != (counts[told.codebook] - 1, told.skip) or told.skip is Skip.SETTLING
                last[key] = counts[told.codebook], told.skip
