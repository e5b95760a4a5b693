"""A reading of several ranks is that of one process which saw all their tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard
from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.measure import read_window, reading_of
from collapse_guard.policies import Reading
from collapse_guard.ranks import Part, Word, call_roll, fingerprint, join_ranks
from collapse_guard.ranks.recorded import Pool, SharedWindow
from collapse_guard.sums import Sums, sum_up
from collapse_guard.testing import Recorder
from collapse_guard.window import Window
from tests.crew import Crew

SIZES = (60, 0, 45)
"""Tokens of each rank: one has none at all."""


class Book(nn.Module):
    def __init__(self, K: int, D: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("table", torch.randn(K, D, generator=generator))


def view_of(K: int, D: int) -> CodebookView:
    book = Book(K, D)
    return CodebookView(name="vq", adapter="test", module=book, table=TensorRef(book, "table"), readers={})


def seen(rank: int, K: int, D: int, n: int) -> tuple[Tensor, Tensor]:
    """Return the codes, -1 for every fifth, and the latents of one rank, far from the origin."""
    generator = torch.Generator().manual_seed(50 + rank)
    codes = torch.randint(K // (rank + 1), (n,), generator=generator)
    codes[::5] = -1
    return codes, torch.randn(n, D, generator=generator) * 0.01 + 1.0


def pooled(rank: int, size: int, *, K: int, D: int) -> tuple[Reading, list[int]]:
    ranks, view, window = join_ranks(), view_of(K, D), Window(K, D)
    window.add(*seen(rank, K, D, SIZES[rank]))
    word = Word(step=5, loss=float(rank), epoch=2 if rank == 0 else None)
    roll = call_roll(ranks, word, {"vq": (Part(), sum_up(window, view, size=size))}, {"vq": view})
    assert roll.why_parted() == ""
    reading, counts = reading_of(roll.sums["vq"], view, step=5, epoch=roll.epoch, loss=roll.loss)
    ranks.leave()
    return reading, counts.tolist()


@pytest.mark.parametrize(("K", "D"), [(16, 4), (40, 64)])
def test_pooled_readings_equal_those_of_one_process_and_are_alike_bit_for_bit(crew: Crew, K: int, D: int) -> None:
    readings = crew.run(pooled, 3, K=K, D=D)
    assert readings[0] == readings[1] == readings[2]
    window = Window(K, D)
    for rank, n in enumerate(SIZES):
        window.add(*seen(rank, K, D, n))
    alone, counts = read_window(window, view_of(K, D), step=5, epoch=2, loss=1.0)
    reading, pooled_counts = readings[0]
    assert pooled_counts == counts.tolist()
    exact = (
        "tokens",
        "perplexity",
        "ceiling",
        "perplexity_ratio",
        "usage",
        "dead_fraction",
        "top_share",
        "rest_ratio",
        "loss",
    )
    assert reading.excerpt(*exact, "epoch") == alone.excerpt(*exact, "epoch")
    of_latents = ("norm_ratio", "used_norm_ratio", "latent_rank", "codebook_rank", "latent_variance", "relative_error")
    for name in (*of_latents, "quantization_error", "spread_ratio"):
        assert getattr(reading, name) == pytest.approx(getattr(alone, name), rel=1e-5), name


def rolled(rank: int, size: int, *, seen: tuple[int | None, ...]) -> int | None:
    ranks, view, window = join_ranks(), view_of(8, 4), Window(8, 4)
    part = Part(reshaped=seen[rank])
    roll = call_roll(ranks, Word(step=1), {"vq": (part, sum_up(window, view, size=size))}, {"vq": view})
    assert [each.reshaped for each in roll.parts["vq"]] == list(seen)
    ranks.leave()
    return roll.reshaped("vq")


@pytest.mark.parametrize(
    ("seen", "pooled"), [((None, None), None), ((None, 0), 0), ((0, 1), 1), ((1, None), 1), ((0, 0), 0)]
)
def test_what_any_rank_has_seen_of_the_graph_is_known_to_all(
    crew: Crew, seen: tuple[int | None, ...], pooled: int | None
) -> None:
    assert crew.run(rolled, 2, seen=seen) == [pooled, pooled]


def restless(rank: int, size: int, *, synced: bool) -> list[tuple[int, float | None]]:
    """Return tokens and replacement share of each reading; the ranks see batches of different sizes."""
    torch.manual_seed(0)
    vq = VectorQuantize(8, 16, decay=0.9, threshold_ema_dead_code=4, sync_codebook=synced)
    recorder = Recorder()
    policy = {"version": 1, "name": "looks", "sample": {"every": "3 steps", "min_tokens": 1}, "warmup": "0 steps"}
    rules = [{"name": "low", "when": "perplexity < 0", "ladder": []}]
    with Guard({**policy, "rules": rules}, console=False, sinks=[recorder]).attach(vq) as guard:
        for _ in range(3):
            vq(torch.randn(1, 16 * (rank + 1), 8))
            guard.step()
    return [(event.fields["tokens"], event.fields["replacement_share"]) for event in recorder.of("reading")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("synced", "share"), [(True, 4 * 16 / 48), (False, 4 * 16 / 24)])
def test_tokens_of_a_forward_are_those_of_all_ranks_where_the_quantizer_adds_them_up(
    crew: Crew, synced: bool, share: float
) -> None:
    told = crew.run(restless, 2, synced=synced)
    assert told[0] == told[1] == [(3 * 48, pytest.approx(share))]


def test_latents_that_are_all_the_same_have_no_variance_wherever_they_lie() -> None:
    """Sums about the origin leave rounding behind where sums about the mean leave nothing."""
    view, windows = view_of(8, 4), [Window(8, 4) for _ in range(2)]
    for window in windows:
        window.add(torch.zeros(50, dtype=torch.int64), torch.full((50, 4), 1234.5))
    packed = sum(sum_up(window, view, size=2).pack(index, 2) for index, window in enumerate(windows))
    assert isinstance(packed, np.ndarray)
    reading, _ = reading_of(Sums.unpack(packed, 8, 4, 2), view, step=1)
    assert (reading.latent_variance, reading.relative_error, reading.latent_rank) == (0.0, None, None)


def test_what_is_summed_over_ranks_has_the_length_that_is_told_beforehand() -> None:
    for K, D, size in [(5, 3, 2), (700, 600, 3), (16, 512, 4), (30, 520, 2)]:
        for n in (0, 7, 900):
            window = Window(K, D)
            window.add(torch.zeros(n, dtype=torch.int64), torch.randn(n, D))
            view = view_of(K, D)
            packed = sum_up(window, view, size=size).pack(0, size)
            assert packed.shape == (Sums.length(K, D, size),), (K, D, size, n)
            assert int(Sums.unpack(packed, K, D, size).tallies[0]) == n


def gathered(rank: int, size: int) -> dict[str, Any]:
    view, own = view_of(16, 4), Window(16, 4)
    for forward in range(3 if rank != 1 else 0):
        codes, latents = seen(rank, 16, 4, 20)
        own.add(codes, latents + forward)

    class One:
        window = own

    one = One()
    one.view = view  # type: ignore[attr-defined]
    ranks = join_ranks()
    pool = Pool(ranks)
    (together,) = pool.gather([one])  # type: ignore[list-item]
    window = together.window
    rows = window.rows()
    assert rows is not None
    told = {
        "sample": sorted(window.sample().sum(dim=1).tolist()),
        "latest": sorted(window.latest(3 * 20).sum(dim=1).tolist()),
        "uses": window.uses.tolist() if window.uses is not None else None,
        "forwards": sorted(set(rows.forwards[rows.valid].tolist())),
        "mark": int(fingerprint(window.sample())),
        "begun": window.has_begun,
    }
    window.restart()
    told["own begun"] = own.has_begun
    ranks.leave()
    return told


def test_what_all_ranks_recorded_is_the_same_on_each_and_holds_everybodys_latents(crew: Crew) -> None:
    told = crew.run(gathered, 3)
    assert told[0] == told[1] == told[2]
    latents, counts = [], np.zeros(16, dtype=np.int64)
    newest = []
    for rank in (0, 2):
        codes, values = seen(rank, 16, 4, 20)
        for forward in range(3):
            latents += (values + forward)[codes >= 0].sum(dim=1).tolist()
            counts += np.bincount(codes[codes >= 0].numpy(), minlength=16)
        newest += (values + 2)[codes >= 0].sum(dim=1).tolist()
    assert told[0]["sample"] == pytest.approx(sorted(latents))
    assert told[0]["latest"] == pytest.approx(sorted(newest))
    assert told[0]["uses"] == counts.tolist()
    assert told[0]["forwards"] == [0, 2, 3, 5, 6, 8]
    assert (told[0]["begun"], told[0]["own begun"]) == (True, False)


def test_ranks_with_longer_forwards_count_for_as_many_tokens_as_they_have() -> None:
    """Of 1000 tokens a forward on one rank and 100 on the other, 256 and 100 are kept."""
    owns = [Window(16, 1), Window(16, 1)]
    for rank, size in enumerate((1000, 100)):
        for _ in range(8):
            owns[rank].add(torch.zeros(size, dtype=torch.long), torch.full((size, 1), float(rank)))
    shared = [SharedWindow(own, 2) for own in owns]
    packed = [each.pack() for each in shared]
    for each in shared:
        each.fill(packed, torch.device("cpu"))
    first, second = (each.sample().flatten() for each in shared)
    assert torch.equal(first, second)
    assert int((first == 0).sum()) == 2048
    assert int((first == 1).sum()) == pytest.approx(2048 / 10, abs=4)
