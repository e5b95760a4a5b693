"""`ease_replacement` on quantizers of vector-quantize-pytorch that replace most of their codes in each step."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import CodebookView, Guard, discover
from collapse_guard.interventions import Site, Transaction, find_intervention, ladders_on
from collapse_guard.policies import EaseReplacement, Reading, load_policy
from collapse_guard.window import Window
from tests.contract import encodec
from tests.loops import Recorder, policy_of

D, K, TOKENS = 8, 64, 128
RESTLESS: dict[str, Any] = {
    "name": "restless",
    "when": "replacement_share > 0.7",
    "for": 2,
    "clear": {"when": "replacement_share < 0.5", "for": 1},
    "verify": {"within": "10 steps"},
    "ladder": [{"ease_replacement": {"to": 0.1}}],
}


def quantizer(kind: str = "one", threshold: float = 4) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"dim": D, "codebook_size": K, "decay": 0.95, "threshold_ema_dead_code": threshold}
    return ResidualVQ(num_quantizers=2, **options) if kind == "levels" else VectorQuantize(**options)


MODES = torch.randn(K, D, generator=torch.Generator().manual_seed(7))


def batch(step: int) -> Tensor:
    """Return as many modes as there are codes, so that each code has one to keep."""
    generator = torch.Generator().manual_seed(step)
    modes = MODES[torch.randint(K, (4, TOKENS // 4), generator=generator)]
    return modes + 0.05 * torch.randn(modes.shape, generator=generator)


def train(model: nn.Module, guard: Guard, steps: int) -> None:
    for _ in range(steps):
        model(batch(guard.steps))
        guard.step()


def guarded(model: nn.Module, **rule: Any) -> tuple[Guard, Recorder]:
    recorder = Recorder()
    return Guard(policy_of({**RESTLESS, **rule}), console=False, sinks=[recorder]).attach(model), recorder


def thresholds(model: Any) -> list[float]:
    layers: Any = model.layers if isinstance(model, ResidualVQ) else [model]
    return [each._codebook.threshold_ema_dead_code for each in layers]


def shares(recorder: Recorder) -> list[float | None]:
    return [event.fields["replacement_share"] for event in recorder.of("reading")]


def test_codes_keep_their_place_once_only_what_is_hardly_used_is_replaced() -> None:
    errors = []
    for is_guarded in (True, False):
        model: Any = quantizer()
        guard, recorder = guarded(model, **({} if is_guarded else {"ladder": []}))
        with guard:
            train(model, guard, 120)
            assert not recorder.of("fault")
            results = [(each["action"], each["result"]) for each in guard.interventions]
            assert results == ([("ease_replacement", "recovered")] if is_guarded else [])
        assert shares(recorder)[:2] == [2.0, 2.0]
        assert shares(recorder)[-1] == pytest.approx(0.1 if is_guarded else 2.0)
        z = batch(999)
        errors.append(float((torch.cdist(z.reshape(-1, D), model.codebook).min(dim=1).values ** 2).mean()))
    assert errors[0] < 0.5 * errors[1]


def test_the_event_says_both_thresholds_and_the_run_ends_with_what_is_in_force() -> None:
    model = quantizer()
    guard, recorder = guarded(model)
    with guard:
        train(model, guard, 30)
    (act,) = recorder.of("intervention")
    assert "replacement threshold 4 -> 0.2: 2 -> 0.1 of what even use gives a code" in str(act.fields["summary"])
    assert act.fields["manifest"] == [{"name": "replacement_threshold", "before": 4.0, "after": 0.2}]
    (summary,) = recorder.of("summary")
    assert "replacement_threshold is 0.2, 4 before" in str(summary.fields)


def test_levels_of_a_residual_are_eased_together() -> None:
    model = quantizer("levels")
    guard, recorder = guarded(model)
    with guard:
        train(model, guard, 30)
        assert {each["attempt"] for each in guard.interventions} == {1}
        assert [each["result"] for each in guard.interventions] == ["recovered", "recovered"]
    assert thresholds(model) == [0.2, 0.2]
    assert not recorder.of("fault")


def test_a_threshold_that_heads_share_is_lowered_once_for_what_all_of_them_showed() -> None:
    torch.manual_seed(0)
    model: Any = VectorQuantize(
        dim=D, codebook_size=K, heads=2, codebook_dim=D // 2, separate_codebook_per_head=True, threshold_ema_dead_code=4
    )
    guard, recorder = guarded(model)
    with guard:
        train(model, guard, 30)
        results = [(each["codebook"], each["result"]) for each in guard.interventions]
        assert results == [("model.0", "recovered"), ("model.1", "postponed")]
    assert thresholds(model) == [0.2]
    assert model._codebook.reset_cluster_size == pytest.approx(0.2)
    *_, postponed = recorder.of("intervention")
    assert "its replacement threshold is also that of model.0" in str(postponed.fields)


@pytest.mark.parametrize(("call", "share"), [({}, 2.0), ({"accum_ema_update": True}, 0.5), (None, None)])
def test_tokens_are_those_of_an_update_and_a_codebook_that_its_owner_froze_has_none(
    call: dict[str, Any] | None, share: float | None
) -> None:
    model = quantizer()
    guard, recorder = guarded(model, ladder=[])
    with guard:
        for step in range(20):
            for part in range(4):
                kwargs = {"freeze_codebook": True} if call is None else call if part < 3 else {}
                model(batch(4 * step + part), **kwargs)
            guard.step()
        assert not recorder.of("fault")
    assert set(shares(recorder)) == {share}


def test_what_did_not_help_is_undone_with_its_kind() -> None:
    model: Any = quantizer()
    guard, _ = guarded(model, verify={"within": "10 steps", "success": "perplexity > 1000"})
    with guard:
        train(model, guard, 12)
        assert thresholds(model) == [0.2]
        train(model, guard, 20)
        assert guard.interventions[0]["undone"]
    assert thresholds(model) == [4]
    assert type(thresholds(model)[0]) is int
    assert model._codebook.reset_cluster_size == 4


@pytest.mark.parametrize("is_open", [True, False])
def test_a_resumed_run_has_the_threshold_and_can_still_undo_it(is_open: bool) -> None:
    verify = {"within": "20 steps", **({"success": "perplexity > 1000"} if is_open else {})}
    model: Any = quantizer()
    guard, _ = guarded(model, verify=verify)
    with guard:
        train(model, guard, 13 if is_open else 30)
        kept = io.BytesIO()
        torch.save({"model": model.state_dict(), "guard": guard.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    model = quantizer()
    model.load_state_dict(state["model"])
    guard, recorder = guarded(model, verify=verify)
    with guard:
        guard.load_state_dict(state["guard"])
        assert thresholds(model) == [0.2]
        assert model._codebook.reset_cluster_size == pytest.approx(0.2)
        train(model, guard, 30)
        assert thresholds(model) == ([4] if is_open else [0.2])
        assert not recorder.of("fault")


def test_a_threshold_that_stands_outlasts_a_resume_while_the_replacement_is_kept_out() -> None:
    """As after `reset_codes`, which takes the replacement over: the number on the module is then 0."""
    model: Any = quantizer()
    guard, recorder = guarded(model)
    with guard:
        train(model, guard, 30)
        assert [each["result"] for each in guard.interventions] == ["recovered"]
        (view,) = guard.views(guard.readings)
        view.take_over()
        assert thresholds(model) == [0]
        state = guard.state_dict()
    (summary,) = recorder.of("summary")
    assert "replacement_threshold is 0.2, 4 before" in str(summary.fields)
    again: Any = quantizer()
    guard, recorder = guarded(again)
    with guard:
        guard.load_state_dict(state)
        (view,) = guard.views(guard._watch.probes)
        assert view.is_taken_over
        assert thresholds(again) == [0]
        view.give_back()
        assert thresholds(again) == [0.2]
        assert again._codebook.reset_cluster_size == pytest.approx(0.2)
        assert not recorder.of("fault")


def eased(model: nn.Module) -> tuple[CodebookView, Transaction]:
    """Ease the replacement of a quantizer by hand."""
    (view,) = discover(nn.ModuleDict({"vq": model})).views
    site = Site(view, Window(view.K, view.D), [], torch.zeros(view.K).numpy(), seed=1, reading=reading(2.0))
    intervention = find_intervention("ease_replacement")(EaseReplacement(), site)
    transaction = Transaction(intervention.parts())
    intervention.apply()
    transaction.check()
    return view, transaction


def test_undone_while_the_replacement_is_kept_out_it_is_put_back_for_later() -> None:
    model: Any = quantizer()
    view, transaction = eased(model)
    view.take_over()
    transaction.undo()
    assert thresholds(model) == [0]
    view.give_back()
    assert (thresholds(model), model._codebook.reset_cluster_size) == ([4], 4)


def test_a_window_goes_on_over_a_resume_with_the_forwards_that_it_counted() -> None:
    model = quantizer()
    guard, _ = guarded(model)
    with guard:
        train(model, guard, 3)
        state = guard.state_dict()
    again = quantizer()
    guard, recorder = guarded(again)
    with guard:
        guard.load_state_dict(state)
        train(again, guard, 2)
    assert [(event.fields["tokens"], event.fields["replacement_share"]) for event in recorder.of("reading")] == [
        (5 * TOKENS, 2.0)
    ]


def test_a_restoration_that_fails_leaves_the_threshold_as_its_owner_has_it() -> None:
    model = quantizer()
    guard, _ = guarded(model)
    with guard:
        train(model, guard, 30)
        state = guard.state_dict()
    again = quantizer()
    guard, recorder = guarded(again)
    with guard:
        guard.load_state_dict({**state, "engine": "no engine"})
        assert thresholds(again) == [4]
        assert type(thresholds(again)[0]) is int
        assert recorder.of("fault")


def reading(share: float | None) -> Reading:
    return Reading(step=1, codebook="vq", K=K, D=D, tokens=TOKENS, perplexity=1.0, ceiling=1.0, perplexity_ratio=1.0,
                   usage=1.0, dead_fraction=0.0, top_share=0.1, replacement_share=share)  # fmt: skip


def refused(model: nn.Module, seen: Reading | None) -> str | None:
    (view,) = discover(nn.ModuleDict({"vq": model})).views
    site = Site(view, Window(view.K, view.D), [], torch.zeros(view.K).numpy(), seed=1, reading=seen)
    return find_intervention("ease_replacement")(EaseReplacement(to=0.2), site).refusal()


def test_it_is_refused_with_the_reason() -> None:
    assert refused(quantizer(), reading(2.0)) is None
    assert (
        refused(quantizer(), reading(0.2)) == "codes are replaced below 0.2 of their even use, already at or below 0.2"
    )
    assert refused(quantizer(), reading(0.0)) == "its own replacement of codes is kept out already"
    assert "how many tokens" in str(refused(quantizer(), None))
    assert refused(quantizer(threshold=0), reading(None)) == "this quantizer replaces no codes by itself"
    leaf = encodec.core.EuclideanCodebook(D, K, kmeans_init=False)
    assert "overwritten by the moving averages" in str(refused(leaf, reading(None)))


def test_a_quantizer_that_replaces_nothing_lacks_nothing() -> None:
    policy = load_policy(policy_of(RESTLESS))
    views = discover(nn.ModuleDict({"calm": quantizer(threshold=0), "restless": quantizer()})).views
    (ladder,) = ladders_on(policy, views)
    assert set(ladder.rungs[0].refused) == {"calm"}
    assert ladder.powerless_on == ()


def test_undo_puts_threshold_and_refill_back() -> None:
    model: Any = quantizer()
    _, transaction = eased(model)
    transaction.undo()
    assert (thresholds(model), model._codebook.reset_cluster_size, transaction.manifest()) == ([4], 4, [])
