"""What a run of the tests says of programs that it misses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT

TESTS = """
import pytest
from tests.programs import needs

@needs("no-such-browser", hint="build it first")
def test_a(): ...

@needs("no-such-terminal")
def test_b(): ...

@needs("no-such-terminal")
def test_c(): ...

@pytest.mark.skip("needs a reason")
def test_d(): ...

@needs({python!r})
def test_e(): ...
"""


def summary(folder: Path, *options: str) -> list[str]:
    """Run those tests under this folder's conftest: the last lines of what is printed."""
    (folder / "test_those.py").write_text(TESTS.format(python=sys.executable))
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml", *options, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_summary_says_in_one_line_which_programs_were_missed(tmp_path: Path) -> None:
    """Also where other processes run the tests, as under `make test`."""
    lines = summary(tmp_path, "-n", "1")
    told = "Tests were skipped for want of a program: no-such-browser (1 skipped), no-such-terminal (2 skipped)"
    assert lines.count(told) == 1
    assert re.search("1 passed, 4 skipped", lines[-1])


def test_where_none_is_missed_nothing_is_said(tmp_path: Path) -> None:
    lines = summary(tmp_path, "-k", "test_d or test_e")
    assert re.search("1 passed, 1 skipped, 3 deselected", lines[-1])
    assert not any("for want of a program" in line for line in lines)
