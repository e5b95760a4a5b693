"""Requests: what a policy asks for that only the training loop can do, `save_checkpoint` and `stop_training`.

The guard has no loop to stop and no checkpoint to write. It keeps a request until whoever owns the loop takes it, and
writes down what came of it. It carries none out itself, and trusts the loop's word that it was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from collapse_guard.policies import Policy

from .events import EventLog

__all__ = ["REQUESTABLE", "Request", "Requests", "may_request"]

REQUESTABLE = ("save_checkpoint", "stop_training")
"""What may be requested, in the order in which a loop does well to carry it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing that the policy asks of the training loop.

    Attributes:
        kind: `save_checkpoint` or `stop_training`.
        step: optimizer steps completed when it was asked for.
        codebook: whom it concerns. rule: which rule asks.
        reason: why, in one plain sentence.
    """

    kind: str
    step: int
    codebook: str
    rule: str
    reason: str


class Requests:
    """The requests of one run: asked for by the guard, taken once and answered by the loop.

    Args:
        log: where to tell what came of them.

    Example:
        >>> from collapse_guard.events import EventLog
        >>> requests = Requests(EventLog())
        >>> requests.ask(Request(kind="stop_training", step=9, codebook="vq", rule="collapsed", reason="all failed"))
        >>> [request.kind for request in requests.take()], requests.take()
        (['stop_training'], ())
    """

    def __init__(self, log: EventLog) -> None:
        """Begin without any."""
        self._log = log
        self._step = 0
        self._open: list[Request] = []
        self._reminded = 0  # so many of the open ones, the oldest, were told to be waiting

    def ask(self, request: Request) -> None:
        """Keep a request until it is taken."""
        self._open.append(request)

    @property
    def open_count(self) -> int:
        """How much was asked for that nobody has taken yet."""
        return len(self._open)

    def take(self) -> tuple[Request, ...]:
        """Return what was asked for since the last call, oldest first; each request is returned once.

        Call it after `guard.step()`, carry out what is there, and say so with `carried_out` or `failed`.
        """
        taken, self._open, self._reminded = tuple(self._open), [], 0
        return taken

    def carried_out(self, request: Request, summary: str, *, file: str | None = None) -> None:
        """Write down that a request was carried out.

        Args:
            request: as it was taken.
            summary: what was done, in one plain sentence.
            file: the checkpoint, if one was written.
        """
        self._log.emit(
            "carried_out",
            max(self._step, request.step),
            codebook=request.codebook,
            rule=request.rule,
            request=request.kind,
            asked_at=request.step,
            summary=summary,
            file=file,
        )

    def failed(self, request: Request, reason: str) -> None:
        """Write down that a request could not be carried out, and that the run goes on.

        Args:
            request: as it was taken.
            reason: what went wrong, as an exception would say it.
        """
        asked = f"asked for by {request.rule} on {request.codebook} at step {request.step}"
        self._fault(request, max(self._step, request.step), f"{asked}, failed: {reason}; training goes on without it")

    def remind(self, step: int) -> None:
        """At the next step boundary: tell, once each, of requests that nobody has taken; they can still be.

        Args:
            step: optimizer steps completed.
        """
        self._step = step
        for request in self._open[self._reminded :]:
            asked = f"{request.rule} on {request.codebook} asked for this at step {request.step}"
            todo = "call guard.requests.take() after each guard.step() and carry out what it returns"
            self._fault(request, step, f"{asked} and nobody took the request, so nothing was done: {todo}")
        self._reminded = len(self._open)

    def _fault(self, request: Request, step: int, reason: str) -> None:
        self._log.emit("fault", step, where=request.kind, reason=reason)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the requests that nobody has taken yet, as plain data."""
        return [asdict(request) for request in self._open]

    def load_state_dict(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Go on from `state_dict`."""
        self._open, self._reminded = [Request(**plain) for plain in state], 0


def may_request(policy: Policy) -> bool:
    """Whether a guard under this policy can come to ask for anything: the same on all ranks of a run."""
    if policy.mode != "act":
        return False
    last_resorts = {rule.on_exhausted for rule in policy.rules}
    actions = {rung.action for rule in policy.rules for rung in rule.ladder}
    return not (last_resorts | actions).isdisjoint(REQUESTABLE)
