"""Windows count every token; readings agree with independent numpy computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from collapse_guard import GenericVQ, discover
from collapse_guard.adapters import CodebookView
from collapse_guard.measure import read_window
from collapse_guard.statistics import rest_ratio
from collapse_guard.window import Window, ring_capacity
from tests import quantizers

K, D = 16, 8


def view_of(table: Tensor) -> CodebookView:
    quantizer = quantizers.Learnable(*table.shape)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(table)
    described = GenericVQ(table="embedding.weight", codes=lambda output: output[2], commitment="beta")
    return discover(nn.Sequential(quantizer), {"0": described}).views[0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_every_token_is_counted_and_what_is_none_is_not(dtype: torch.dtype) -> None:
    window = Window(K, D)
    codes = torch.tensor([0, 0, 5, -1, 15, 16, -7], dtype=dtype)
    window.add(codes, torch.randn(7, D))
    assert window.tallies is not None
    assert window.tallies[:K].tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert window.tallies[K:].tolist() == [3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_reading_agrees_with_numpy(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(K, D, generator=generator)
    latents = (2 * torch.randn(300, D, generator=generator) + 1).to(dtype)
    codes = torch.randint(0, 5, (300,), generator=generator)
    window, view = Window(K, D), view_of(table)
    for part in range(3):
        window.add(codes[part * 100 : part * 100 + 100], latents[part * 100 : part * 100 + 100])
    reading, counts = read_window(window, view, step=7, epoch=1, loss=0.5)
    z, c = latents.double().numpy(), table.double().numpy()
    expected = np.bincount(codes.numpy(), minlength=K)
    np.testing.assert_array_equal(counts, expected)
    p = expected[expected > 0] / 300
    assert reading.perplexity == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-12)
    assert (reading.step, reading.epoch, reading.loss, reading.tokens, reading.K, reading.D) == (7, 1, 0.5, 300, K, D)
    assert (reading.usage, reading.top_share) == (5 / 16, expected.max() / 300)
    assert reading.rest_ratio == rest_ratio(expected)
    assert reading.dead_fraction == 11 / 16
    assert reading.finite_fraction == 1.0
    assert reading.commitment_weight == 0.25
    norms, lengths = np.linalg.norm(c, axis=1), np.linalg.norm(z, axis=1)

    def lower_median(values: np.ndarray) -> float:
        return float(np.sort(values)[(len(values) - 1) // 2])

    assert reading.norm_ratio == pytest.approx(lower_median(norms) / lower_median(lengths), rel=1e-5)
    assert reading.used_norm_ratio == pytest.approx(lower_median(norms[:5]) / lower_median(lengths), rel=1e-5)
    variance = ((z - z.mean(0)) ** 2).sum(1).mean()
    assert reading.latent_variance == pytest.approx(variance, rel=1e-5)
    error = ((z[:, None] - c[None]) ** 2).sum(-1).min(1).mean()
    assert reading.relative_error == pytest.approx(error / variance, rel=1e-4)
    assert reading.quantization_error == pytest.approx(error, rel=1e-4)
    spread = np.sqrt(((c - c.mean(0)) ** 2).sum(1).mean() / variance)
    assert reading.spread_ratio == pytest.approx(spread, rel=1e-4)
    assert reading.commitment_share == pytest.approx(0.25 * error / D / 0.5, rel=1e-4)
    assert reading.latent_rank == pytest.approx(_effective_rank(z), rel=1e-4)
    assert reading.codebook_rank == pytest.approx(_effective_rank(c), rel=1e-4)


def _effective_rank(rows: np.ndarray) -> float:
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    share = singular / singular.sum()
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize(("rows", "width"), [(40, 600), (700, 513)])
def test_a_wide_codebook_spreads_as_far_as_its_sampled_codes_say(rows: int, width: int) -> None:
    table = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * 3
    window = Window(rows, width)
    window.add(torch.zeros(200, dtype=torch.long), torch.randn(200, width, generator=torch.Generator().manual_seed(1)))
    reading, _ = read_window(window, view_of(table), step=1)
    assert reading.spread_ratio == pytest.approx(3.0, rel=0.02)


def test_no_share_of_the_loss_is_told_while_codes_are_farther_off_than_the_mean() -> None:
    window = Window(K, D)
    window.add(torch.zeros(50, dtype=torch.long), torch.randn(50, D))
    far = read_window(window, view_of(torch.randn(K, D) + 100), step=1, loss=0.5)[0]
    assert (far.relative_error or 0) > 1
    assert far.commitment_share is None


@pytest.mark.parametrize("loss", [None, 0.0, -1.0, math.nan, math.inf])
def test_no_share_of_a_loss_is_told_that_is_not_above_zero(loss: float | None) -> None:
    window = Window(K, D)
    window.add(torch.zeros(50, dtype=torch.long), torch.randn(50, D))
    assert read_window(window, view_of(torch.randn(K, D)), step=1, loss=loss)[0].commitment_share is None


def test_the_reference_collapse_reads_exactly_one() -> None:
    window = Window(256, 4)
    window.add(torch.full((640,), 9), torch.randn(640, 4))
    reading, _ = read_window(window, view_of(torch.randn(256, 4)), step=1)
    assert reading.perplexity == 1.0


def test_an_empty_window_reads_nothing_and_does_not_raise() -> None:
    reading, counts = read_window(Window(K, D), view_of(torch.randn(K, D)), step=1)
    assert (reading.tokens, reading.perplexity, reading.relative_error, counts.sum()) == (0, 0.0, None, 0)


def test_tokens_with_nan_latents_are_counted_apart() -> None:
    window = Window(K, D)
    latents = torch.randn(40, D)
    latents[:10, 3] = float("nan")
    latents[10:12, 0] = float("inf")
    codes = torch.arange(40) % K
    codes[0] = -1
    window.add(codes, latents)
    reading, _ = read_window(window, view_of(torch.randn(K, D)), step=1)
    assert reading.finite_fraction == pytest.approx(1 - 11 / 39)
    assert reading.relative_error is not None
    assert math.isfinite(reading.relative_error)
    assert len(window.sample()) == 28


def test_constant_latents_have_no_variance_and_no_rank() -> None:
    window = Window(K, D)
    window.add(torch.zeros(50, dtype=torch.long), torch.ones(50, D))
    reading, _ = read_window(window, view_of(torch.randn(K, D)), step=1)
    assert (reading.latent_variance, reading.latent_rank, reading.relative_error) == (0.0, None, None)
    assert reading.spread_ratio is None


def test_the_ring_keeps_the_newest_latents_of_several_windows() -> None:
    window = Window(2, 1)
    for value in range(40):
        window.add(torch.zeros(256, dtype=torch.long), torch.full((256, 1), float(value)))
        window.restart()
    assert window.capacity == ring_capacity(2, 1) == 4096
    assert window.sample().unique().tolist() == [float(value) for value in range(24, 40)]
    window.add(torch.zeros(10, dtype=torch.long), torch.full((10, 1), 99.0))
    assert window.spread(512)[0].unique().tolist() == [99.0]


@pytest.mark.parametrize("forwards", [0, 3, 21])
def test_the_newest_latents_are_given_in_their_order_also_around_the_end_of_the_ring(forwards: int) -> None:
    window = Window(2, 1)
    assert window.newest(8) is None
    for start in range(0, 200 * forwards, 200):
        window.add(torch.arange(start, start + 200) % 3 - 1, torch.arange(float(start), start + 200).unsqueeze(1))
    window.add(torch.zeros(10, dtype=torch.long), torch.full((10, 1), -1.0))
    latest = [*range(max(200 * forwards - 290, 0), 200 * forwards)] + 10 * [-1]
    latents, tokens = window.newest(300) or pytest.fail("nothing is given")
    assert latents.flatten().tolist() == latest
    assert tokens.tolist() == [each == -1 or each % 3 != 0 for each in latest]


def test_large_forwards_are_thinned_by_the_windows_own_stream() -> None:
    before = torch.random.get_rng_state()
    kept = []
    for _ in range(2):
        window = Window(4, 2, seed=5)
        window.add(torch.zeros(5000, dtype=torch.long), torch.arange(10000.0).reshape(5000, 2))
        kept.append(window.sample())
    assert torch.equal(kept[0], kept[1])
    assert kept[0].shape == (256, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


RAGGED = (60, 700, 3, 300, 256)


def ragged(window: Window, sizes: tuple[int, ...] = RAGGED, padding: int = 0) -> int:
    """Show a window forwards of these sizes, of which the first ones are padding; the latents are 0, 1, 2, ..."""
    first = 0
    for size in sizes:
        codes = torch.zeros(size, dtype=torch.long)
        codes[: min(padding, size - 1)] = -1
        window.add(codes, torch.arange(first, first + size, dtype=torch.float32).unsqueeze(1))
        first += size
    return first


@pytest.mark.parametrize("taken", ["sample", "latest", "spread"])
def test_tokens_of_forwards_of_any_size_are_equally_likely_to_be_kept(taken: str) -> None:
    """By a chi-square test over tokens, and by the mean of each forward. 256 of each fail by far."""
    seen, trials = np.zeros(sum(RAGGED)), 300
    for seed in range(trials):
        window = Window(4, 1, seed=seed)
        ragged(window)
        if taken == "spread":
            latents, valid = window.spread(200)
            kept = latents[valid]
        else:
            kept = window.sample() if taken == "sample" else window.latest(4096)
        assert len(kept) == len(kept.unique()) == (200 if taken == "spread" else pytest.approx(1319 * 256 / 700, abs=5))
        seen[kept.flatten().long().numpy()] += 1
    expected = seen.sum() / len(seen)
    statistic = float(((seen - expected) ** 2).sum() / (expected * (1 - expected / trials)))
    if taken != "spread":  # which begins at the same place each time
        assert statistic < chi2.ppf(0.999, len(seen) - 1)
    for first, size in zip(np.cumsum((0, *RAGGED)), RAGGED, strict=False):
        assert size == 3 or seen[first : first + size].mean() == pytest.approx(expected, rel=0.1)


def test_forwards_of_which_nothing_is_a_token_do_not_thin_the_others() -> None:
    window = Window(4, 1)
    window.add(torch.full((100_000,), -1), torch.zeros(100_000, 1))
    window.add(torch.zeros(200, dtype=torch.long), torch.ones(200, 1))
    assert window.sample().flatten().tolist() == [1.0] * 200


def test_padded_forwards_give_tokens_alone_and_each_as_likely() -> None:
    window = Window(4, 1)
    ragged(window, padding=30)
    kept = window.sample().flatten()
    starts = np.cumsum((0, *RAGGED))[:-1]
    for first, size in zip(starts, RAGGED, strict=True):
        assert not bool(((kept >= first) & (kept < first + min(30, size - 1))).any())


def test_where_forwards_are_of_one_size_all_that_is_held_is_given_in_the_order_of_the_ring() -> None:
    """Also after forwards of another size have left it."""
    window = Window(4, 1, capacity=512)
    ragged(window)
    for value in range(3):
        window.add(torch.zeros(300, dtype=torch.long), torch.full((300, 1), float(value)))
    assert sorted(window.sample().flatten().tolist()) == [1.0] * 256 + [2.0] * 256


def test_a_restored_window_goes_on_bit_equal() -> None:
    first, second = Window(K, D, seed=3), Window(K, D, seed=3)
    for index in range(30):
        size = 300 + 40 * (index % 3)
        codes = torch.randint(K, (size,), generator=torch.Generator().manual_seed(index))
        latents = torch.randn(size, D, generator=torch.Generator().manual_seed(index))
        if index == 17:
            state = first.state_dict()
            second.load_state_dict(state, torch.device("cpu"))
        first.add(codes, latents)
        if index >= 17:
            second.add(codes, latents)
    assert torch.equal(first.sample(), second.sample())
    assert torch.equal(first.latest(700), second.latest(700))
    assert torch.equal(first.spread(500)[0], second.spread(500)[0])
    assert first.tallies is not None
    assert second.tallies is not None
    assert torch.equal(first.tallies, second.tallies)


def test_the_window_of_another_codebook_is_refused() -> None:
    window = Window(K, D)
    window.add(torch.zeros(3, dtype=torch.long), torch.zeros(3, D))
    with pytest.raises(ValueError, match="expected the window of a 8 x 8 codebook, got one of 16 x 8"):
        Window(8, 8).load_state_dict(window.state_dict(), torch.device("cpu"))


def test_memory_is_bounded_for_wide_and_large_codebooks() -> None:
    assert ring_capacity(16384, 64) == 65_536
    assert ring_capacity(16384, 4096) * 4096 * 4 <= 64 << 20
    assert ring_capacity(2, 100_000_000) == 1


def test_a_reading_under_autocast_is_the_same() -> None:
    window, view = Window(K, D), view_of(torch.randn(K, D))
    window.add(torch.arange(200) % K, torch.randn(200, D))
    outside, _ = read_window(window, view, step=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = read_window(window, view, step=1)
    assert inside == outside


def test_a_window_that_began_under_inference_mode_goes_on_outside_of_it() -> None:
    window = Window(K, D)
    with torch.inference_mode():
        window.add(torch.zeros(5, dtype=torch.long), torch.randn(5, D))
    window.add(torch.zeros(5, dtype=torch.long), torch.randn(5, D))
    assert window.tallies is not None
    assert int(window.tallies[0]) == 10
