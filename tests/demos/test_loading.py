"""The demos are loaded one by one: a worker of the zoo, of which there are several, needs no Lightning."""

from __future__ import annotations

import subprocess
import sys

import pytest

from collapse_guard import demos


def test_what_the_zoo_needs_loads_no_lightning() -> None:
    program = (
        "import sys; from collapse_guard.demos.zoo.entries import SCENARIOS; from collapse_guard.demos import "
        "ReferenceQuantizer, photo_windows; sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_name_is_there_and_no_other() -> None:
    names = vars(demos)["__all__"]  # which the stub does not hand on
    assert all(getattr(demos, name) is not None for name in names)
    assert set(names) <= set(dir(demos))
    unknown = "nothing"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(demos, unknown)
