"""Programs that some tests need and that no package brings along: where one is missing, its tests are skipped.

A skipped test is easily taken for one that passed, so `told_of` says in one line which programs were missed.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable

import pytest

__all__ = ["needs", "told_of"]

_REASON = re.compile(r"needs the program ([\w.+-]+)")


def needs(program: str, *, hint: str = "") -> pytest.MarkDecorator:
    """Return the mark of a test that is skipped where a program is not on the path; the hint says how to get it."""
    reason = f"needs the program {program}" + (f" ({hint})" if hint else "")
    return pytest.mark.skipif(shutil.which(program) is None, reason=reason)


def told_of(skipped: Iterable[pytest.TestReport]) -> str | None:
    """Say how many of the skipped tests missed which program; `None` where none did."""
    reasons = (_REASON.search(str(report.longrepr)) for report in skipped)
    missed = Counter(found[1] for found in reasons if found is not None)
    if not missed:
        return None
    each = ", ".join(f"{program} ({count} skipped)" for program, count in sorted(missed.items()))
    return f"Tests were skipped for want of a program: {each}"
