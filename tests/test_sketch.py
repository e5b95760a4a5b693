"""Histograms and sketches of the event log, against plain numpy."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from collapse_guard.sketch import is_told, sketch, uses_of
from tests.loops import Recorder, digits_model, train


@pytest.mark.parametrize("codes", [2, 64, 65, 100, 1024, 1000])
def test_a_histogram_sums_neighbouring_codes(codes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 9, codes)
    bins = min(64, codes)
    expected = [0] * bins
    for code, count in enumerate(counts):
        expected[code * bins // codes] += int(count)
    assert uses_of(counts) == expected


def test_histograms_become_rare_and_never_stop() -> None:
    told = [reading for reading in range(5000) if is_told(reading)]
    assert told[:256] == list(range(256))
    assert max(later - before for before, later in pairwise(told)) == 32


def test_a_sketch_shows_the_main_axes_of_the_latents() -> None:
    rng = np.random.default_rng(1)
    cloud = rng.normal(size=(500, 6)) * [5, 3, 0.2, 0.1, 0.1, 0.1]
    codes = rng.normal(size=(9, 6))
    found = sketch(torch.tensor(cloud), torch.tensor(codes), torch.tensor(codes * 2))
    assert found is not None
    centred = cloud - cloud.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    plane = vectors[:, [-1, -2]]
    expected = np.abs((codes - cloud.mean(0)) @ plane)  # the sign of an axis is arbitrary
    np.testing.assert_allclose(np.abs(found["before"]), expected, rtol=0.02, atol=0.02)
    assert found["share"] == pytest.approx((centred @ plane).var(0).sum() / centred.var(0).sum(), abs=1e-3)
    assert [len(found[name]) for name in ("latents", "before", "after")] == [80, 9, 9]


def test_a_sketch_of_too_little_is_none_and_of_one_dimension_flat() -> None:
    assert sketch(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3, 4)) is None
    flat = sketch(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [float("nan")]]), torch.zeros(1, 1))
    assert flat is not None
    assert all(y == 0 for _, y in flat["latents"])
    assert len(flat["before"]) == 1


def test_the_event_of_an_intervention_holds_a_sketch_of_stated_size() -> None:
    from collapse_guard import Guard

    recorder = Recorder()
    train(digits_model(), 90, Guard("default", console=False, sinks=[recorder]))
    sketches = [event.fields["sketch"] for event in recorder.of("intervention")]
    assert len(sketches) == 2
    assert all(sum(len(each[name]) for name in ("latents", "before", "after")) <= 200 for each in sketches)
    assert all(len(json.dumps(each)) < 5000 for each in sketches)
    readings = recorder.of("reading")
    assert all(sum(event.fields["uses"]) == event.fields["tokens"] for event in readings)


def test_an_intervention_whose_picture_fails_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from collapse_guard import Guard, acting

    def fails(*_: object) -> None:
        raise RuntimeError("did not converge")

    monkeypatch.setattr(acting, "sketch", fails)
    recorder = Recorder()
    train(digits_model(), 40, Guard("default", console=False, sinks=[recorder]))
    (done,) = recorder.of("intervention")
    assert (done.fields["result"], "sketch" in done.fields) == ("applied", False)
    assert recorder.of("fault") == []
