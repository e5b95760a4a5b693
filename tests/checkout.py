"""Makes a checkout importable as if it were installed: the mapped root folders answer to `collapse_guard.<folder>`.

An editable install brings such a finder of its own; this one stands last and is asked only when there is none. It
does for the tests, and for the fresh interpreters that some of them start, what `package-dir` in pyproject.toml does
for a user.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

__all__ = ["FOLDERS", "ROOT", "install_finder", "prelude"]

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("callbacks", "policies", "demos")


class CheckoutFinder(MetaPathFinder):
    """Finds `collapse_guard.callbacks` in `callbacks/`, and so on."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a mapped folder lies, or None for every other module."""
        parent, _, folder = fullname.partition(".")
        if parent != "collapse_guard" or folder not in FOLDERS:
            return None
        home = ROOT / folder
        return spec_from_file_location(fullname, home / "__init__.py", submodule_search_locations=[str(home)])


def install_finder() -> None:
    """Let this interpreter import the checkout, whether it is installed or not."""
    if not any(type(finder).__name__ == "CheckoutFinder" for finder in sys.meta_path):
        sys.meta_path.append(CheckoutFinder())


def prelude() -> str:
    """Return the lines with which a fresh interpreter (`python -c`) starts in order to import this checkout."""
    return (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.checkout import install_finder; install_finder()\n"
    )
