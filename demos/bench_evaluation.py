"""`make bench-evaluation`: whether evaluation-only collapse is found, named and repaired, and healthy runs left alone.

Each case is trained for a few epochs under the `default` policy, and judged by its event stream alone. Where the guard
refuses to act, or fails, the case is trained again as its owner would after reading the advice.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
from rich import get_console

from collapse_guard import Event
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.testing import Recorder

from .evaluation_cases import CASES, HEALTHY, Case
from .evaluation_modes import modes_table

__all__ = ["Found", "main", "run_case"]

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "evaluation.md"
_RULE = "evaluation_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a guarded run of a case came to.

    Attributes:
        validation: number of the validation, from 1, at which it was found; 0 where it was not.
        cause: the likeliest. confidence: in it. second: the next one.
        before: perplexity ratio of evaluation to that of training at the first validation. after: at the last one.
        outcome: of `eval_fix`, in order; empty where nothing was tried.
        alerts: of any rule.
    """

    validation: int
    cause: str
    confidence: float
    second: str
    before: float
    after: float
    outcome: str
    alerts: int


def run_case(case: Case, seed: int, epochs: int) -> Found:
    """Train a case and say what the guard made of it."""
    pl.seed_everything(seed, verbose=False)
    model, sink = case.model(), Recorder()
    train, shown = case.loaders(seed)
    with TemporaryDirectory() as folder, _quiet():
        guard = CollapseGuard("default", console=False, sinks=[sink], adapters=case.adapters, log_dir=folder, seed=seed)
        trainer = pl.Trainer(
            max_epochs=epochs,
            callbacks=[guard, *case.callbacks()],
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, train, shown)
    return _found(sink.events)


def _found(events: Sequence[Event]) -> Found:
    shown = [each for each in events if each.event == "reading" and each.fields["stage"] == "eval"]
    alerts = [each for each in events if each.event == "alert"]
    mine = next((each for each in alerts if each.fields["rule"] == _RULE), None)
    causes = (mine.fields["reading"].get("causes") or []) if mine is not None else []
    names = [each["cause"] for each in causes] + ["", ""]
    steps = [each.step for each in shown]
    outcomes = [
        str(each.fields["outcome"]) if each.event == "outcome" else "refused"
        for each in events
        if each.fields.get("rule") == _RULE
        and (each.event == "outcome" or (each.event == "intervention" and each.fields["result"] == "refused"))
    ]
    is_refused = "refused" in outcomes
    return Found(
        validation=steps.index(mine.step) + 1 if mine is not None else 0,
        cause=names[0],
        confidence=causes[0]["confidence"] if causes else 0.0,
        second=names[1],
        before=shown[0].fields["eval_to_train"],
        after=shown[-1].fields["eval_to_train"],
        outcome="refused" if is_refused else ", ".join(outcomes),
        alerts=len(alerts),
    )


class _quiet:  # noqa: N801 - a context manager that reads like a word
    """Silence Lightning's hints; they are not what is measured."""

    def __enter__(self) -> None:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.filterwarnings("ignore", module="lightning")

    def __exit__(self, *error: object) -> None:
        self._caught.__exit__(*error)  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each case")
    parser.add_argument("--epochs", type=int, default=4, help="of each run; each ends with a validation")
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the tables are written")
    given = parser.parse_args(argv)
    rows, right, first, restored, total = [], 0, 0, 0, 0
    for case in CASES:
        for seed in range(given.seeds):
            found = run_case(case, seed, given.epochs)
            after, how = found.after, found.outcome or "-"
            if case.repaired is not None and found.outcome != "recovered":
                after, how = run_case(case.repaired, seed, given.epochs).after, f"{how}; advice followed"
            total += 1
            right += found.cause == case.cause
            first += found.validation == 1
            restored += after >= 0.8
            second = f", then {found.second}" if found.second else ""
            rows.append(
                f"| {case.name} | {seed} | {found.validation or 'never'} | {case.cause} | "
                f"{found.cause or '-'} ({found.confidence:.2f}{second}) | {found.before:.2f} | {how} | {after:.2f} |"
            )
            get_console().print(rows[-1], soft_wrap=True)
    healthy = [(case, seed, run_case(case, seed, given.epochs)) for case in HEALTHY for seed in range(given.seeds)]
    loud = [f"{case.name}, seed {seed}" for case, seed, found in healthy if found.validation]
    least = min(found.before for _, _, found in healthy)
    head = (
        f"Of {total} runs in which training is healthy and evaluation is not, {first} were found at the first "
        f"validation, {right} with the right cause first, and {restored} ended with a perplexity in evaluation of at "
        f"least 80 % of that in training. Of {len(healthy)} healthy runs {len(loud)} raised an alert on evaluation"
        f"{': ' + '; '.join(loud) if loud else ''}; the lowest ratio among their first validations was {least:.2f}."
    )
    text = _text(head, rows, given.epochs, modes_table())
    given.page.write_text(text)
    get_console().print(head, soft_wrap=True)


def _text(head: str, rows: Sequence[str], epochs: int, modes: str) -> str:
    return f"""# Evaluation-only collapse: found, named, repaired

Written by `make bench-evaluation`. Handwritten digits, 64 codes, {epochs} epochs with a validation after each, under
the `default` policy and nothing else; the cases are in `demos/evaluation_cases.py`.

{head}

`before` and `after` are the perplexity ratio of evaluation over that of the latest training, at the first validation
and at the last. Where `eval_fix` is refused or fails, `advice followed` is the same model as its owner would train it
after reading the alert.

| case | seed | found at validation | true cause | found (confidence) | before | eval_fix | after |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

## Three looks at two problems

{modes}
"""
