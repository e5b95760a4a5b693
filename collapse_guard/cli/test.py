"""`collapse-guard test`: unit tests of policies, written as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapse_guard.policies import Case, Policy, PolicyError, load_cases, preset_names, preset_tests, try_case

from .console import say

__all__ = ["test"]


def test(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="YAML files of policy tests; a preset's name for its own.")
    ],
) -> None:
    """Run tests of policies. Exits with 1 if what is decided differs from what is expected."""
    unusable, failed, passed = False, 0, 0
    for source in files:
        path = preset_tests(source) if source in preset_names() else Path(source)
        try:
            policy, cases = load_cases(path)
        except PolicyError as error:
            say(str(error))
            unusable = True
            continue
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
            say(f"{source}: {why}. Give a file of policy tests, or a preset: {', '.join(preset_names())}.")
            unusable = True
            continue
        for case in cases:
            holds = _run(source, policy, case)
            passed, failed = passed + holds, failed + (not holds)
    say(f"{passed} passed, {failed} failed")
    raise typer.Exit(2 if unusable else 1 if failed else 0)


def _run(source: str, policy: Policy, case: Case) -> bool:
    """Carry out one case, and say how it went."""
    from collapse_guard.ceiling import perplexity_ceiling

    differences = try_case(policy, case, perplexity_ceiling)
    say(f"{'FAILED' if differences else 'ok':<7} {source}: {policy.name}: {case.name}")
    for difference in differences:
        say(f"          {difference}")
    if differences:
        say("        (-: expected and not decided, +: decided and not expected)")
    return not differences
