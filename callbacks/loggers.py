"""Writes what the guard tells to a Trainer's loggers: scalars, markers, text, histograms and alerts.

It imports no logger and no Lightning: what a logger can take is seen from what it has. Every logger gets scalars;
TensorBoard also text and histograms, W&B text, histograms and alerts, MLflow tags. One that raises gets nothing more,
with one warning; the others and the training go on.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from collapse_guard import Event

__all__ = ["LoggerSink", "scalars_of"]

_logger = logging.getLogger("collapse_guard")

SCALARS = (
    "perplexity",
    "perplexity_ratio",
    "usage",
    "dead_fraction",
    "rest_ratio",
    "norm_ratio",
    "spread_ratio",
    "relative_error",
    "quantization_error",
    "finite_fraction",
    "loss",
)
OF_THE_QUANTIZER = (
    "commitment_weight",
    "commitment_share",
    "decay",
    "rewrites",
    "frozen",
    "unmoved",
    "reshaped",
    "moment_ratio",
    "replacement_share",
    "sampling_ratio",
    "task_gradient",
)
"""What evaluation shows no other values of. Logged at each reading of training: a replay takes each by itself."""
_HEALTH = {"unknown": 0, "healthy": 1, "degraded": 2, "collapsed": 3}
_SEVERITY = {"info": 1, "warning": 2, "critical": 3}
_OUTCOME = {"recovered": 1, "inconclusive": 0, "failed": -1}
_LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}
_MOST_TAGS = 100
"""Tags that an MLflow run gets."""


class LoggerSink:
    """Hands readings, alerts, interventions and outcomes to loggers.

    Args:
        loggers: returns those of the Trainer.
        step: returns the step under which the Trainer logs, which need not be the guard's.
    """

    def __init__(self, loggers: Callable[[], Sequence[Any]], step: Callable[[], int]) -> None:
        """Store where to ask."""
        self._loggers = loggers
        self._step = step
        self._broken: set[int] = set()
        self._tags = 0

    def write(self, event: Event) -> None:
        """Log an event with every logger that still works."""
        scalars, text = dict(scalars_of(event)), text_of(event)
        uses = event.fields.get("uses") if event.event == "reading" else None
        if not scalars and text is None:
            return
        for logger in self._loggers():
            if id(logger) in self._broken:
                continue
            try:
                self._log(logger, event, scalars, text, uses)
            except Exception as error:  # a foreign service fails in many ways, and the run must outlive each of them
                self._broken.add(id(logger))
                name, what = type(logger).__name__, f"{type(error).__name__}: {error}"
                _logger.warning("%s raised %s; the guard logs nothing more to it, training goes on", name, what)

    def close(self) -> None:
        """The loggers belong to the Trainer."""

    def _log(
        self, logger: Any, event: Event, scalars: Mapping[str, float], text: str | None, uses: Sequence[int] | None
    ) -> None:
        step, place = self._step(), f"collapse_guard/{event.fields.get('codebook', 'run')}"
        run: Any = getattr(logger, "experiment", None)
        if hasattr(run, "set_tag"):  # MLflow: keys take few characters, and text is a tag
            logger.log_metrics({re.sub(r"[^\w\-. /:]", "_", key): value for key, value in scalars.items()}, step=step)
            if text is not None and self._tags < _MOST_TAGS:
                self._tags += 1
                run.set_tag(logger.run_id, f"collapse_guard.{event.step:07}.{self._tags}", text[:4000])
            return
        if scalars:
            logger.log_metrics(scalars, step=step)
        if hasattr(run, "add_histogram_raw"):  # TensorBoard
            if text is not None:
                run.add_text(place, text, step)
            if uses:
                run.add_histogram_raw(
                    f"codebook_uses/{event.fields['codebook']}", global_step=step, **_raw(uses, event)
                )
        elif hasattr(run, "alert"):  # W&B
            if text is not None:
                logger.log_metrics({place: text}, step=step)
            if uses:
                edges = _edges(uses, event)
                histogram = sys.modules["wandb"].Histogram(np_histogram=(list(uses), edges))
                logger.log_metrics({f"codebook_uses/{event.fields['codebook']}": histogram}, step=step)
            if event.event in ("alert", "exhausted") and text is not None:
                level = _LEVELS.get(str(event.fields.get("severity")), "WARN")
                run.alert(title=f"collapse_guard: {event.fields['rule']}", text=text, level=level)


def scalars_of(event: Event) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event by the key under which they are logged: `codebook_perplexity/<codebook>`."""
    fields = event.fields
    if event.event == "reading":
        name, is_eval = fields["codebook"], fields.get("stage") == "eval"
        where = "_eval" if is_eval else ""
        for key in SCALARS if is_eval else (*SCALARS, *OF_THE_QUANTIZER):
            if fields.get(key) is not None:
                yield f"codebook_{key}{where}/{name}", float(fields[key])
        yield f"codebook_health/{name}", float(_HEALTH.get(str(fields.get("health")), 0))
    elif event.event in ("alert", "intervention", "outcome"):
        for part in fields.get("members") or (fields,):
            name = part["codebook"]
            if event.event == "alert":
                yield f"codebook_alert/{name}", float(_SEVERITY.get(str(fields["severity"]), 0))
            elif event.event == "intervention":
                yield f"codebook_intervention/{name}", float(fields["attempt"])
            else:
                yield f"codebook_outcome/{name}", float(_OUTCOME.get(str(part.get("outcome")), 0))


def text_of(event: Event) -> str | None:
    """Return one line on what happened, for loggers that take text; `None` for what is numbers only."""
    fields = event.fields
    if event.event in ("alert", "exhausted"):
        why = f" Likely cause: {fields['why']}" if fields.get("why") else ""
        return f"{event.event} {fields['rule']} on {fields['codebook']}: {fields['reason']}.{why}"
    if event.event == "intervention":
        what = f"{fields['action']} #{fields['attempt']} {fields['result']}"
        return f"{what} on {fields['codebook']}: {fields['summary']}"
    if event.event == "outcome":
        return (
            f"{fields['action']} #{fields['attempt']} {fields['outcome']} on {fields['codebook']}: {fields['reason']}"
        )
    return None


def _edges(uses: Sequence[int], event: Event) -> list[float]:
    """Return the code indices between which each count lies."""
    codes = int(event.fields.get("K") or len(uses))
    return [at * codes / len(uses) for at in range(len(uses) + 1)]


def _raw(uses: Sequence[int], event: Event) -> dict[str, Any]:
    """Return a histogram over code indices as TensorBoard takes it ready made."""
    edges = _edges(uses, event)
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return {
        "min": edges[0],
        "max": edges[-1],
        "num": sum(uses),
        "sum": sum(count * at for count, at in zip(uses, middles, strict=True)),
        "sum_squares": sum(count * at * at for count, at in zip(uses, middles, strict=True)),
        "bucket_limits": edges[1:],
        "bucket_counts": list(uses),
    }
