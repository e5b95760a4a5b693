"""The documentation is true: the site builds without a warning, and what its pages show runs.

Of a page its blocks run in order, in one namespace and one directory: Python, policies in YAML, and the lines of
console blocks that begin with `collapse-guard`. `LitModel` and `loader` are there as in the README. A block below
`<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from collapse_guard.adapters import adapters
from collapse_guard.cli import app
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders
from collapse_guard.interventions import INTERVENTIONS
from collapse_guard.policies import action_named, load_policy
from tests.checkout import ROOT

PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
_BLOCK = re.compile(r"(<!-- not run: [^>]+-->\n)?^```(python|yaml|console)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One block of code of a page."""

    language: str
    text: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [Block(found[2], found[3]) for found in _BLOCK.finditer(text) if not found[1]]


class LitModel(DigitsClassifier):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(ReferenceQuantizer())


@pytest.fixture
def _registries_as_they_were() -> Iterator[None]:
    others = (action_named.__globals__["_ACTIONS"], adapters.__globals__["_registered"])
    held: list[dict[str, Any]] = [INTERVENTIONS, *others]
    before = [dict(each) for each in held]
    yield
    for each, was in zip(held, before, strict=True):
        each.clear()
        each.update(was)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
@pytest.mark.usefixtures("_registries_as_they_were")
def test_what_a_page_shows_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"LitModel": LitModel, "loader": digits_loaders(0)[0]}
    for block in blocks(page):
        run(block, page, namespace)


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    if block.language == "python":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning hints at workers and loggers when its defaults are used
            exec(compile(block.text, page, "exec", dont_inherit=True), namespace)
    elif block.language == "yaml":
        text = f"rules:\n{block.text}" if block.text.startswith("- ") else block.text  # rules alone
        if re.search(r"^(rules|version):", text, flags=re.MULTILINE):
            head = "" if re.search(r"^version:", text, flags=re.MULTILINE) else "version: 1\n"
            path = Path("block.yaml")
            path.write_text(head + text, encoding="utf-8")
            load_policy(path)
    else:
        for line in block.text.splitlines():
            if line.startswith("collapse-guard "):
                result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
                assert result.exit_code == 0, f"{page}: {line}: {result.output}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {page.replace(".md", ".html") for page in PAGES} <= built
    policy = (tmp_path / "site" / "policy.html").read_text(encoding="utf-8")
    for expected in ("<code>refit_every</code>", "<code>50 steps</code>", "What is wrong."):
        assert expected in policy
    assert 'id="callbacks.CollapseGuard"' in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")


def test_every_key_of_the_policy_language_is_explained() -> None:
    from collapse_guard.policies import policy_json_schema

    schema = policy_json_schema()
    parts = {name: part for name, part in schema["$defs"].items() if "properties" in part} | {"file": schema}
    silent = [
        f"{name}.{key}"
        for name, part in parts.items()
        for key, value in part["properties"].items()
        if not value.get("description")
    ]
    assert silent == []
