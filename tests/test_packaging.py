"""What is installed: the listed packages are the folders on disk, their surfaces resolve, the presets come along."""

from __future__ import annotations

import importlib
import importlib.resources
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkout import FOLDERS, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk() -> set[str]:
    """Every folder that holds an `__init__.py`, by the name under which it is installed."""
    found = set()
    for folder in ("collapse_guard", *FOLDERS):
        for init in (ROOT / folder).rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            found.add(name if folder == "collapse_guard" else f"collapse_guard.{name}")
    return found


def test_the_listed_packages_are_the_folders_on_disk() -> None:
    assert set(project()["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_folder_with_code_is_a_package() -> None:
    """A folder without `__init__.py` works in a checkout and is missing from the wheel."""
    folders = {path.parent for folder in ("collapse_guard", *FOLDERS) for path in (ROOT / folder).rglob("*.py")}
    assert {folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_every_mapped_folder_is_mapped_for_tests_and_type_checkers_too() -> None:
    mapping = project()["tool"]["setuptools"]["package-dir"]
    assert mapping == {"collapse_guard": "collapse_guard", **{f"collapse_guard.{name}": name for name in FOLDERS}}
    for name in FOLDERS:
        assert (ROOT / "collapse_guard" / f"{name}.pyi").read_text(encoding="utf-8") == f"from {name} import *\n"


@pytest.mark.parametrize("name", ["collapse_guard", *(f"collapse_guard.{folder}" for folder in FOLDERS)])
def test_every_name_of_the_public_surface_resolves(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_the_presets_are_read_as_package_data() -> None:
    presets = [
        entry
        for entry in importlib.resources.files("collapse_guard.policies").iterdir()
        if entry.name.endswith(".yaml") and not entry.name.endswith(".test.yaml")
    ]
    assert "default.yaml" in {preset.name for preset in presets}
    for preset in presets:
        content = yaml.safe_load(preset.read_text(encoding="utf-8"))
        assert content["name"] == preset.name.removesuffix(".yaml")


def test_every_dependency_has_its_exact_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    settings = project()["project"]
    wanted = [
        *settings["dependencies"],
        *(line for extra in settings["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[\s<>=!\[;]", line, maxsplit=1)[0].lower().replace("_", "-") for line in wanted}
    assert names - pinned - {"collapse-guard"} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, so that nothing is left in it."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    keep = ("collapse_guard", *FOLDERS, "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
    source.mkdir()
    for name in keep:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(home),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(home.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_one_top_level_name_with_presets_and_without_stubs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = [name for name in names if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in code} == {"collapse_guard"}
    data = {"py.typed", "policies/default.yaml", "policies/default.test.yaml"}
    assert {f"collapse_guard/{name}" for name in data} <= set(code)
    assert [name for name in code if name.endswith(".pyi")] == []
    listed = {name.rpartition("/")[0].replace("/", ".") for name in code if name.endswith("/__init__.py")}
    assert listed == packages_on_disk()


@pytest.mark.slow
def test_the_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        "import collapse_guard, collapse_guard.callbacks, collapse_guard.policies, collapse_guard.demos; "
        "print(*(module.__file__ for module in (collapse_guard, collapse_guard.callbacks, collapse_guard.policies)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert all(place.startswith(str(tmp_path)) for place in done.stdout.split())
