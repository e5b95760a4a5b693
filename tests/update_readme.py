"""Writes the demo's output into the README: `make readme`. What the README shows is what the command prints.

The demo runs as on a terminal 100 columns wide, so that long entries wrap; colours are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.checkout import ROOT

__all__ = ["main"]

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def main() -> None:
    """Run the demo and replace what stands between the README's markers."""
    environment = os.environ | {"COLUMNS": "100", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0", "NO_COLOR": "1"}
    command = [sys.executable, "-c", "from collapse_guard.cli import main; main()", "demo"]
    output = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    plain = "\n".join(line.rstrip() for line in _CONTROL.sub("", output).splitlines())
    log = plain[plain.index("collapse_guard: policy") : plain.index("Event log:")]
    table = plain[plain.index("Handwritten digits") :]
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, block in (("log", log), ("table", table)):
        before, opening, rest = text.partition(f"<!-- demo:{name} -->\n")
        _, closing, after = rest.partition(f"<!-- /demo:{name} -->")
        text = f"{before}{opening}```text\n{block.strip()}\n```\n{closing}{after}"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
