"""Actions of other packages: found by their entry points, in a distribution that is really on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
from typing import ClassVar

from collapse_guard.interventions import Intervention
from collapse_guard.policies import Action


class Wait(Action):
    """Do nothing, by another name."""

    action: ClassVar[str] = "wait"

    readings: int = 1


class WaitIntervention(Intervention[Wait]):
    """Never right."""

    def apply(self) -> str:
        return f"waited for {self.params.readings} readings"


pair = (Wait, WaitIntervention)
no_pair = Wait
wrong_name = (Wait, WaitIntervention)
'''
PROGRAM = """
from collapse_guard.policies import PolicyError, load_policy, policy_json_schema
from collapse_guard.interventions import find_intervention

rules = [{"name": "low", "when": "usage < 1", "ladder": [{"wait": {"readings": 3}}]}]
policy = load_policy({"version": 1, "rules": rules})
print(policy.rules[0].ladder[0].params.describe(), find_intervention("wait").__name__)
print("wait" in policy_json_schema()["$defs"])
try:
    load_policy({"version": 1, "rules": [{"name": "low", "when": "usage < 1", "ladder": ["broken"]}]})
except PolicyError as error:
    print("broken" in str(error))
"""


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    """A distribution with one good entry point and three broken ones, installed in a folder."""
    (tmp_path / "waiting.py").write_text(MODULE, encoding="utf-8")
    info = tmp_path / "waiting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: waiting\nVersion: 1.0\n", encoding="utf-8")
    points = [
        "wait = waiting:pair",
        "broken = waiting:absent",
        "single = waiting:no_pair",
        "other = waiting:wrong_name",
    ]
    (info / "entry_points.txt").write_text("[collapse_guard.actions]\n" + "\n".join(points) + "\n", encoding="utf-8")
    return tmp_path


def test_an_announced_action_is_used_and_broken_ones_are_told_by_name(plug_in: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(plug_in)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["wait(readings=3) WaitIntervention", "True", "True"]
    told = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "action broken was left out", "action single was left out", "action other was left out"]  # fmt: skip
    assert "waiting:absent raised AttributeError" in told[0]
    assert "expected a pair (model of the parameters, intervention)" in told[1]
    assert "expected Wait to declare `action = 'other'`, got 'wait'" in told[2]
