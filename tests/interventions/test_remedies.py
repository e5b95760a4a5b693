"""Each remedy on a run where it is right, and on one where nothing helps and it is undone, bit-equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Event, Guard
from collapse_guard.interventions import find_intervention
from tests import quantizers
from tests.interventions.scenes import CENTRES, Broken, D, Scene, modes, plain
from tests.loops import Recorder, policy_of

RAY: Tensor = CENTRES[:1] / CENTRES[:1].norm()


def rays(step: int) -> Tensor:
    """Latents that differ in length alone."""
    generator = torch.Generator().manual_seed(step)
    lengths = 1 + torch.randint(8, (64, 1), generator=generator).float()
    return RAY * lengths + 0.01 * torch.randn(64, D, generator=generator)


def cosine() -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = VectorQuantize(dim=D, codebook_size=16, use_cosine_sim=True)
    return module


def learnable(beta: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    module = quantizers.Learnable(16, D)
    module.beta = beta
    return module


def outgrowing() -> Scene:
    """A loss that lets latents grow by some per cent a step, and codes that follow without holding them."""
    torch.manual_seed(0)
    module = VectorQuantize(dim=D, codebook_size=8, decay=0.95, commitment_weight=0.0, kmeans_init=True)
    return Scene(module, lr=0.001, weights={"near": 0.0, "small": -4.0})


def drifting() -> Scene:
    return Scene(plain(decay=0.95, commitment=0.0), lr=1.0, weights={"near": 0.0, "drift": 8.0})


def thrown() -> Scene:
    """An Adam that a burst of gradients throws off, and that then remembers it: its steps stay next to nothing."""
    blow = lambda step: 1e4 * (40 <= step < 45)  # noqa: E731
    return Scene(plain(commitment=0.0), lr=0.3, optimizer=torch.optim.Adam, blow=blow)


class MixedUp(nn.Module):
    """(n, D) latents, 16 to a sample, which a reshape mixes up before a quantizer, and back after it."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.inner = quantizer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = z.reshape(-1, 16, D)
        quantized, codes, loss = self.inner(tokens.mT.reshape(tokens.shape))
        return quantized.reshape(-1, D, 16).mT.reshape(z.shape), loss.sum(), codes


def mixed_up() -> Scene:
    torch.manual_seed(0)
    return Scene(MixedUp(VectorQuantize(dim=D, codebook_size=16, decay=0.9)))


FAR = "relative_error > 3"
RIGHT: dict[str, tuple[Callable[[], Scene], str, dict[str, Any]]] = {
    "fast_ema": (lambda: Scene(plain(decay=0.999), lr=0.0, inputs=lambda step: modes(step) + 0.2 * step),
                 "relative_error > 1", {"target": 0.8}),
    "slow_ema": (lambda: Scene(plain(K=8, decay=0.001), lr=0.0, inputs=lambda step: modes(step, 8)),
                 "relative_error > 0.2", {"target": 0.98}),
    "scale_loss_weight": (lambda: Scene(plain(), weights={"small": 9.0}),
                          "latent_variance < 10", {"weight": "weights.small", "factor": 0.01}),
    "clip_gradients": (lambda: Scene(plain(commitment=0.0), blow=lambda step: 1e5 * (-1) ** step * (step % 5 == 3)),
                       "latent_variance > 1000", {"max_norm": 1.0}),
    "freeze_encoder": (drifting, FAR, {"for": "100 steps"}),
    "raise_commitment": (outgrowing, "norm_ratio < 0.8", {"to": 20.0}),
    "lower_lr": (drifting, FAR, {"factor": 0.001}),
    "raise_codebook_lr": (lambda: Scene(learnable(), lr=0.1, inputs=lambda step: modes(step) + 10), FAR,
                          {"factor": 50.0}),
    "take_over_updates": (lambda: Scene(plain(kind=Broken)), "relative_error > 1", {}),
    "substitute": (lambda: Scene(plain(kind=Broken), optimizer=torch.optim.Adam), "relative_error > 1", {}),
    "restart_optimizer": (thrown, "loss > 1", {}),
    "rollback": (lambda: Scene(plain(decay=0.99), blow=lambda step: 1e5 * (step == 57)), "relative_error > 1",
                 {"every": "10 steps"}),
    "disable_normalisation": (lambda: Scene(cosine(), lr=0.001, inputs=rays), "latent_variance < 0.5", {}),
    "restore_layout": (mixed_up, "reshaped == 1", {}),
}  # fmt: skip


@pytest.mark.parametrize("action", RIGHT)
def test_where_a_remedy_is_right_it_recovers_the_codebook(action: str) -> None:
    make, when, params = RIGHT[action]
    scene = make()
    with scene.guarded({"when": when, "ladder": [{action: params}]}) as guard:
        while not scene.recorder.of("outcome") and scene.done < 150:
            scene.train(5, guard)
        assert scene.told() == [f"{action} applied", f"{action} recovered"]
        (act,) = scene.recorder.of("intervention")
        assert act.fields["manifest"]
        assert not scene.recorder.of("fault")


def hooks_of(module: nn.Module) -> list[Any]:
    return [each for part in module.modules() for each in (part._forward_hooks, part._forward_pre_hooks)]


class Witness:
    """A sink that looks at a run at the alert, before anything is done, and at the outcome, when it is undone."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: dict[str, dict[str, Any]] = {}

    def write(self, event: Event) -> None:
        if event.event in ("alert", "outcome"):
            self.seen[event.event] = self.look()

    def close(self) -> None: ...

    def look(self) -> dict[str, Any]:
        scene = self.scene
        model, optimizer = scene.model, scene.optim
        leaf = model.quantizer
        return {
            "tensors": {name: each.clone() for name, each in model.state_dict().items()},
            "numbers": {key: value for key, value in vars(leaf).items() if isinstance(value, (int, float))},
            "normalised": getattr(getattr(leaf, "_codebook", None), "use_cosine_sim", None),
            "weights": dict(model.weights),
            "hooks": [len(each) for each in (*hooks_of(leaf), optimizer._optimizer_step_pre_hooks,
                                             optimizer._optimizer_step_post_hooks)],
            "groups": [{**group, "params": [id(each) for each in group["params"]]} for group in optimizer.param_groups],
            "held": [id(each) for each in optimizer.state],
            "state": [{key: torch.as_tensor(each).clone() for key, each in state.items()}
                      for state in optimizer.state.values()],
        }  # fmt: skip


WRONG: dict[str, Callable[[], Scene]] = {name: make for name, (make, _, _) in RIGHT.items()}
WRONG |= {"fast_ema": lambda: Scene(plain(decay=0.99)), "slow_ema": lambda: Scene(plain())}


@pytest.mark.parametrize("action", RIGHT)
def test_where_nothing_helps_a_remedy_is_undone_bit_equal(action: str) -> None:
    scene = WRONG[action]()
    scene.optim = torch.optim.Adam(scene.model.parameters(), lr=0.01)
    witness = Witness(scene)
    verify = {"within": "15 steps", "success": "perplexity > 1000"}
    rule = {"when": "step >= 60", "verify": verify}
    with scene.guarded(rule | {"ladder": [{action: RIGHT[action][2]}]}, sinks=[witness]) as guard:
        while not scene.recorder.of("outcome") and scene.done < 150:
            scene.train(5, guard)
        (outcome,) = scene.recorder.of("outcome")
        assert scene.told() == [f"{action} applied", f"{action} failed undone"]
        assert outcome.fields["undone"] == [1]
        before, after = witness.seen["alert"], witness.seen["outcome"]
        touches = find_intervention(action).touches
        assert {key: before[key] for key in before if key not in ("tensors", "state")} == {
            key: after[key] for key in after if key not in ("tensors", "state")
        }
        own = {name for name in before["tensors"] if name.startswith("quantizer.")}
        for name in before["tensors"] if "model" in touches else own if "codebook" in touches else ():
            assert torch.equal(before["tensors"][name], after["tensors"][name]), name
        if touches & {"model", "optimizer"}:
            for old, new in zip(before["state"], after["state"], strict=True):
                assert all(torch.equal(old[key], new[key]) for key in old)
        assert not scene.recorder.of("fault")
        assert guard.interventions[0]["undone"]
        assert bool(guard.rewritten) is ("codebook" in touches)


@pytest.mark.parametrize("is_whole", [True, False])
def test_in_half_precision_the_stand_in_returns_the_vectors_that_the_table_holds(is_whole: bool) -> None:
    torch.manual_seed(0)
    half = torch.bfloat16
    model = nn.Sequential(nn.Linear(D, D), VectorQuantize(dim=D, codebook_size=16))
    model = model.to(half if is_whole else torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rule = {"name": "any", "when": "step >= 3", "ladder": ["substitute"]}
    policy = policy_of(rule, every=3, min_tokens=1)
    recorder = Recorder()
    with Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(8):
            with torch.autocast("cpu", dtype=half, enabled=not is_whole):
                quantised, codes, loss = model(modes(step)[None].to(half if is_whole else torch.float32))
            (quantised.square().mean() + loss.sum()).float().backward()
            optimizer.step()
            if recorder.of("intervention"):
                assert torch.equal(quantised, guard.views(["1"])[0].codebook()[codes].to(quantised.dtype))
            guard.step()
        assert [event.fields["result"] for event in recorder.of("intervention")] == ["applied"]
        assert recorder.of("fault") == []


WITHOUT_EFFECT: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "fast_ema": (plain, {"target": 0.5}, "the quantizer's own updates are kept out, so that their decay"),
    "slow_ema": (plain, {}, "the quantizer's own updates are kept out, so that their decay"),
    "raise_codebook_lr": (learnable, {}, "the codebook's own updates are kept out, so that its learning rate"),
}


@pytest.mark.parametrize("keeper", ["fallback_tokenizer", "take_over_updates"])
@pytest.mark.parametrize("action", WITHOUT_EFFECT)
def test_what_would_change_updates_that_are_kept_out_is_refused_and_has_failed(action: str, keeper: str) -> None:
    make, params, why = WITHOUT_EFFECT[action]
    scene = Scene(make())
    verify = {"within": "15 steps", "success": "perplexity > 1000", "undo": "never"}
    with scene.guarded({"when": "step > 0", "verify": verify, "ladder": [keeper, {action: params}]}) as guard:
        scene.train(40, guard)
        assert scene.told() == [f"{keeper} applied", f"{keeper} failed", f"{action} refused", f"{action} failed"]
        assert scene.recorder.of("intervention")[-1].fields["summary"] == f"{why} has no effect"
        (exhausted,) = scene.recorder.of("exhausted")
        assert exhausted.fields["reason"].startswith("every rung has failed: ")
        assert not scene.recorder.of("fault")


def test_a_codebook_that_the_guard_moves_may_be_tended_and_one_that_stands_may_not() -> None:
    """Codes of a fallback keep their ids; those of a moving average that lie idle may move to where latents are."""
    verify = {"within": "15 steps", "success": "perplexity > 1000", "undo": "never"}
    for keeper, frozen, end in (
        ({"take_over_updates": {"start": "reservoir", "decay": 0.9}}, 0, "upkeep applied"),
        ({"fallback_tokenizer": {}}, 1, "upkeep refused"),
    ):
        scene = Scene(plain(kind=Broken))
        with scene.guarded({"when": "step > 0", "verify": verify, "ladder": [keeper, "upkeep"]}) as guard:
            scene.train(30, guard)
            assert scene.told()[2] == end
            assert scene.recorder.of("reading")[-1].fields["frozen"] == frozen
            assert not scene.recorder.of("fault")


@pytest.mark.parametrize("start", ["kmeans", "reservoir", "keep"])
def test_updates_are_taken_over_from_where_the_codes_shall_start(start: str) -> None:
    scene = Scene(plain())
    with scene.guarded({"when": "step > 0", "ladder": [{"take_over_updates": {"start": start}}]}) as guard:
        scene.train(5)
        quantizer: Any = scene.model.quantizer
        before = quantizer.omega.clone()
        scene.train(5, guard)
        (act,) = scene.recorder.of("intervention")
        assert act.fields["summary"].startswith(
            {"kmeans": "k-means codebook (", "reservoir": "16 codes placed on ", "keep": "codes kept; "}[start]
        )
        moved = (quantizer.omega - before).norm(dim=1).mean()
        assert (moved > 1) == (start != "keep")
        now = quantizer.omega.clone()
        scene.train(1, guard)
        assert not torch.equal(quantizer.omega, now)


def test_what_lasts_ends_by_itself_and_says_so() -> None:
    scene = drifting()
    with scene.guarded({"when": FAR, "ladder": [{"freeze_encoder": {"for": "20 steps"}}]}) as guard:
        while not scene.recorder.of("intervention"):
            scene.train(5, guard)
        frozen = scene.model.encoder.bias.detach().clone()
        scene.train(20, guard)
        assert torch.equal(scene.model.encoder.bias.detach(), frozen)
        (tended,) = scene.recorder.of("tended")
        assert tended.fields["summary"] == "released after 20 steps"
        assert tended.fields["is_over"]
        assert not scene.optim._optimizer_step_pre_hooks
        scene.train(1, guard)
        assert not torch.equal(scene.model.encoder.bias.detach(), frozen)


def test_a_scaled_loss_weight_is_put_back_after_health_and_left_alone_when_its_owner_sets_it() -> None:
    params = {"weight": "weights.small", "factor": 0.01, "restore_after": "10 steps"}
    scene = Scene(plain(), weights={"small": 9.0})
    rule = {"when": "latent_variance < 10", "cooldown": "10 steps", "ladder": [{"scale_loss_weight": params}]}
    with scene.guarded(rule) as guard:
        while not scene.recorder.of("tended") and scene.done < 100:
            scene.train(1, guard)
        assert scene.model.weights["small"] == 9.0
        (said,) = scene.recorder.of("tended")
        assert said.fields["summary"] == "weights.small 0.09 -> 9, after 10 steps of health"
    scene = Scene(plain(), weights={"small": 9.0})
    with scene.guarded(rule) as guard:
        while not scene.recorder.of("intervention"):
            scene.train(1, guard)
        scene.model.weights["small"] = 3.0
        scene.train(10, guard)
        assert scene.model.weights["small"] == 3.0
        assert "somebody else sets it" in scene.recorder.of("tended")[0].fields["summary"]


@pytest.mark.parametrize(
    ("rung", "owner", "name"),
    [
        ({"slow_ema": {"target": 0.99}}, lambda scene: vars(scene.quantizer), "decay"),
        ({"decay_commitment": {"factor": 0.5}}, lambda scene: vars(scene.quantizer), "commitment_cost"),
        ({"scale_loss_weight": {"weight": "weights.near"}}, lambda scene: scene.model.weights, "near"),
    ],
)
def test_undo_leaves_a_number_alone_that_its_owner_has_set_meanwhile(
    rung: dict[str, Any], owner: Callable[[Scene], dict[str, Any]], name: str
) -> None:
    scene = Scene(plain())
    verify = {"within": "15 steps", "success": "perplexity > 1000"}
    with scene.guarded({"when": "step >= 10", "verify": verify, "ladder": [rung]}) as guard:
        while not scene.recorder.of("intervention"):
            scene.train(1, guard)
        owner(scene)[name] = 0.123
        scene.train(20, guard)
        assert scene.told()[-1].endswith("failed undone")
        assert owner(scene)[name] == 0.123


def test_a_failed_try_that_a_fallback_was_built_on_is_not_undone_under_it() -> None:
    """A graver rule is pending where the first try fails, acts, and is over; the second try fails, too."""
    scene = Scene(plain())
    rules: list[dict[str, Any]] = [
        {
            "name": "graver",
            "when": ["step >= 15", "step <= 30"],
            "for": 2,
            "inhibits": ["first"],
            "verify": {"within": "20 steps", "success": "step >= 25"},
            "ladder": ["fallback_tokenizer"],
        },
        {
            "name": "first",
            "when": "step >= 5",
            "verify": {"within": "10 steps", "success": "perplexity > 1000"},
            "ladder": [{"reset_codes": {"scope": "all", "source": "reservoir"}, "repeat": 2}],
        },
    ]
    guard = Guard(policy_of(*rules), console=False, sinks=[scene.recorder])
    with guard.attach(scene.model, scene.optim):
        scene.train(100, guard)
        done = [(each["step"], each["action"], each["result"], each["undone"]) for each in guard.interventions]
        (view,) = guard.views(["quantizer"])
        assert done[:2] == [(5, "reset_codes", "failed", False), (20, "fallback_tokenizer", "recovered", False)]
        assert (done[2][1:], len(done)) == (("reset_codes", "failed", True), 3)
        assert view.is_frozen


def heads_of_one_weight() -> Any:
    torch.manual_seed(0)
    return VectorQuantize(dim=D, codebook_size=8, heads=2, codebook_dim=D // 2, separate_codebook_per_head=True)


def test_a_weight_that_heads_share_is_decayed_by_one_of_them_at_a_time_and_put_back_whole() -> None:
    """The second head asks at another reading, while it is open whether the first one's change helps."""
    model, recorder = heads_of_one_weight(), Recorder()
    rules = [
        {
            "name": name,
            "when": f"step >= {since}",
            "codebooks": [f"*.{head}"],
            "verify": {"within": "20 steps", "success": "perplexity > 1000"},
            "ladder": [{"decay_commitment": {"factor": 0.25}}],
        }
        for name, since, head in (("first", 5, 0), ("second", 15, 1))
    ]
    whole = model.commitment_weight
    with Guard(policy_of(*rules), console=False, sinks=[recorder]).attach(model.train()) as guard:
        weights = []
        for step in range(60):
            model(modes(step)[None])
            guard.step()
            weights.append(model.commitment_weight)
    told = [(each["codebook"][-1], each["step"], each["result"], each["undone"]) for each in guard.interventions]
    assert told[:2] == [("0", 5, "failed", True), ("1", 15, "postponed", False)]
    assert min(weights) == whole / 4
    assert all(each[3] for each in told if each[2] == "failed")
    (waits, *_) = [each for each in recorder.of("intervention") if each.fields["result"] == "postponed"]
    assert "which changed it at step 5, still on trial" in waits.fields["summary"]


def test_what_a_recovered_run_has_left_changed_is_told_at_its_end_and_after_a_resume() -> None:
    rule = {"when": "step < 10", "verify": {"success": "step >= 10"}, "ladder": [{"slow_ema": {"target": 0.99}}]}
    left = {
        "codebook": "quantizer",
        "action": "slow_ema",
        "step": 5,
        "attempt": 1,
        "meaning": "decay is 0.99, 0.9 before",
    }
    scene = Scene(plain(decay=0.9))
    with scene.guarded(rule) as guard:
        scene.train(30, guard)
        state = guard.state_dict()
    assert scene.told() == ["slow_ema applied", "slow_ema recovered"]
    assert scene.recorder.of("summary")[0].fields["in_force"] == [left]
    resumed = Scene(plain(decay=0.9))
    with resumed.guarded(rule) as guard:
        guard.load_state_dict(state)
        assert resumed.quantizer.decay == 0.99
        vars(resumed.quantizer)["decay"] = 0.9
    assert resumed.recorder.of("resumed")[0].fields["in_force"] == [left]
    assert resumed.recorder.of("summary")[0].fields["in_force"] == []


def test_a_quantizer_that_no_longer_normalises_is_told_at_the_end() -> None:
    rule = {"when": "step < 10", "verify": {"success": "step >= 15"}, "ladder": ["disable_normalisation"]}
    scene = Scene(cosine(), inputs=rays)
    with scene.guarded(rule) as guard:
        scene.train(40, guard)
    (told,) = scene.recorder.of("summary")[0].fields["in_force"]
    assert told["meaning"].startswith("normalisation is off: make the quantizer without it")


def test_everything_held_is_let_go_when_the_guard_closes() -> None:
    scene = drifting()
    ladder = [{"lower_lr": {"factor": 0.5}}]
    guard = scene.guarded({"when": "perplexity > 0", "verify": {"success": "usage > 2"}, "ladder": ladder})
    scene.train(20, guard)
    assert scene.optim._optimizer_step_pre_hooks
    guard.close()
    assert not scene.optim._optimizer_step_pre_hooks
    assert not scene.optim._optimizer_step_post_hooks
    assert not scene.model.quantizer._forward_hooks


RESUMED: dict[str, dict[str, Any]] = {
    "fast_ema": {"target": 0.5}, "scale_loss_weight": {"weight": "weights.near", "factor": 0.5},
    "clip_gradients": {"max_norm": 0.01}, "freeze_encoder": {"for": "25 steps"}, "lower_lr": {"factor": 0.1},
    "take_over_updates": {}, "substitute": {}, "rollback": {"every": "5 steps"}, "restart_optimizer": {},
    "restore_layout": {"source": "kmeans"},
}  # fmt: skip


@pytest.mark.parametrize("action", RESUMED)
def test_a_resumed_run_goes_on_to_the_same_bits_and_can_still_undo(action: str, tmp_path: Any) -> None:
    verify = {"within": "30 steps", "success": "perplexity > 1000"}
    rule = {"when": "step >= 20", "verify": verify, "ladder": [
        {action: RESUMED[action]}]}  # fmt: skip

    def begun() -> tuple[Scene, Guard]:
        quantizer = plain(commitment=0.1) if action != "restore_layout" else mixed_up().quantizer
        scene = Scene(quantizer, weights={"drift": 0.1}, optimizer=torch.optim.Adam)
        return scene, scene.guarded(rule)

    whole, guard = begun()
    whole.train(35, guard)
    saved = {"model": whole.model.state_dict(), "optim": whole.optim.state_dict(), "guard": guard.state_dict()}
    torch.save(saved, tmp_path / "run.ckpt")
    whole.train(25, guard)
    resumed, other = begun()
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)
    resumed.model.load_state_dict(state["model"])
    resumed.optim.load_state_dict(state["optim"])
    other.load_state_dict(state["guard"])
    resumed.done = 35
    resumed.train(25, other)
    assert not resumed.recorder.of("fault")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert whole.model.weights == resumed.model.weights
    assert [entry["undone"] for entry in guard.interventions] == [True]
    assert [entry["undone"] for entry in other.interventions] == [True]
    guard.close()
    other.close()
