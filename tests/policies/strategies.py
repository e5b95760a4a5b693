"""What the properties of the engine are tried on: policies of up to three rules, and readings of three codebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from collapse_guard.policies import Decision, DecisionKind, Policy, Reading
from tests.policies.series import policy, reading, rule

ACTIONS = ("reset_codes", "decay_commitment", "fallback_tokenizer", "alert")
CODEBOOKS = ("a", "b", "c")
CONDITIONS: tuple[Any, ...] = (
    "perplexity < 5",
    "perplexity < 1.5",
    "loss > 5",
    ["perplexity < 5", "loss > 5"],
    "rel(perplexity) < 0.2",
    "trend(perplexity over 3 readings) < -0.2",
)

levels = st.sampled_from((1.0, 1.0, 100.0, 3.0, 1.0, 100.0, 7.0, 100.0, float("nan")))
spans = st.one_of(
    st.integers(1, 8).map(lambda count: f"{10 * count} steps"),
    st.integers(1, 5).map(lambda count: f"{count} readings"),
    st.just("1 epoch"),
)
unknowns = st.sampled_from(("keep", "keep", "fire", "clear"))
rung_budgets: st.SearchStrategy[dict[str, int]] = st.sampled_from(({}, {}, {"budget": 1}))


class Line(NamedTuple):
    """One reading to come: of which codebook, with what in it."""

    codebook: str
    perplexity: float
    loss: float | None
    tokens: int


_line = st.builds(
    Line,
    st.sampled_from(("a", "a", "a", "b", "c")),
    levels,
    st.sampled_from((9.0, 0.5, 9.0, 0.5, None)),
    st.sampled_from((2048, 2048, 2048, 2048, 2048, 2048, 2048, 10)),
)
# Blocks of equal readings: a codebook that changes at every reading never fires, let alone recovers.
_blocks = st.lists(st.tuples(_line, st.integers(1, 6)), min_size=12, max_size=24)
lines = _blocks.map(lambda blocks: [line for line, count in blocks for _ in range(count)])


@st.composite
def rungs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Up to four rungs with different actions."""
    names = draw(st.permutations(ACTIONS))[: draw(st.sampled_from((2, 1, 3, 4, 0)))]
    return [
        {name: {}, "repeat": draw(st.integers(1, 2)), "within": draw(spans), **draw(rung_budgets)} for name in names
    ]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Up to three rules, of which one may inhibit those that come later in a shuffled order."""
    names = draw(st.permutations(("r0", "r1", "r2")))[: draw(st.integers(1, 3))]
    ranks = {name: draw(st.integers(0, 9)) for name in names}
    rules = [
        rule(
            name,
            draw(st.sampled_from(CONDITIONS)),
            hold=draw(st.integers(1, 2)),
            clear={"for": draw(st.integers(1, 2))},
            severity=draw(st.sampled_from(("info", "warning", "critical"))),
            cooldown={"for": draw(spans), "growth": draw(st.sampled_from((1, 1, 2)))},
            missing=draw(unknowns),
            nan=draw(unknowns),
            silence_until=draw(st.sampled_from(("0 steps", "0 steps", "40 steps"))),
            budget=draw(st.sampled_from((None, None, 2))),
            on_exhausted=draw(st.sampled_from(("alert", "stop_training", "observe"))),
            inhibits=[other for other in names if ranks[name] > ranks[other] and draw(st.booleans())],
            verify={"success": "perplexity >= 10"} if draw(st.booleans()) else {},
            ladder=draw(rungs()),
        )
        for name in names
    ]
    return policy(
        *rules,
        mode=draw(st.sampled_from(("act", "act", "act", "act", "act", "observe"))),
        warmup=draw(st.sampled_from(("0 steps", "0 steps", "0 steps", "30 steps"))),
        sample={"settle": draw(st.integers(0, 2))},
        budget={"interventions": draw(st.integers(2, 9)), "refill_after": draw(st.sampled_from((None, "30 steps")))},
    )


def readings_of(script: Iterable[Line]) -> list[Reading]:
    """One reading every 10 steps, 6 readings to an epoch."""
    return [
        reading(10 + 10 * i, line.perplexity, line.codebook, loss=line.loss, tokens=line.tokens, epoch=i // 6)
        for i, line in enumerate(script)
    ]


def refuses_some(decision: Decision) -> bool:
    """A guard that refuses one action in three, and the same ones whatever else happens in the run."""
    return hash((decision.step, decision.rung)) % 3 > 0


def of_kind(decisions: Sequence[Decision], *kinds: DecisionKind) -> list[Decision]:
    return [decision for decision in decisions if decision.kind in kinds]
