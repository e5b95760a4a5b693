"""Devices to test on: the CPU, where these tests keep from rotting, and a CUDA device, for which they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it

_WHY_NOT = "needs a CUDA device"
_ALIVE = "home-made"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a CUDA device, so that `-m cuda` picks it; of the kinds one is enough to keep the rest alive."""
    for item in items:
        chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "cuda" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cuda)
        elif chosen.get("device") == "cpu" and (
            chosen.get("kind", _ALIVE) != _ALIVE or "fresh_compiler" in item.fixturenames  # type: ignore[attr-defined]
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def cuda() -> torch.device:
    """Return the CUDA device, or skip."""
    if not torch.cuda.is_available():
        pytest.skip(_WHY_NOT)
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the CPU, then the CUDA device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(_WHY_NOT)
    return torch.device(request.param)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Let every operation be deterministic, or raise where it cannot be."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
