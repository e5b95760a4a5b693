"""How a model is executed on a CUDA device: half precision, accumulated, recomputed, compiled, replayed as a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from .scenes import KINDS, D, K, Run, acting, batch, observing

kinds = pytest.mark.parametrize("kind", KINDS)
RESET = {"reset_codes": {"scope": "all", "source": "kmeans"}}


def tokens(run: Run) -> list[int]:
    """Return how many tokens each codebook has shown since its window began."""
    assert run.guard is not None
    windows = [probe.window for probe in run.guard._watch.probes.values()]
    return [0 if each.tallies is None else int(each.tallies[: each.K].sum()) for each in windows]


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_with_skipped_steps(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    """A scaler that begins far too high skips steps: the guard counts those it is told of, and goes on."""
    run = Run(kind, device, acting(RESET, every=4))
    assert run.guard is not None
    too_high = 2.0**126 if dtype == torch.bfloat16 else 2.0**40
    scaler = torch.amp.GradScaler(device.type, init_scale=too_high, growth_interval=1000)
    skipped = 0
    for step in range(40):
        run.optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype):
            loss, _ = run.model(batch(step, device))
        scaler.scale(1e6 * loss).backward()
        before = scaler.get_scale()
        scaler.step(run.optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        run.guard.step(loss=loss)
    assert skipped > 0
    assert not run.recorder.of("fault")
    assert "applied" in run.results()
    for view in run.views:
        assert view.codebook().dtype == torch.float32
        assert bool(view.codebook().isfinite().all())
    assert all(event.fields["finite_fraction"] == 1 for event in run.recorder.of("reading"))


@kinds
def test_accumulated_and_recomputed_forwards_are_counted_once_each(device: torch.device, kind: str) -> None:
    run = Run(kind, device, acting(RESET, every=3))
    assert run.guard is not None
    for step in range(9):
        run.optimizer.zero_grad()
        for part in range(4):
            tables = [view.codebook().clone() for view in run.views]
            x = batch(4 * step + part, device).requires_grad_()
            checkpoint(lambda given: run.model(given)[0], x, use_reentrant=False).backward()
            if kind in ("learnable", "embedding"):  # one that is moved by averages moves in its own forward
                assert all(torch.equal(view.codebook(), old) for view, old in zip(run.views, tables, strict=True))
        run.optimizer.step()
        run.guard.step()
    assert not run.recorder.of("fault")
    assert "applied" in run.results()
    read = {event.fields["tokens"] for event in run.recorder.of("reading")}
    assert read <= {3 * 4 * 200, 4 * 200, 2 * 4 * 200}  # a window begins anew where something was done


@pytest.mark.filterwarnings("ignore")  # what the compiler warns of inside of itself
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", ["ema", "learnable", "home-made"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_is_counted_and_follows_what_is_written(device: torch.device, kind: str, mode: str) -> None:
    """`reduce-overhead` replays what is between the hooks as CUDA graphs."""
    run = Run(kind, device, acting(RESET, {"fallback_tokenizer": {"refit_every": "100 steps"}}, every=3))
    assert run.guard is not None
    options: dict[str, Any] = {"backend": "eager"} if device.type == "cpu" else {"mode": mode}
    compiled: Any = torch.compile(run.model, **options)
    (view,) = run.views
    total, frozen = 0, []
    for step in range(24):
        run.optimizer.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        x, table = batch(step, device), view.codebook().clone()
        loss, codes = compiled(x)
        follows(run, x, table, codes)
        loss.backward()
        run.optimizer.step()
        total += codes.numel()
        run.guard.step()
        frozen += [view.codebook().clone()] if view.is_frozen else []
    assert not run.recorder.of("fault")
    assert run.told() == {"reset_codes": "applied", "fallback_tokenizer": "applied"}
    assert len(frozen) > 4
    assert all(torch.equal(each, frozen[0]) for each in frozen), "its own updates are kept out"
    assert sum(event.fields["tokens"] for event in run.recorder.of("reading")) <= total


@torch.no_grad()
def follows(run: Run, x: torch.Tensor, table: torch.Tensor, codes: torch.Tensor) -> None:
    """Check that codes are the nearest rows of a table, as far as rounding lets one say."""
    z = run.model.encoder(x).reshape(-1, D)
    distances = torch.cdist(z.double(), table.double())
    chosen = distances.gather(1, codes.reshape(-1, 1)).squeeze(1)
    assert bool((chosen <= distances.min(dim=1).values + 1e-3).all())


class Captured:
    """A run whose forward and backward are replayed as one CUDA graph; the optimizer steps outside of it."""

    def __init__(self, kind: str, device: torch.device, policy: Any, *, attach: str = "first") -> None:
        self.run = Run(kind, device, policy if attach == "first" else None)
        self.x = batch(0, device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in range(3):
                self.x.copy_(batch(step, device))
                self.run.optimizer.zero_grad()
                self.run.model(self.x)[0].backward()
                self.run.optimizer.step()
                self.tell()
        torch.cuda.current_stream().wait_stream(stream)
        if attach == "before the capture":
            self.attach(policy)
        self.graph = torch.cuda.CUDAGraph()
        self.run.optimizer.zero_grad()
        with torch.cuda.graph(self.graph):
            loss, self.codes = self.run.model(self.x)
            loss.backward()
        self.run.done = 3
        if attach == "after the capture":
            self.attach(policy)

    def attach(self, policy: Any) -> None:
        """Attach a guard only now."""
        guarded = Run("home-made", self.run.device, policy)
        assert guarded.guard is not None
        guarded.guard.close()
        guarded.recorder.events.clear()
        self.run.recorder = guarded.recorder
        self.run.guard = guarded.guard
        guarded.guard.attach(self.run.model, self.run.optimizer)

    def tell(self) -> None:
        """Tell the guard of a step, if there is one by now."""
        if self.run.guard is not None:
            self.run.guard.step()

    def replay(self, steps: int) -> list[torch.Tensor]:
        """Replay some steps and return their codes."""
        found = []
        for _ in range(steps):
            self.x.copy_(batch(self.run.done, self.run.device))
            self.graph.replay()
            found.append(self.codes.flatten().clone())
            self.run.optimizer.step()
            self.tell()
            self.run.done += 1
        return found


@pytest.mark.parametrize("kind", ["home-made", "embedding"])
def test_every_replay_of_a_graph_is_counted(cuda: torch.device, kind: str) -> None:
    captured = Captured(kind, cuda, observing(5))
    captured.run.recorder.events.clear()
    codes = captured.replay(22)  # readings at steps 5, 10, 15, 20 and 25
    run = captured.run
    assert run.guard is not None
    (probe,) = run.guard._watch.probes.values()
    (fault,) = run.recorder.of("fault")
    assert "captured in a CUDA graph: every replay counts its codes" in fault.fields["reason"]
    readings = run.recorder.of("reading")
    assert [event.fields["tokens"] for event in readings][1:] == [1000] * 4
    for event, start in zip(readings[1:], (2, 7, 12, 17), strict=True):
        counts = torch.bincount(torch.cat(codes[start : start + 5]), minlength=K).double()
        share = counts[counts > 0] / counts.sum()
        assert event.fields["perplexity"] == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-9)
        assert event.fields["norm_ratio"] is not None, "some latents of the last replay were seen"
    assert probe.view.is_captured


@pytest.mark.parametrize("kind", ["home-made", "embedding"])
def test_observing_changes_no_bit_of_a_replayed_run(cuda: torch.device, kind: str) -> None:
    plain, watched = Captured(kind, cuda, None), Captured(kind, cuda, observing(5))
    for one, other in zip(plain.replay(12), watched.replay(12), strict=True):
        assert torch.equal(one, other)
    assert all(
        torch.equal(one, other)
        for one, other in zip(plain.run.model.parameters(), watched.run.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", ["home-made", "embedding"])
def test_replays_see_what_is_written_and_a_fallback_holds(cuda: torch.device, kind: str) -> None:
    ladder: tuple[dict[str, Any], ...] = (
        RESET,
        {"decay_commitment": {}},
        {"fallback_tokenizer": {"refit_every": "100 steps"}},
    )
    captured = Captured(kind, cuda, acting(*ladder, every=4))
    run = captured.run
    (view,) = run.views
    frozen: list[torch.Tensor] = []
    for step in range(3, 60):
        table, encoder = view.codebook().clone(), run.model.encoder.weight.clone()
        captured.replay(1)
        if view.is_frozen:
            frozen.append(view.codebook().clone())
        with torch.no_grad():
            z = torch.nn.functional.linear(captured.x.reshape(-1, D), encoder, run.model.encoder.bias)
            far = torch.cdist(z, table).gather(1, captured.codes.reshape(-1, 1)).squeeze(1)
            near = torch.cdist(z, table).min(dim=1).values
        assert bool((far <= near + 0.05).all()), step
    assert run.told() == {"reset_codes": "applied", "decay_commitment": "refused", "fallback_tokenizer": "applied"}
    assert len(run.recorder.of("fault")) == 1
    assert len(frozen) > 4
    assert all(torch.equal(each, frozen[0]) for each in frozen), "the replayed update is put back at each step"


@pytest.mark.parametrize("attach", ["before the capture", "after the capture"])
def test_a_guard_that_comes_late_to_a_graph_says_that_it_sees_nothing(cuda: torch.device, attach: str) -> None:
    captured = Captured("home-made", cuda, observing(5), attach=attach)
    codes = captured.replay(15)
    assert len(codes) == 15
    reasons = [event.fields["reason"] for event in captured.run.recorder.of("fault")]
    assert any("it is not being measured" in each for each in reasons)
    assert any("replays show it nothing" in each for each in reasons) == (attach == "before the capture")
    assert not captured.run.recorder.of("reading")
