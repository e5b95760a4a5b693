"""`collapse-guard check`: every mistake of a policy file, before it may touch anything."""

from __future__ import annotations

from typing import Annotated

import typer

from collapse_guard.policies import PolicyError, load_policy

from .console import is_source, missing, say

__all__ = ["check"]


def check(
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="YAML files or preset names.")],
) -> None:
    """Check policy files and report every error with file, line and column. Exits with 1 if any has errors."""
    code = 0
    for source in policies:
        if not is_source(source):
            say(missing(source))
            code = 2
            continue
        try:
            policy = load_policy(source)
        except PolicyError as error:
            say(str(error))
            code = max(code, 1)
        else:
            rules = ", ".join(rule.name for rule in policy.rules)
            say(f"{source}: fine: {policy.name}, mode {policy.mode}, rules {rules}")
    raise typer.Exit(code)
