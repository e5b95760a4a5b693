"""What is recorded and read on a CUDA device: the counts of numpy, the readings of the CPU, and no bit changed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import CodebookView, GenericVQ, Guard, discover
from collapse_guard.measure import read_window
from collapse_guard.window import Window

from .scenes import KINDS, D, K, Run, acting, observing, same_bits

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_probes_count_what_the_quantizer_returned(device: torch.device, kind: str) -> None:
    run = Run(kind, device, observing(1000))
    run.train(5)
    assert run.guard is not None
    codes = torch.stack(run.codes).reshape(-1, KINDS[kind].codebooks).numpy()
    windows = [probe.window for probe in run.guard._watch.probes.values()]
    assert len(windows) == KINDS[kind].codebooks
    for level, window in enumerate(windows):
        assert window.tallies is not None
        assert window.tallies.device.type == device.type
        assert window.tallies.cpu().tolist() == [*np.bincount(codes[:, level], minlength=K).tolist(), 0, 0]


@pytest.mark.parametrize("n", [300, 1000])
def test_no_token_is_likelier_to_be_kept_than_another(device: torch.device, n: int) -> None:
    window, steps = Window(K, 1), 1000
    rows, codes = torch.arange(n, dtype=torch.float32, device=device).unsqueeze(1), torch.zeros(n, dtype=torch.int64)
    kept = torch.zeros(n)
    for _ in range(steps):
        window.add(codes.to(device), rows)
        newest = window.latest(256).flatten().long().cpu()
        assert len(newest.unique()) == 256
        kept += newest.bincount(minlength=n)
    expected = steps * 256 / n
    assert 0.75 * expected < float(kept.min()) <= float(kept.max()) < 1.25 * expected


def test_a_sharded_table_is_not_asked_for_and_its_counts_are_read(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    (view,) = discover(nn.ModuleDict({"vq": VectorQuantize(D, K)}).to(device)).views
    window = Window(K, D)
    window.add(torch.arange(K, device=device), torch.randn(K, D, device=device))
    monkeypatch.setattr(CodebookView, "is_sharded", True)
    assert read_window(window, view, step=1)[1].tolist() == K * [1]


class Given(nn.Module):
    """A quantizer whose codes are given with the latents."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", 2 + torch.randn(K, D, generator=torch.Generator().manual_seed(1)))

    def forward(self, latents: Tensor, codes: Tensor) -> Tensor:
        return codes


def reading_on(device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleDict({"book": Given()}).to(device).train()
    with Guard(observing(100), console=False, adapters={"book": GenericVQ(table="table", codes=lambda x: x)}) as guard:
        guard.attach(model)
        for _ in range(6):  # of up to 256 tokens, so that none is left out of the ring by a draw
            latents, codes = torch.randn(250, D, generator=generator), torch.randint(-1, K, (250,), generator=generator)
            latents[3, 2] = torch.nan
            model["book"](latents.to(device), codes.to(device))
        (probe,) = guard._watch.probes.values()
        reading, counts = read_window(probe.window, probe.view, step=6)
    return reading.as_dict() | {"counts": counts.tolist()}


def test_a_reading_is_the_same_on_both_devices(cuda: torch.device) -> None:
    here, there = reading_on(torch.device("cpu")), reading_on(cuda)
    numbers = {name for name, value in here.items() if isinstance(value, float)}
    assert {"perplexity", "norm_ratio", "latent_rank", "codebook_rank", "relative_error"} <= numbers
    for name, value in here.items():
        assert there[name] == (pytest.approx(value, rel=1e-5) if name in numbers else value), name


@kinds
@pytest.mark.usefixtures("deterministic")
def test_observing_changes_no_bit(device: torch.device, kind: str) -> None:
    plain, watched = Run(kind, device), Run(kind, device, observing(3))
    plain.train(10)
    rng = torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None
    torch.manual_seed(0)
    watched.train(10)
    plain_again = Run(kind, device)
    plain_again.train(10)
    assert same_bits(plain.model.state_dict(), plain_again.model.state_dict()), "without a guard it repeats itself"
    assert same_bits(plain.model.state_dict(), watched.model.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(plain.codes, watched.codes, strict=True))
    assert len(watched.recorder.of("reading")) == 3 * KINDS[kind].codebooks
    assert not watched.recorder.of("fault")
    assert rng[0].numel() > 0


LADDER = ({"reset_codes": {"scope": "all", "source": "kmeans"}}, {"fallback_tokenizer": {"refit_every": "4 steps"}})


@pytest.mark.parametrize("kind", ["ema", "learnable", "home-made"])
@pytest.mark.usefixtures("deterministic")
def test_a_resumed_run_decides_as_the_uninterrupted_one(device: torch.device, kind: str) -> None:
    whole = Run(kind, device, acting(*LADDER))
    whole.train(40)
    first, second = Run(kind, device, acting(*LADDER)), Run(kind, device, acting(*LADDER))
    first.train(17)
    saved = checkpoint(first)
    state = torch.load(saved, weights_only=True)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    assert second.guard is not None
    second.guard.load_state_dict(state["guard"])
    second.done = 17
    second.train(23)
    assert whole.guard is not None
    assert not second.recorder.of("fault")
    assert second.guard.interventions == whole.guard.interventions
    assert {each["action"] for each in whole.guard.interventions} == {"reset_codes", "fallback_tokenizer"}
    assert same_bits(whole.model.state_dict(), second.model.state_dict())


def checkpoint(run: Run) -> io.BytesIO:
    assert run.guard is not None
    file = io.BytesIO()
    states = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    torch.save(states | {"guard": run.guard.state_dict()}, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["ema", "learnable", "home-made"])
@pytest.mark.parametrize("way", ["to the CPU", "from the CPU"])
def test_a_run_goes_on_on_another_device(cuda: torch.device, kind: str, way: str) -> None:
    devices = (cuda, torch.device("cpu")) if way == "to the CPU" else (torch.device("cpu"), cuda)
    first, second = (Run(kind, each, acting(*LADDER)) for each in devices)
    first.train(14)
    state = torch.load(checkpoint(first), map_location=devices[1], weights_only=True)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    assert second.guard is not None
    second.guard.load_state_dict(state["guard"])
    (view,) = second.views
    assert view.is_frozen, "the fallback is in force before the first forward"
    before = len(second.guard.interventions)
    second.done = 14
    second.train(20)
    assert not second.recorder.of("fault")
    assert view.codebook().device.type == devices[1].type
    assert len(second.guard.interventions) >= before > 0
    assert len(second.recorder.of("reading")) == 10
