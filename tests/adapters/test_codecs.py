"""Audio codecs with a moving-average codebook, the real packages: what is counted, and when; what a write must reach.

The contract of tests/contract runs on each class by itself; here is what only shows in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook

from collapse_guard import CodebookView, Guard, discover
from collapse_guard.adapters import survey
from collapse_guard.interventions import Site, Transaction, find_intervention
from collapse_guard.policies import ResetCodes
from collapse_guard.probe import Probe
from tests.contract import audiocraft, encodec, moshi, transformers_codecs
from tests.contract.packages import import_inside
from tests.loops import Recorder


@contextmanager
def probes_on(model: nn.Module) -> Iterator[list[Probe]]:
    """Probes on all codebooks of a model, in the order in which they were found."""

    def fail(error: Exception) -> None:
        raise error

    probes = [Probe(view, seed=0, on_error=fail) for view in discover(model).views]
    for probe in probes:
        probe.install()
    try:
        yield probes
    finally:
        for probe in probes:
            probe.remove()


def counted(probe: Probe) -> list[int]:
    tallies = probe.window.tallies
    return [0] * probe.view.K if tallies is None else tallies[: probe.view.K].tolist()


def histogram(codes: list[Tensor], K: int = 16) -> list[int]:
    """Count codes by a plain loop."""
    counts = [0] * K
    for tensor in codes:
        for code in tensor.reshape(-1).tolist():
            counts[code] += 1
    return counts


# What is counted


def test_levels_that_audiocraft_drops_at_random_are_counted_only_in_the_steps_that_used_them() -> None:
    torch.manual_seed(0)
    model = audiocraft.vq.ResidualVectorQuantizer(dimension=8, n_q=4, bins=16, q_dropout=True, kmeans_init=False)
    returned: list[list[Tensor]] = [[], [], [], []]
    with probes_on(model.train()) as probes:
        for _ in range(12):
            codes = model(audiocraft.audio(), 50).codes  # (B, levels used, T)
            for level in range(codes.shape[1]):
                returned[level].append(codes[:, level])
        assert len({len(each) for each in returned}) > 1, "no level was ever dropped"
        assert [counted(probe) for probe in probes] == [histogram(each) for each in returned]


def test_levels_beyond_the_bandwidth_are_not_counted() -> None:
    torch.manual_seed(0)
    model = encodec.vq.ResidualVectorQuantizer(dimension=8, n_q=4, bins=16, kmeans_init=False)
    with probes_on(model.train()) as probes:
        codes = model(audiocraft.audio(), 50, bandwidth=0.4).codes  # kbps: two levels of 4 bits, 50 times a second
        assert codes.shape[0] == 2
        assert [counted(probe) for probe in probes] == [histogram([*codes[n : n + 1]]) for n in range(4)]


def test_encodec_of_transformers_is_counted_at_every_bandwidth() -> None:
    torch.manual_seed(0)
    model = transformers_codecs.encodec_model().train()
    with probes_on(model) as probes:
        runs = [model(transformers_codecs.sound(), bandwidth=kbps).audio_codes[0] for kbps in (0.4, 1.2, 0.4)]
        assert [run.shape[1] for run in runs] == [1, 3, 1]
        for level, probe in enumerate(probes):
            assert counted(probe) == histogram([run[:, level] for run in runs if run.shape[1] > level])


ENCODES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "encodec": (
        lambda: encodec.vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16, kmeans_init=False),
        lambda module, x: module.encode(x, 50),
    ),
    "audiocraft": (
        lambda: audiocraft.vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16, kmeans_init=False),
        lambda module, x: module.encode(x).transpose(0, 1),
    ),
    "moshi": (
        lambda: moshi.started(moshi.vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16), 50),
        lambda module, x: module.encode(x).transpose(0, 1),
    ),
}


@pytest.mark.parametrize("package", ENCODES)
def test_encode_of_the_root_counts_as_forward_does_while_the_module_trains(package: str) -> None:
    build, encode = ENCODES[package]
    torch.manual_seed(0)
    model = build()
    x = audiocraft.audio()
    with probes_on(model.train()) as probes:
        codes = encode(model, x)  # (levels, B, T)
        assert [counted(probe) for probe in probes] == [histogram([level]) for level in codes]
        model(x, 50)
        assert all(sum(counted(probe)) == 2 * codes[0].numel() for probe in probes)
        encode(model.eval(), x)
        assert all(sum(counted(probe)) == 2 * codes[0].numel() for probe in probes)


def test_moshis_levels_are_counted_from_their_own_start_on() -> None:
    """Each starts one forward after the one before; until then it codes by a table of zeros that was hardly moved."""
    torch.manual_seed(0)
    model = moshi.vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16).train()
    with probes_on(model) as probes:
        model.encode(moshi.audio())  # before any start
        runs = [model(moshi.audio(), 50).codes for _ in range(5)]
        assert all(len(run[:, 2].unique()) <= 2 for run in runs[:2])
        for level, probe in enumerate(probes):
            assert counted(probe) == histogram([run[:, level] for run in runs[level:]])


def test_int32_codes_and_negative_ones_are_counted_right() -> None:
    class Padded(encodec.core.EuclideanCodebook):  # type: ignore[misc, name-defined]
        """Marks what is padding, in narrow integers, as wrappers do."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            q, codes = super().forward(x)
            codes = codes.int()
            codes[:, 40:] = -1
            return q, codes

    torch.manual_seed(0)
    model = nn.Sequential(Padded(dim=8, codebook_size=16))
    with probes_on(model.train()) as probes:
        _, codes = model(audiocraft.audio().transpose(1, 2))
        assert codes.dtype is torch.int32
        assert counted(probes[0]) == histogram([codes[:, :40]])
        assert probes[0].window.tallies is not None
        assert int(probes[0].window.tallies[16]) == 4 * 24


HALVES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "encodec": (
        lambda: encodec.core.EuclideanCodebook(dim=8, codebook_size=16),
        lambda module, x: module(x)[1],
    ),
    "moshi": (
        lambda: moshi.started(moshi.core.EuclideanCodebook(dim=8, codebook_size=16), channel_last=True),
        lambda module, x: module(x).codes,
    ),
    "Mimi": (
        transformers_codecs.mimi_codebook,
        lambda module, x: module.encode(x),
    ),
}


@pytest.mark.parametrize("family", HALVES)
def test_bf16_codebooks_are_counted_right_and_keep_what_a_reset_wrote(family: str) -> None:
    build, run = HALVES[family]
    torch.manual_seed(0)
    module = build().to(torch.bfloat16)
    model = nn.Sequential(module).train()

    def batch() -> Tensor:
        return audiocraft.audio().transpose(1, 2).to(torch.bfloat16)

    with probes_on(model) as probes, torch.no_grad():
        codes = [run(module, batch()) for _ in range(3)]
        probe, view = probes[0], probes[0].view
        assert counted(probe) == histogram(codes)
        rows = torch.arange(8, 16)
        view.write_rows(rows, -50 + torch.arange(8.0).unsqueeze(-1).expand(8, 8), torch.ones(8))
        probe.window.restart()
        run(module, batch())
        reset(probe, rows)
        written = view.codebook()[rows].clone()
        hit = set(run(module, batch()).reshape(-1).tolist())
        unhit = [index for index, row in enumerate(rows.tolist()) if row not in hit]
        torch.testing.assert_close(view.codebook()[rows][unhit], written[unhit], rtol=2**-6, atol=2**-6)
        probe.window.restart()
        for _ in range(3):
            run(module, batch())
        assert np.count_nonzero(np.array(counted(probe))[rows.numpy()]) >= 4


def reset(probe: Probe, rows: Tensor) -> Transaction:
    """Reset codes that the window shows as dead, which must be the given ones."""
    counts = np.array(counted(probe))
    assert not counts[rows.numpy()].any()
    site = Site(probe.view, probe.window, [], counts, seed=0)
    intervention = find_intervention("reset_codes")(ResetCodes(scope="dead"), site)
    assert intervention.refusal() is None
    transaction = Transaction(intervention.parts())
    intervention.apply()
    transaction.check()
    return transaction


def test_a_quantizer_of_which_the_codes_are_its_own_latents_is_not_taken_for_one() -> None:
    base = import_inside("audiocraft", "quantization.base")
    assert survey(nn.Sequential(base.DummyQuantizer())).views == ()


# What a write must reach


def mimi_codebook() -> tuple[Any, CodebookView]:
    torch.manual_seed(0)
    leaf = transformers_codecs.mimi_codebook()
    (view,) = discover(nn.Sequential(leaf)).views
    return leaf, view


def test_looking_at_a_codec_fills_no_cache_so_that_weights_loaded_later_count() -> None:
    loaded, _ = mimi_codebook()
    empty = MimiEuclideanCodebook(MimiConfig(**transformers_codecs.MIMI))
    (view,) = discover(nn.Sequential(empty)).views
    assert not view.codebook().any()
    assert empty._embed is None
    empty.load_state_dict(loaded.state_dict())
    assert torch.equal(view.codebook(), loaded.embed)
    assert torch.equal(empty.embed, loaded.embed)
    unstarted = moshi.core.EuclideanCodebook(dim=8, codebook_size=16)
    assert not discover(unstarted).views[0].codebook().any()
    assert unstarted._embedding is None


def test_the_table_is_what_is_searched_even_where_the_cache_is_out_of_date() -> None:
    """Mimi's cache follows neither a cast nor weights that are loaded; a write brings both together again."""
    leaf, view = mimi_codebook()
    searched = leaf.embed.clone()
    leaf.double()
    leaf.embed_sum.mul_(2)
    assert torch.equal(view.codebook(), searched)
    x = audiocraft.audio().transpose(1, 2).reshape(-1, 8)
    nearest = (x.double().unsqueeze(1) - searched.double()).square().sum(-1).argmin(1)
    assert torch.equal(leaf.encode(x), nearest)
    view.write_rows(torch.tensor([3]), torch.full((1, 8), 7.0))
    assert leaf._embed is None
    torch.testing.assert_close(view.codebook()[3], torch.full((8,), 7.0, dtype=torch.float64))
    assert view.codebook().dtype is torch.float64


def test_a_row_written_with_hardly_any_usage_is_the_vector_all_the_same() -> None:
    torch.manual_seed(0)
    leaf: Any = moshi.started(moshi.core.EuclideanCodebook(dim=8, codebook_size=16), channel_last=True)
    (view,) = discover(leaf).views
    leaf.cluster_usage[:2] = torch.tensor([0.0, 1e-9])  # codes that were not used for long
    view.write_rows(torch.tensor([0, 1]), torch.full((2, 8), 3.0))
    torch.testing.assert_close(view.codebook()[:2], torch.full((2, 8), 3.0))


def test_moshis_own_replacement_rests_while_the_guard_manages_its_codebook() -> None:
    torch.manual_seed(0)
    leaf: Any = moshi.started(moshi.core.EuclideanCodebook(dim=8, codebook_size=16), channel_last=True)
    (view,) = discover(leaf).views
    unused = torch.arange(8, 16)

    def survivors() -> int:
        view.write_rows(unused, torch.full((8, 8), -50.0), torch.full((8,), 1e-3))
        for _ in range(leaf.check_unused_every):
            moshi.started(leaf, channel_last=True)
        return int((view.codebook()[unused].mean(dim=1) < -40).sum())

    assert survivors() == 0  # its own replacement took them all
    view.take_over()
    assert survivors() == len(unused)
    view.give_back()
    assert leaf.threshold_usage_ratio == 0.1
    assert survivors() == 0


def test_a_reset_holds_where_a_codec_counts_no_usage() -> None:
    """Codecs that learn nothing need no counts; a checkpoint may come without them."""
    torch.manual_seed(0)
    leaf = transformers_codecs.encodec_codebook()
    leaf.cluster_size.zero_()
    rows = torch.arange(8, 16)
    leaf.embed[rows] = -50.0
    with probes_on(nn.Sequential(leaf).train()) as probes:
        for _ in range(3):
            leaf.encode(audiocraft.audio().transpose(1, 2))
        reset(probes[0], rows)
        probes[0].window.restart()
        leaf.encode(audiocraft.audio().transpose(1, 2))
        assert np.count_nonzero(np.array(counted(probes[0]))[rows.numpy()]) >= 4


def test_a_level_that_is_often_dropped_keeps_what_a_reset_wrote() -> None:
    torch.manual_seed(0)
    model = audiocraft.vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16, q_dropout=True, kmeans_init=False)
    with probes_on(model.train()) as probes, torch.no_grad():
        probe, rows = probes[2], torch.arange(8, 16)

        def train(steps: int) -> None:
            for _ in range(steps):
                model(audiocraft.audio(), 50)

        train(6)
        probe.view.write_rows(rows, -50 + torch.arange(8.0).unsqueeze(-1).expand(8, 8), torch.ones(8))
        probe.view.take_over()
        probe.window.restart()
        train(6)
        reset(probe, rows)
        probe.window.restart()
        written = probe.view.codebook()[rows].clone()
        while not sum(counted(probe)):
            assert torch.equal(probe.view.codebook()[rows], written)  # a step without the level changes no bit of it
            train(1)
        unhit = [index for index, row in enumerate(rows.tolist()) if not counted(probe)[row]]
        torch.testing.assert_close(probe.view.codebook()[rows][unhit], written[unhit], rtol=1e-4, atol=1e-4)
        train(6)
        assert np.count_nonzero(np.array(counted(probe))[rows.numpy()]) >= 4


# What is no collapse


def test_a_codec_without_weights_is_not_measured_until_they_are_loaded() -> None:
    torch.manual_seed(0)
    loaded = transformers_codecs.mimi_model()
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**transformers_codecs.MIMI)).train()
    recorder = Recorder()
    policy = {
        "version": 1,
        "name": "p",
        "sample": {"every": "2 steps", "when_suspect": "2 steps", "min_tokens": 1},
        "warmup": "0 steps",
        "rules": [{"name": "collapsed", "when": "perplexity < 1.5", "for": 1, "ladder": [{"reset_codes": {}}]}],
    }
    with Guard(policy, console=False, sinks=[recorder]) as guard:
        guard.attach(model)

        def step() -> Any:
            codes = model(transformers_codecs.sound()).audio_codes
            guard.step()
            return codes

        for _ in range(6):
            assert not step().any()  # all code 0
        assert not recorder.of("reading", "alert", "intervention")
        assert len(recorder.of("fault")) == 3
        assert all("not initialised yet" in fault.fields["reason"] for fault in recorder.of("fault"))
        step()  # half a window without weights
        model.load_state_dict(loaded.state_dict())
        step()  # the tables of zeros are still in the caches
        for view in discover(model).views:
            view.written()
        step()
        step()
        assert not recorder.of("reading")
        codes = [step() for _ in range(2)]
        readings = recorder.of("reading")
        assert len(readings) == 3
        for level, reading in enumerate(readings):
            counts = np.array(histogram([each[:, level] for each in codes]))
            shares = counts[counts > 0] / counts.sum()
            assert reading.fields["tokens"] == counts.sum()
            assert reading.fields["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
