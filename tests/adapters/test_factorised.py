"""Factorised codecs: what the contract does not ask, on real packages and on copies of their class."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DacModel

from collapse_guard import CodebookView, Guard, discover
from collapse_guard.adapters import survey
from collapse_guard.interventions import Site, find_intervention
from collapse_guard.policies import ResetCodes
from collapse_guard.probe import Probe
from collapse_guard.residual import follows
from tests.contract.case import offset_data
from tests.contract.dac import build_quietly, dac, kept_levels, started_dac, tiny_dac
from tests.contract.snac import snac
from tests.loops import Recorder

C, K, D = 8, 16, 4


def descript(dropout: float = 0.0) -> Any:
    return build_quietly(lambda: dac.ResidualVectorQuantize(C, 3, K, D, dropout))()


def leaf() -> Any:
    return build_quietly(lambda: dac.VectorQuantize(C, K, D))()


def strided() -> Any:
    return build_quietly(lambda: snac.ResidualVectorQuantize(C, K, D, [4, 2, 1]))()


def probed(module: nn.Module) -> list[Probe]:
    """Probes on each codebook, recording."""

    def fail(error: Exception) -> None:
        raise error

    probes = [Probe(view, seed=0, on_error=fail) for view in discover(module).views]
    for probe in probes:
        probe.install()
    return probes


def counts_of(probe: Probe) -> list[int]:
    tallies = probe.window.tallies
    return [0] * probe.view.K if tallies is None else tallies[: probe.view.K].tolist()


def histogram(codes: Tensor) -> list[int]:
    return [int((codes == code).sum()) for code in range(K)]


# Copies of the class, with what their authors changed


class Copy(nn.Module):
    """As in BigCodec and Amphion: linear projections or none, a weight of the commitment, other outputs."""

    def __init__(
        self, width: int = C, *, linear: bool = True, unit_search: bool = True, unit_rows: bool = False
    ) -> None:
        super().__init__()
        self.linear, self.unit_search, self.unit_rows = linear, unit_search, unit_rows
        self.commitment = 0.25
        if width == D:
            self.in_project: nn.Module = nn.Identity()
            self.out_project: nn.Module = nn.Identity()
        elif linear:
            self.in_project, self.out_project = nn.Linear(width, D), nn.Linear(D, width)
        else:
            self.in_project, self.out_project = nn.Conv1d(width, D, 1), nn.Conv1d(D, width, 1)
        self._codebook = nn.Embedding(K, D)

    @property
    def codebook(self) -> nn.Embedding:
        return self._codebook

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return rows as they are searched and as they are decoded."""
        raw = self.codebook.weight
        unit = functional.normalize(raw)
        return unit if self.unit_search else raw, unit if self.unit_rows else raw

    def forward(self, z: Tensor) -> Any:
        latents = self.apply_to(self.in_project, z)
        flat = latents.movedim(1, -1).reshape(-1, D)
        searched, decoded = self.rows()
        codes = torch.cdist(functional.normalize(flat) if self.unit_search else flat, searched).argmin(-1)
        codes = codes.reshape(z.shape[0], -1)
        rows = decoded[codes].movedim(-1, 1)
        loss = self.commitment * functional.mse_loss(latents, rows.detach()) + functional.mse_loss(
            rows, latents.detach()
        )
        z_q = self.apply_to(self.out_project, latents + (rows - latents).detach())
        return {"z_q": z_q, "indices": codes, "vq_loss": loss, "active_num": torch.tensor(3)}

    def apply_to(self, projection: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = projection(x.transpose(1, 2)).transpose(1, 2) if self.linear else projection(x)
        return y


class ChannelLast(Copy):
    """Takes and returns (B, T, C)."""

    def forward(self, z: Tensor) -> Any:
        output = super().forward(z.transpose(1, 2))
        return output["z_q"].transpose(1, 2), output["indices"], output["vq_loss"]


@pytest.mark.parametrize(
    ("build", "metric", "decodes_raw"),
    [
        (lambda: Copy(), "cosine", True),
        (lambda: Copy(linear=False), "cosine", True),
        (lambda: Copy(D), "cosine", True),
        (lambda: Copy(unit_search=False), "l2", True),
        (lambda: Copy(unit_rows=True), "cosine", False),
        (lambda: ChannelLast(), "cosine", True),
    ],
    ids=["linear", "conv", "no projection", "l2", "decodes unit rows", "channel last"],
)
def test_copies_of_the_class_are_recognised_with_what_was_changed_in_them(
    build: Callable[[], Copy], metric: str, decodes_raw: bool
) -> None:
    module: Any = build().train()
    (view,) = discover(module).views
    assert (view.adapter, view.metric, view.decodes_raw, view.K, view.D) == ("factorised", metric, decodes_raw, K, D)
    assert view.commitment is not None
    assert view.commitment.get() == 0.25
    (probe,) = probed(module)
    channels = -1 if isinstance(module, ChannelLast) else 1
    width = D if isinstance(module.in_project, nn.Identity) else C
    x = offset_data(4, width, 10, channel=1).movedim(1, channels)
    output = module(x)
    codes = output["indices"] if isinstance(output, dict) else output[1]
    assert counts_of(probe) == histogram(codes)
    rows = probe.window.rows()
    assert rows is not None
    expected = module.apply_to(module.in_project, x.movedim(channels, 1)).movedim(1, -1).reshape(-1, D)
    torch.testing.assert_close(rows.latents, expected.detach())


class Attention(nn.Module):
    """Projections around an embedding that codes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj, self.out_proj, self.codebook = nn.Linear(C, D), nn.Linear(D, C), nn.Embedding(K, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_proj(self.in_proj(x) + self.codebook(torch.arange(x.shape[1]) % K))
        return y


class Random(Copy):
    """Its codes are drawn, not searched for."""

    def forward(self, z: Tensor) -> Any:
        output = super().forward(z)
        return output | {"indices": torch.randint(K, output["indices"].shape)}


class Broken(Copy):
    def forward(self, z: Tensor) -> Any:
        raise RuntimeError("not yet")


@pytest.mark.parametrize("kind", [Attention, Random, Broken])
def test_the_names_alone_are_not_enough(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(kind())
    found = survey(model)
    assert not found.views
    assert [(item.name, "no trial forward" in item.reason) for item in found.unrecognised] == [("0", True)]


def test_recognition_after_training_touches_no_bit_and_no_random_stream() -> None:
    module = descript(0.5).train()
    module(torch.randn(4, C, 20))[0].sum().backward()  # normalised weights now hold a graph: no deep copy is possible
    saved = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    stream, hooks = torch.get_rng_state(), len(module.quantizers[0]._forward_hooks)
    assert len(discover(module).views) == 3
    torch.testing.assert_close(module.state_dict(), saved, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), stream)
    assert len(module.quantizers[0]._forward_hooks) == hooks
    assert module.quantizer_dropout == 0.5


# Levels that are dropped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["descript", "transformers"])
def test_the_tokens_of_dropped_levels_are_not_counted(kind: str, dropout: float, dtype: torch.dtype) -> None:
    quantizer = descript(dropout) if kind == "descript" else started_dac(quantizer_dropout=dropout).quantizer
    quantizer = quantizer.to(dtype).train()
    width = cast(nn.Conv1d, quantizer.quantizers[0].in_proj).in_channels
    probes = probed(quantizer)
    expected = torch.zeros(3, K, dtype=torch.int64)
    for _ in range(4):
        x, stream = offset_data(16, width, 9, channel=1).to(dtype), torch.get_rng_state()
        codes = quantizer(x)[1]
        kept = kept_levels(quantizer, 16, stream)
        for level in range(3):
            expected[level] += torch.tensor(histogram(codes[kept > level, level]))
    assert [counts_of(probe) for probe in probes] == expected.tolist()
    tokens = expected.sum(dim=1)
    assert int(tokens[0]) == 4 * 16 * 9  # the coarsest is never dropped
    assert bool((tokens[1:] < tokens[:-1]).all()) == (dropout > 0)


def test_dropout_that_is_turned_on_later_is_noticed() -> None:
    quantizer = descript().train()
    probes = probed(quantizer)
    quantizer(torch.randn(8, C, 10))
    assert [sum(counts_of(probe)) for probe in probes] == [80, 80, 80]
    quantizer.quantizer_dropout = True
    stream = torch.get_rng_state()
    quantizer(torch.randn(8, C, 10, generator=torch.Generator().manual_seed(3)))
    kept = kept_levels(quantizer, 8, stream)
    assert [sum(counts_of(probe)) - 80 for probe in probes] == [10 * int((kept > level).sum()) for level in range(3)]


class Forgetful(nn.Module):
    """A residual with dropout whose output does not say what was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(leaf() for _ in range(2))
        self.quantizer_dropout = 0.5

    def forward(self, x: Tensor) -> Tensor:
        codes = []
        for quantizer in self.quantizers:
            quantized, _, _, own, _ = quantizer(x)
            x = x - quantized
            codes.append(own)
        return torch.stack(codes)


def test_where_dropped_levels_cannot_be_told_the_report_says_so() -> None:
    model = nn.Sequential(Forgetful())
    found = discover(model)
    assert [view.name for view in found.views] == ["0.quantizers.0", "0.quantizers.1"]
    assert [item.name for item in found.unrecognised] == ["0"]
    assert "count as tokens of the finer levels" in found.unrecognised[0].reason


# What is counted, and what is not


def test_only_forwards_count_and_decoding_does_not() -> None:
    quantizer = descript().train()
    probes = probed(quantizer)
    _, codes, latents, *_ = quantizer(torch.randn(2, C, 10))
    before = [counts_of(probe) for probe in probes]
    assert [sum(each) for each in before] == [20, 20, 20]
    quantizer.from_codes(codes)
    quantizer.from_latents(latents)
    quantizer.quantizers[0].decode_latents(latents[:, :D])
    assert [counts_of(probe) for probe in probes] == before


def test_encode_and_forward_of_the_model_count_each_token_once() -> None:
    model: Any = started_dac(quantizer_dropout=0.5).train()
    probes = probed(model)
    expected = torch.zeros(3, K, dtype=torch.int64)
    for call in (model.encode, model):
        audio, stream = torch.randn(4, 1, 64), torch.get_rng_state()
        codes = call(audio).audio_codes
        kept = kept_levels(model.quantizer, 4, stream)
        for level in range(3):
            expected[level] += torch.tensor(histogram(codes[kept > level, level]))
    assert [counts_of(probe) for probe in probes] == expected.tolist()
    model.eval()
    model.encode(torch.randn(4, 1, 64), n_quantizers=2)
    assert [counts_of(probe) for probe in probes] == expected.tolist()


def test_levels_of_different_lengths_are_counted_each_with_its_own_tokens() -> None:
    quantizer = strided().train()
    probes = probed(quantizer)
    x = offset_data(3, C, 32, channel=1)
    codes = quantizer(x)[1]
    assert [sum(counts_of(probe)) for probe in probes] == [3 * 8, 3 * 16, 3 * 32]
    assert [counts_of(probe) for probe in probes] == [histogram(own) for own in codes]
    rows = probes[0].window.rows()
    assert rows is not None
    pooled = x.reshape(3, C, 8, 4).mean(-1)  # the average of four frames is one token
    torch.testing.assert_close(rows.latents, quantizer.quantizers[0].in_proj(pooled).movedim(1, -1).reshape(-1, D))


@pytest.mark.parametrize("build", [strided, descript])
def test_codebooks_are_named_by_their_path_also_where_the_residual_is_the_whole_model(build: Callable[[], Any]) -> None:
    assert [(view.name, view.group, view.level) for view in discover(build()).views] == [
        (f"quantizers.{level}", "quantizers", level) for level in range(3)
    ]


@pytest.mark.parametrize("build", [strided, descript])
@pytest.mark.parametrize("frames", [32, 512])
def test_finer_latents_are_never_taken_for_what_a_coarser_level_left_over(
    build: Callable[[], Any], frames: int
) -> None:
    """Each level has projections of its own, and snac's have tokens of their own: nothing can be subtracted."""
    model = nn.ModuleDict({"quantizer": build().train()})
    probes = probed(model)
    assert [(probe.view.group, probe.view.level) for probe in probes] == [
        ("quantizer.quantizers", level) for level in range(3)
    ]
    for _ in range(6):
        model["quantizer"](offset_data(4, C, frames, channel=1))
    for coarse, fine in itertools.pairwise(probes):
        assert not follows(coarse.window, fine.window)


# What is written


def batched(quantizer: Any, x: Tensor) -> Tensor:
    """Return projected latents, row by row."""
    return cast(Tensor, quantizer.in_proj(x)).movedim(1, -1).reshape(-1, D)


@pytest.mark.parametrize("scope", ["all", "dead"])
@pytest.mark.parametrize("scale", [0.05, 20.0])
def test_rows_that_are_reset_get_the_length_that_reconstructs_best(scope: Any, scale: float) -> None:
    """The angle finds a row, and the raw row comes out: for its direction u the best length is the mean of z.u."""
    quantizer = leaf().train()
    (probe,) = probed(quantizer)

    def batch(items: int) -> Tensor:
        return scale * (offset_data(items, C, 64, channel=1) - 2.0)

    @torch.no_grad()
    def error() -> float:
        latents = quantizer.in_proj(batch(16))
        rows, _ = quantizer.decode_latents(latents)
        return float((rows - latents).double().square().sum() / latents.double().square().sum())

    with torch.no_grad():
        quantizer.in_proj.bias.zero_()
        weight, half = quantizer.codebook.weight, K // 2
        weight[:half] = quantizer.in_proj(batch(1))[0, :, :half].T
        tries, unit = functional.normalize(torch.randn(4096, D)), functional.normalize(batched(quantizer, batch(16)))
        nearest = (unit @ functional.normalize(weight[:half]).T).amax(dim=1, keepdim=True)
        lonely = tries[(unit @ tries.T - nearest).amax(dim=0).argmin()]  # where no latent looks
        weight[half:] = lonely + 1e-3 * torch.randn(half, D)
    for _ in range(8):
        quantizer(batch(4))
    view, tallies, before = probe.view, probe.window.tallies, error()
    assert tallies is not None
    counts = tallies[:K].numpy().copy()
    dead = torch.as_tensor(counts < 0.1 * counts.mean())
    intervention = find_intervention("reset_codes")(
        ResetCodes(scope=scope), Site(view, probe.window, [], counts, seed=0)
    )
    assert intervention.refusal() is None
    intervention.apply()
    assert error() < 0.6 * before
    table, latents = view.codebook().double(), probe.window.sample().double()
    codes = (functional.normalize(latents) @ functional.normalize(table).T).argmax(dim=1)
    for row in dead.nonzero().flatten().tolist() if scope == "dead" else range(K):
        own, length = latents[codes == row], table[row].norm()
        assert len(own)
        torch.testing.assert_close(length, (own @ table[row] / length).mean(), rtol=1e-4, atol=0.0)


# A codec that trains


def test_a_tiny_dac_is_found_without_arguments_and_its_counts_are_those_of_its_audio_codes() -> None:
    torch.manual_seed(0)
    model: Any = DacModel(tiny_dac(quantizer_dropout=0.5)).train()
    model.apply_weight_norm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    recorder = Recorder()
    policy = {"version": 1, "name": "look", "extends": "observe", "sample": {"every": "6 steps", "min_tokens": 16}}
    guard = Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer)
    codes: list[list[Tensor]] = [[], [], []]
    for _ in range(6):
        audio, stream = torch.randn(4, 1, 128), torch.get_rng_state()
        output = model(audio)
        kept = kept_levels(model.quantizer, 4, stream)
        for level in range(3):
            codes[level].append(output.audio_codes[kept > level, level])
        loss = (output.audio_values - audio[:, 0]).abs().mean() + output.loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step(loss=loss.item())
    guard.close()
    readings = {event.fields["codebook"]: event.fields for event in recorder.of("reading")}
    assert list(readings) == [f"quantizer.quantizers.{level}" for level in range(3)]
    for level, reading in enumerate(readings.values()):
        tokens = torch.cat([each.reshape(-1) for each in codes[level]])
        shares = torch.tensor(histogram(tokens)).double() / len(tokens)
        entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
        assert reading["tokens"] == len(tokens)
        assert reading["perplexity"] == pytest.approx(float(entropy.exp()))
        assert reading["usage"] == float((shares > 0).double().mean())
        assert reading["commitment_weight"] == 0.25
    assert recorder.of("fault") == []


def test_the_weight_that_all_levels_share_is_decayed_once_for_all_of_them() -> None:
    torch.manual_seed(0)
    model = started_dac().train()
    rule = {"name": "low", "when": "perplexity < 1000", "for": 1, "ladder": [{"decay_commitment": {"factor": 0.5}}]}
    sample = {"every": "2 steps", "when_suspect": "2 steps", "min_tokens": 16}
    policy = {"version": 1, "name": "weigh", "warmup": "0 steps", "sample": sample, "rules": [rule]}
    recorder = Recorder()
    guard = Guard(policy, console=False, sinks=[recorder]).attach(model)
    losses = []
    for _ in range(3):
        with torch.no_grad():
            torch.manual_seed(1)
            losses.append(float(model(torch.randn(4, 1, 128)).loss.mean()))
        guard.step()
    (act,) = recorder.of("intervention")
    assert [member["result"] for member in act.fields["members"]] == ["applied", "postponed", "postponed"]
    assert "is also that of quantizer.quantizers.0" in act.fields["members"][1]["summary"]
    assert model.config.commitment_loss_weight == 0.125
    # untrained, both terms of the loss are equal: 0.25 + 1 before, 0.125 + 1 after, read live
    assert losses[2] / losses[1] == pytest.approx(1.125 / 1.25)
    guard.close()


def test_autocast_is_no_obstacle() -> None:
    quantizer = descript(0.5).train()
    probes = probed(quantizer)
    x, stream = offset_data(8, C, 12, channel=1), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer(x)[1]
    kept = kept_levels(quantizer, 8, stream)
    assert [counts_of(probe) for probe in probes] == [histogram(codes[kept > level, level]) for level in range(3)]


class Wrapper(nn.Module):
    """Has a configuration of its own, of which nobody knows when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(commitment_loss_weight=0.25)
        self.quantizer = descript()


def test_a_weight_of_some_other_configuration_is_not_taken_for_a_live_one() -> None:
    assert all(view.commitment is None for view in discover(Wrapper()).views)


def view_of(model: nn.Module) -> CodebookView:
    return discover(model).views[0]


def test_the_commitment_weight_is_said_to_be_outside_where_the_module_has_none() -> None:
    for quantizer in (descript(), leaf(), strided()):
        assert "the script that trains it" in str(view_of(quantizer).why_not("commitment"))


class Codec(nn.Module):
    """An encoder before descript's residual quantizer, with the losses of its training script."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(C, C, 1)
        self.quantizer = build_quietly(lambda: dac.ResidualVectorQuantize(C, 3, 32, D, 0.25))()

    def forward(self, x: Tensor) -> Tensor:
        decoded, _, _, commitment, codebook = self.quantizer(self.encoder(x))
        loss: Tensor = (decoded - x).square().mean() + 0.25 * commitment + codebook
        return loss

    @torch.no_grad()
    def collapse(self, x: Tensor) -> None:
        """Let one code of each level take nearly all, the others looking where the fewest latents look."""
        left = self.encoder(x)
        for level in cast(Any, self.quantizer).quantizers:
            unit = functional.normalize(batched(level, left), dim=-1)
            tries = functional.normalize(torch.randn(4096, D), dim=-1)
            left = left - level.out_proj(level.decode_latents(level.in_proj(left))[0])
            level.codebook.weight[1:] = tries[(unit @ tries.T).amax(dim=0).argmin()] + 1e-4 * torch.randn(31, D)
            level.codebook.weight[0] = unit.mean(dim=0)


def test_the_collapsed_levels_of_a_codec_are_repaired_one_after_another() -> None:
    torch.manual_seed(0)
    centres = torch.randn(200, C)

    def batch() -> Tensor:
        return (centres[torch.randint(200, (8, 64))] + 0.3 * torch.randn(8, 64, C)).movedim(-1, 1)

    model, recorder = Codec().train(), Recorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sample = {"every": "10 steps", "when_suspect": "10 steps", "min_tokens": 256}
    policy = {"version": 1, "name": "short", "extends": "default", "sample": sample}
    guard = Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer)
    for step in range(240):
        if step == 40:
            model.collapse(batch())
        loss = model(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step(loss=loss.item())
    guard.close()
    collapsed = {event.fields["codebook"]: event.fields for event in recorder.of("reading") if event.step == 60}
    assert len(collapsed) == 3
    assert all(reading["perplexity"] < 5 for reading in collapsed.values())
    ends = {event.fields["codebook"]: event.fields for event in recorder.of("reading") if event.step == 240}
    assert all(reading["perplexity"] > 20 for reading in ends.values())
    assert all(reading["relative_error"] < 0.5 for reading in ends.values())
    assert [book["health"] for book in recorder.of("summary")[0].fields["codebooks"]] == ["healthy"] * 3
    assert recorder.of("fault") == []
