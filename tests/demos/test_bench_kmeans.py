"""The k-means bench, as far as it can be tested without a clock."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from collapse_guard.demos import (
    ASSIGNMENTS,
    BENCH_DATA,
    BENCH_METHODS,
    LARGE_DATA,
    REFITS,
    Assignment,
    BenchFit,
    LargeSearch,
    RefitLine,
    ScalingFit,
    assignments_as_markdown,
    fits_as_markdown,
    large_as_markdown,
    measure_assignments,
    measure_fits,
    measure_large,
    measure_refits,
    quality_over_time,
    read_lines,
    refits_as_markdown,
    scaling_as_markdown,
)


def fit(method: str, inertia: float, cpu: float, seed: int = 0) -> BenchFit:
    return BenchFit("blobs", 100, 8, seed, method, inertia, cpu * 3, cpu)


@pytest.mark.parametrize("data", BENCH_DATA)
def test_a_seed_fixes_the_data(data: str) -> None:
    first, again, other = (BENCH_DATA[data](1500, seed) for seed in (3, 3, 4))
    assert first.shape[0] == 1500
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_the_file_holds_is_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "fits.jsonl", list[tuple[object, ...]]()
    ours = BENCH_METHODS["fit_codebook"]

    def counted(points: np.ndarray, K: int, seed: int) -> np.ndarray:
        calls.append((K, seed))
        return ours(points, K, seed)

    monkeypatch.setitem(BENCH_METHODS, "fit_codebook", counted)
    for seeds in ([1], [1, 2], [1, 2, 3]):
        measure_fits(path, ["blobs"], 600, [4], seeds, ["fit_codebook"], lambda text: None)
        with path.open("a") as file:
            file.write('{"data": "blo')  # as a run leaves it that was broken off
    assert [call for call in calls if call[0] == 4] == [(4, 1), (4, 2), (4, 3)]
    assert [each.seed for each in read_lines(path, BenchFit)] == [1, 2, 3]


def test_the_tables_say_who_is_better_and_who_dominates() -> None:
    fits = [
        fit("fit_codebook", 1.0, 1.0),
        fit("sklearn KMeans", 1.25, 8.0),
        fit("FAISS", 0.5, 0.5),
        fit("slow", 0.5, 2),
    ]
    text = fits_as_markdown(fits, ours="fit_codebook", reference="sklearn KMeans")
    assert "| blobs | 8 | 1 | 0.8000 | 0.125 | yes | FAISS |" in text
    assert "met in 1 of the 1 cells measured" in text
    assert "| sklearn KMeans | 1 | 1.25 | 1.0000 | 8.00 | 24.00 |" in text


def test_a_cell_without_the_reference_says_so() -> None:
    text = fits_as_markdown([fit("fit_codebook", 1.0, 1.0)], ours="fit_codebook", reference="sklearn KMeans")
    assert "| blobs | 8 | 0 | not measured | not measured | - | none |" in text


def test_ways_to_assign_agree_with_float64_and_are_timed_once(tmp_path: Path) -> None:
    path = tmp_path / "assign.jsonl"
    for codes in ([8], [8, 16]):
        measure_assignments(path, 500, codes, lambda text: None)
    lines = read_lines(path, Assignment)
    assert [(line.K, line.method) for line in lines] == [(K, method) for K in (8, 16) for method in ASSIGNMENTS]
    assert all(line.agreement > 0.99 for line in lines)


def test_the_speed_of_an_assignment_is_that_of_the_quickest_other() -> None:
    times = {"assign": 0.2, "FAISS IndexFlatL2": 0.3, "chunked addmm": 0.1}
    text = assignments_as_markdown([Assignment(500, 8, method, time, 1.0) for method, time in times.items()])
    assert "| 8 | 0.2000 | 0.3000 | 0.1000 | 0.50 |" in text


def test_growth_is_told_by_point() -> None:
    text = scaling_as_markdown([ScalingFit(2000, 8, 12, 3.0, 1.0, 300.4, 350.6)])
    assert "| 2,000 | 8 | 12 | 1.00 | 500.0 | 3.00 | 300 | 351 |" in text


def test_matched_refits_keep_ids_that_an_unmatched_one_loses(tmp_path: Path) -> None:
    path = tmp_path / "refit.jsonl"
    for _ in range(2):
        measure_refits(path, 256, [8], [1], lambda text: None)
    lines = read_lines(path, RefitLine)
    assert len(lines) == len(REFITS) * 7
    kept = {way: np.mean([line.unchanged for line in lines if line.way == way]) for way in REFITS}
    assert kept["warm, matched"] > kept["fresh, unmatched"] + 0.3
    assert kept["fresh, matched"] > kept["fresh, unmatched"] + 0.3
    text = refits_as_markdown(lines)
    assert f"| 8 | 256 | 1 | 7 | warm, matched | {kept['warm, matched']:.1%} |" in text


def test_an_index_among_many_codes_is_compared_with_exact_searches(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    for _ in range(2):
        measure_large(path, 64, 1024, lambda text: None)
    lines = read_lines(path, LargeSearch)
    assert [(line.data, line.method) for line in lines] == [
        (data, method) for data in LARGE_DATA for method in (*ASSIGNMENTS, "approximate index")
    ]
    assert all(line.measured >= 0.99 and line.recall > 0.9 for line in lines)
    assert large_as_markdown(lines).count("approximate index") == 2


def test_the_picture_shows_every_method_where_it_stands() -> None:
    fits = [fit("fit_codebook", 0.9, 1.0), fit("sklearn KMeans", 1.0, 10.0), fit("FAISS <x>", 1.2, 2.0)]
    drawn = ElementTree.fromstring(quality_over_time(fits, reference="sklearn KMeans"))
    name = "{http://www.w3.org/2000/svg}"
    points = {
        (each.findtext(f"{name}title") or ""): (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for each in drawn.iter(f"{name}circle")
        if each.find(f"{name}title") is not None
    }
    assert set(points) == {
        "fit_codebook: time 0.100, error 0.9000",
        "sklearn KMeans: time 1.000, error 1.0000",
        "FAISS <x>: time 0.200, error 1.2000",
    }
    ours, reference, other = (next(at for title, at in points.items() if key in title) for key in ("fit", "skl", "FAI"))
    assert ours[0] < other[0] < reference[0]
    assert ours[1] > reference[1] > other[1]  # upwards is worse
    assert quality_over_time([], reference="sklearn KMeans").endswith("</svg>\n")
