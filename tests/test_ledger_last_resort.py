"""What the ledger says, and asks for, when a rule is exhausted."""

from __future__ import annotations

from typing import Any, cast

import pytest

from collapse_guard.events import EventLog
from collapse_guard.ledger import Ledger
from collapse_guard.policies import Decision, DecisionKind, PolicyEngine, load_policy
from collapse_guard.requests import Request, Requests


class Heard:
    """A log that only remembers."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def emit(self, event: str, step: int, **fields: Any) -> None:
        """Remember an event."""
        self.events.append({"event": event, "step": step, **fields})


@pytest.mark.parametrize("then", ["alert", "observe", "save_checkpoint", "stop_training"])
def test_what_only_the_loop_can_do_is_said_and_asked_for(then: str) -> None:
    log = Heard()
    requests = Requests(cast(EventLog, log))
    decision = Decision(
        kind=DecisionKind.EXHAUSTED,
        step=9,
        codebook="vq",
        rule="r",
        severity="critical",
        reason="all failed",
        then=then,
    )
    ledger = Ledger(cast(EventLog, log), [], seed=0, requests=requests)
    ledger.carry_out([decision], PolicyEngine(load_policy("default")), {})
    (event,) = log.events
    of_the_loop = then in ("save_checkpoint", "stop_training")
    assert (event["event"], event["then"]) == ("exhausted", then)
    assert event["reason"] == "all failed" + (f"; the policy asks for {then} now" if of_the_loop else "")
    asked = Request(kind=then, step=9, codebook="vq", rule="r", reason="all failed")
    assert requests.take() == ((asked,) if of_the_loop else ())
