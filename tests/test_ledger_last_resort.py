"""What the ledger says of a rule that is exhausted and asks for something that only the training loop can do."""

from __future__ import annotations

from typing import Any, cast

import pytest

from collapse_guard.events import EventLog
from collapse_guard.ledger import Ledger
from collapse_guard.policies import Decision, DecisionKind, PolicyEngine, load_policy


class Heard:
    """A log that only remembers."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def emit(self, event: str, step: int, **fields: Any) -> None:
        """Remember an event."""
        self.events.append({"event": event, "step": step, **fields})


@pytest.mark.parametrize("then", ["alert", "observe", "save_checkpoint", "stop_training"])
def test_what_the_guard_cannot_do_is_said(then: str) -> None:
    log = Heard()
    decision = Decision(
        kind=DecisionKind.EXHAUSTED,
        step=9,
        codebook="vq",
        rule="r",
        severity="critical",
        reason="all failed",
        then=then,
    )
    Ledger(cast(EventLog, log), [], seed=0).carry_out([decision], PolicyEngine(load_policy("default")), {})
    (event,) = log.events
    cannot = f"; the policy asks for {then} now, which this guard cannot do: do it yourself"
    assert (event["event"], event["then"]) == ("exhausted", then)
    assert event["reason"] == "all failed" + (cannot if then in ("save_checkpoint", "stop_training") else "")
