"""Every doctest of the project, imported by its public name (mapped folders would be loaded twice otherwise)."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.checkout import FOLDERS, ROOT


def module_names() -> list[str]:
    names = []
    for folder in ("collapse_guard", *FOLDERS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "collapse_guard" else ("collapse_guard", *parts)
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


@pytest.mark.parametrize("name", [name for name in module_names() if ">>>" in Path(
    importlib.import_module(name).__file__ or "").read_text()])  # fmt: skip
def test_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
