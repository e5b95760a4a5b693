"""`collapse-guard schema`: what an editor needs to complete a policy file."""

from __future__ import annotations

from collapse_guard.policies import policy_json_schema

from .console import say_json

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of policy files, for completion in an editor: redirect it into a file."""
    say_json(policy_json_schema())
