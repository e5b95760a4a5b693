"""The table of what is supported on which quantizer class, from the contract's cases: `make support` writes it.

A cell says yes where the case promises the capability; the contract, which `make test` runs on the real class, holds it
to that. Modes of a class that support the same share a row.
"""

from __future__ import annotations

from collections.abc import Iterable

from collapse_guard.adapters import CAPABILITIES
from tests.checkout import ROOT

from .all_cases import CASES
from .case import Case

__all__ = ["main", "support_table"]

_OPENING, _CLOSING = "<!-- support:table -->\n", "<!-- /support:table -->"


def support_table(cases: Iterable[Case] = CASES) -> str:
    """Return Markdown: how many classes of how many packages, and one row for each class."""
    modes: dict[tuple[str, str, frozenset[str]], list[str]] = {}
    for case in cases:
        modes.setdefault((case.package, case.cls, case.lacks), []).append(case.mode)
    rows = [
        f"| {package} | `{cls}`{_written(names)} | "
        + " | ".join("-" if capability in lacks else "yes" for capability in CAPABILITIES)
        + " |"
        for (package, cls, lacks), names in sorted(modes.items(), key=lambda item: (item[0][0], item[0][1]))
    ]
    classes, packages = {key[:2] for key in modes}, {key[0] for key in modes}
    head = ["| package | class | " + " | ".join(CAPABILITIES) + " |", "|---" * (2 + len(CAPABILITIES)) + "|"]
    return "\n".join([f"{len(classes)} classes from {len(packages)} packages:", "", *head, *rows])


def _written(modes: list[str]) -> str:
    named = [mode for mode in modes if mode]
    return f" ({', '.join(named)})" if named else ""


def main() -> None:
    """Write the table into the README."""
    path = ROOT / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(_OPENING)
    _, _, after = rest.partition(_CLOSING)
    path.write_text(f"{before}{_OPENING}{support_table()}\n{_CLOSING}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
