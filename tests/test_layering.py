"""Imports run demos -> callbacks -> collapse_guard -> policies and never back; the command line stands above."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import ROOT, prelude

#: What each layer may import of the others, besides itself. `cli` composes, and nobody imports it.
ALLOWED = {
    "policies": set[str](),
    "collapse_guard": {"policies"},
    "callbacks": {"collapse_guard", "policies"},
    "demos": {"callbacks", "collapse_guard", "policies"},
    "cli": {"demos", "callbacks", "collapse_guard", "policies"},
}
HEAVY = {"torch", "lightning", "pytorch_lightning", "faiss", "sklearn"}
LIGHTNING = {"lightning", "pytorch_lightning"}


def sources() -> list[Path]:
    folders = ("callbacks", "collapse_guard", "demos", "policies")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def layer_of_file(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "cli" if parts[:2] == ("collapse_guard", "cli") else parts[0]


def layer_of_module(module: str) -> str | None:
    """Return the layer that an absolute module name belongs to; None for what is not ours."""
    first, _, rest = module.partition(".")
    if first != "collapse_guard":
        return None
    second = rest.partition(".")[0]
    return second if second in ALLOWED else "collapse_guard"


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the module that `from ... import` names, with leading dots resolved against the file's package."""
    if not node.level:
        return node.module or ""
    parts = list(path.relative_to(ROOT).parts[:-1])
    package = parts if parts[0] == "collapse_guard" else ["collapse_guard", *parts]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too; `from a import b` yields both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top_names(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_layer_and_those_below(path: Path) -> None:
    layer = layer_of_file(path)
    reached = {found for module in imports(path) if (found := layer_of_module(module))}
    assert reached - {layer} <= ALLOWED[layer]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_mapped_folder_is_never_imported_by_its_bare_name(path: Path) -> None:
    assert not top_names(path) & {"callbacks", "policies", "demos"}


def test_policies_know_no_tensors() -> None:
    """Whoever decides must be readable, and testable, without torch."""
    found = {path.name: top_names(path) & HEAVY for path in (ROOT / "policies").rglob("*.py")}
    assert {name for name, heavy in found.items() if heavy} == set()


def test_only_the_lightning_callback_imports_lightning() -> None:
    """The demos train with Lightning and may name it; no other file may."""
    found = {path.relative_to(ROOT).as_posix() for path in sources() if top_names(path) & LIGHTNING}
    assert {name for name in found if not name.startswith("demos/")} <= {"callbacks/lightning.py"}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running one statement."""
    program = prelude() + statement + "\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_command_line_starts_without_torch() -> None:
    """Most commands read files, and importing torch takes seconds."""
    assert modules_after("import collapse_guard.cli") & HEAVY == set()


def test_a_guard_loads_torch_and_nothing_else_that_is_heavy() -> None:
    loaded = modules_after("from collapse_guard import Guard")
    assert "torch" in loaded
    assert loaded & {"lightning", "pytorch_lightning", "faiss", "sklearn", "matplotlib", "plotly", "scipy"} == set()


def test_importing_kmeans_loads_no_backend() -> None:
    assert modules_after("import collapse_guard.kmeans") & {"faiss", "sklearn", "scipy"} == set()


@pytest.mark.parametrize(
    ("file", "line", "module"),
    [
        ("collapse_guard/guard.py", "from collapse_guard.callbacks import CollapseGuard", "callbacks"),
        ("collapse_guard/guard.py", "from . import cli", "cli"),
        ("collapse_guard/sinks/console.py", "from ..cli import main", "cli"),
        ("policies/engine.py", "from collapse_guard import guard", "collapse_guard"),
        ("policies/engine.py", "import collapse_guard.adapters", "collapse_guard"),
        ("policies/engine.py", "from .schema import Policy", "policies"),
        ("callbacks/lightning.py", "from collapse_guard.policies import Policy", "policies"),
    ],
)
def test_the_layer_of_an_import_is_read_from_its_text(file: str, line: str, module: str) -> None:
    """The check itself, on imports that are absolute, relative, and of a submodule."""
    node = ast.parse(line).body[0]
    if isinstance(node, ast.ImportFrom):
        name = absolute(node, ROOT / file)
        names = [name, *(f"{name}.{alias.name}" for alias in node.names)]
    else:
        assert isinstance(node, ast.Import)
        names = [alias.name for alias in node.names]
    assert module in {layer_of_module(name) for name in names}
