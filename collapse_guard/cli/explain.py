"""`collapse-guard explain`: a policy in plain English."""

from __future__ import annotations

from typing import Annotated

import typer

from collapse_guard.policies import explain_policy

from .console import policy_from, say, width

__all__ = ["explain"]


def explain(policy: Annotated[str, typer.Argument(metavar="POLICY", help="YAML file or preset name.")]) -> None:
    """Say in plain English what a policy does, rule by rule."""
    say(explain_policy(policy_from(policy), width()))
