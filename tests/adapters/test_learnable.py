"""Home-made quantizers that gradients move are recognised, watched and repaired, with no word from their owner."""

from __future__ import annotations

import copy
import importlib
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import ConsoleSink, Event, Guard, Sink, discover
from collapse_guard.adapters import CodebookView, Confidence, GenericVQ, survey
from collapse_guard.adapters.families.home_made import match_home_made
from collapse_guard.adapters.recognition import twins
from tests import quantizers
from tests.adapters import learnable
from tests.adapters.learnable import D, K
from tests.contract.packages import import_inside

IMAGES, ROWS, TOKENS, CHANNEL_LAST = (3, D, 4, 2), (20, D), (3, 7, D), (2, 3, 4, D)

#: class, input, name of the commitment weight, or a part of why there is none
RECOGNISED: list[tuple[type[nn.Module], tuple[int, ...], str | None, str]] = [
    (learnable.Textbook, IMAGES, "_commitment_cost", ""),
    (learnable.LegacyBeta, IMAGES, None, "'beta' weighs the term that moves the codebook"),
    (learnable.ScaledWhole, TOKENS, "commitment", ""),
    (learnable.PortFromKeras, CHANNEL_LAST, "beta", ""),
    (learnable.CosineEinsum, TOKENS, "commit_weight", ""),
    (learnable.RawOutside, ROWS, None, "none of its attributes weighs"),
    (learnable.ByMethod, IMAGES, "beta", ""),
    (learnable.FromFirstBatch, IMAGES, "_commitment_cost", ""),
    (quantizers.Learnable, TOKENS, "beta", ""),
]
every_kind = pytest.mark.parametrize(
    ("kind", "shape", "weight", "why"), RECOGNISED, ids=[case[0].__name__ for case in RECOGNISED]
)


def only_view(module: nn.Module) -> CodebookView:
    (view,) = discover(nn.Sequential(nn.Identity(), module)).views
    return view


def call(view: CodebookView, x: Tensor) -> tuple[Any, Any]:
    """Return what the quantizer returns, and what its view reads from it."""
    ((method, reader),) = view.readers.items()
    output = getattr(view.module, method)(x)
    return output, reader((x,), {}, output)


@every_kind
def test_codes_and_latents_agree_with_an_independent_search(
    kind: type[nn.Module], shape: tuple[int, ...], weight: str | None, why: str
) -> None:
    module = kind().eval()
    view = only_view(module)
    assert (view.name, view.adapter, view.kind, view.K, view.D) == ("1", "home-made", "learnable", K, D)
    assert view.confidence is Confidence.CONFIRMED
    x = torch.randn(shape)
    _, seen = call(view, x)
    latents = x.movedim(1, -1) if shape == IMAGES else x
    z = latents.reshape(-1, D).double().numpy()
    table = view.codebook().double().numpy()
    if kind is learnable.CosineEinsum:
        z, table = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (z, table))
    np.testing.assert_allclose(seen.latents.double().numpy(), z, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(seen.codes.numpy(), ((z[:, None] - table[None]) ** 2).sum(-1).argmin(1))


@every_kind
def test_the_commitment_weight_is_the_attribute_that_scales_the_pull_on_the_encoder(
    kind: type[nn.Module], shape: tuple[int, ...], weight: str | None, why: str
) -> None:
    view = only_view(kind())
    assert getattr(view.commitment, "attribute", None) == weight
    assert why in (view.why_not("commitment") or "")
    assert (view.why_not("commitment") is None) == (weight is not None)
    assert all(view.why_not(capability) is None for capability in ("monitor", "reset", "freeze", "fallback"))


@every_kind
def test_recognition_leaves_no_trace(
    kind: type[nn.Module], shape: tuple[int, ...], weight: str | None, why: str
) -> None:
    module = nn.Sequential(kind().train())
    module[0].register_forward_hook(lambda *_: pytest.fail("an owner's hook saw trial data"))

    def state() -> Any:
        tensors = {key: tensor.clone() for key, tensor in module.state_dict(keep_vars=True).items()}
        plain = [
            {key: value for key, value in vars(part).items() if not key.startswith("_")} for part in module.modules()
        ]
        hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
        streams = (random.getstate(), str(np.random.get_state()), torch.random.get_rng_state())
        return copy.deepcopy((plain, hooks, streams)), tensors, [type(part) for part in module.modules()]

    before = state()
    identities = [id(tensor) for tensor in module.parameters()]
    survey(module)
    torch.testing.assert_close(state()[1], before[1], rtol=0, atol=0)
    assert str(state()[0]) == str(before[0])
    assert state()[2] == before[2]
    assert [id(tensor) for tensor in module.parameters()] == identities
    assert all(tensor.grad is None for tensor in module.parameters())


def test_a_pending_seed_of_a_device_that_is_not_initialised_is_not_replaced() -> None:
    """`torch.manual_seed` queues a seed for CUDA; a trial that called it would change the run once CUDA starts."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is initialised")
    queued = list(getattr(torch.cuda, "_queued_calls", ()))
    tracked = torch.cuda._lazy_seed_tracker.get_calls()
    survey(learnable.Textbook())
    assert list(getattr(torch.cuda, "_queued_calls", ())) == queued
    assert torch.cuda._lazy_seed_tracker.get_calls() == tracked


@every_kind
def test_a_collapsed_codebook_is_reset_by_the_guard_and_all_latents_find_codes(
    kind: type[nn.Module], shape: tuple[int, ...], weight: str | None, why: str
) -> None:
    torch.manual_seed(0)
    module = kind().train()
    view = only_view(module)
    with torch.no_grad():
        view.refs()["table"].get().fill_(5.0)
    encoder = nn.Parameter(torch.ones(D))
    model = nn.ModuleDict({"quantizer": module})
    optimizer = torch.optim.Adam([encoder, *model.parameters()], lr=1e-4)
    policy = {
        "version": 1,
        "name": "quick",
        "sample": {"every": "5 steps", "when_suspect": "5 steps", "min_tokens": 32},
        "warmup": "5 steps",
        "rules": [
            {
                "name": "collapsed",
                "when": "usage < 0.3",
                "clear": {"when": "usage >= 0.5", "for": 1},
                "verify": {"within": "20 steps"},
                "ladder": [{"reset_codes": {"scope": "all"}}],
            }
        ],
    }
    with Guard(policy, console=False) as guard:
        guard.attach(model, optimizer)
        if isinstance(module, learnable.FromFirstBatch):  # it would repair itself
            module.started = True
        (name,) = guard._watch.probes
        method = next(iter(guard._watch.probes[name].view.readers))
        for _ in range(30):
            scale = encoder.view(1, D, 1, 1) if shape == IMAGES else encoder
            output = module(torch.randn(shape) * scale) if method == "forward" else None
            output = output if method == "forward" else getattr(module, method)(torch.randn(shape) * scale)
            optimizer.zero_grad()
            losses = [each for each in _tensors(output) if each.requires_grad and each.ndim == 0]
            sum(losses, start=encoder.square().mean()).backward()
            optimizer.step()
            guard.step()
        assert [(entry.action, entry.result) for entry in guard._shift.ledger.entries] == [("reset_codes", "recovered")]
        assert guard.readings[name].usage >= 0.5


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@pytest.mark.parametrize(
    ("kind", "reason", "table", "advice"),
    [
        (learnable.Projecting, "computed inside, where no hook sees it", "codebook.weight", "latents=lambda x: ..."),
        (learnable.Wordless, "its forward returns no codes", "_embedding.weight", "return its codes too"),
        (learnable.CodesOnly, "no quantised vectors", "codebook", "GenericVQ(table='codebook'"),
        (learnable.Stages, "stacked or in a list", "levels.0.weight", "a module of its own"),
    ],
)
def test_what_cannot_be_confirmed_is_reported_with_its_table_and_what_to_write(
    kind: type[nn.Module], reason: str, table: str, advice: str
) -> None:
    found = survey(nn.Sequential(kind()))
    assert found.views == ()
    (item,) = found.unrecognised
    assert (item.name, item.table, item.confidence) == ("0", table, Confidence.UNCONFIRMED)
    assert reason in item.reason
    assert advice in item.advice


def test_a_quantizer_that_restarts_its_own_codes_is_not_reset_beside_it() -> None:
    view = only_view(learnable.Restarting())
    assert "two must not move the rows" in (view.why_not("reset") or "")
    assert view.why_not("freeze") is None


def test_a_table_that_nothing_trains_is_only_watched() -> None:
    view = only_view(learnable.Frozen())
    assert view.kind == "fixed"
    assert "only watched" in (view.why_not("reset") or "")


def test_a_frozen_table_stands_still_against_its_own_restarts() -> None:
    module = learnable.Restarting().train()
    view = only_view(module)
    view.freeze()
    before = view.codebook().clone()
    module(torch.randn(IMAGES))
    assert torch.equal(view.codebook(), before)
    view.unfreeze()
    module(torch.randn(IMAGES))
    assert not torch.equal(view.codebook(), before)


def test_the_owner_of_a_recognised_quantizer_is_neither_watched_nor_reported() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.quantizer = nn.Linear(D, D), learnable.RawOutside()

        def forward(self, x: Tensor) -> Any:
            return self.quantizer(self.into(x))

    found = survey(nn.Sequential(Owner()))
    assert [view.name for view in found.views] == ["0.quantizer"]
    assert found.unrecognised == ()


def test_a_description_wins_over_recognition_and_says_so() -> None:
    described = GenericVQ(table="embedding.weight", codes=lambda output: output[2])
    (view,) = discover(nn.Sequential(quantizers.Learnable()), {"0": described}).views
    assert (view.adapter, view.confidence) == ("explicit", Confidence.DESCRIBED)


def _taming(legacy: bool) -> Callable[[], nn.Module]:
    module = import_inside("taming", "modules.vqvae.quantize")
    return lambda: module.VectorQuantizer2(K, D, 0.25, legacy=legacy)


def _diffusers(legacy: bool) -> nn.Module:
    module = importlib.import_module("diffusers.models.autoencoders.vq_model")
    made: nn.Module = module.VectorQuantizer(K, D, 0.25, legacy=legacy)
    return made


def _transformers(name: str) -> nn.Module:
    lower = name.lower()
    module = importlib.import_module(f"transformers.models.{lower}.modeling_{lower}")
    config = importlib.import_module(f"transformers.models.{lower}.configuration_{lower}")
    settings = getattr(config, f"{name}VQVAEConfig")(num_embeddings=K, embed_dim=D)
    made: nn.Module = getattr(module, f"{name}VQVAEVectorQuantizer")(settings)
    return made


@pytest.mark.parametrize(
    ("make", "weight"),
    [
        (_taming(legacy=True), None),
        (_taming(legacy=False), "beta"),
        (lambda: _diffusers(legacy=True), None),
        (lambda: _diffusers(legacy=False), "beta"),
        (lambda: _transformers("Chameleon"), None),
        (lambda: _transformers("Janus"), None),
    ],
    ids=["taming-legacy", "taming", "diffusers-legacy", "diffusers", "chameleon", "janus"],
)
def test_real_classes_are_confirmed_by_trial_alone_and_their_beta_is_told_apart(
    make: Callable[[], nn.Module], weight: str | None
) -> None:
    found = match_home_made("quantizer", make())
    assert found is not None
    (view,) = found
    assert isinstance(view, CodebookView)
    assert (view.K, view.D, view.kind) == (K, D, "learnable")
    assert getattr(view.commitment, "attribute", None) == weight
    if weight is None:
        assert "'beta' weighs the term that moves the codebook" in (view.why_not("commitment") or "")


def test_the_beta_that_was_found_multiplies_the_encoders_gradient() -> None:
    """The experiment's verdict, checked without it: loss weights times four, by hand."""
    module = quantizers.Learnable().train()
    view = only_view(module)
    assert view.commitment is not None
    norms = []
    for value in (0.25, 1.0):
        view.commitment.set(value)
        x = torch.randn(TOKENS, generator=torch.Generator().manual_seed(3)).requires_grad_()
        module.zero_grad()
        module(x)[1].backward()
        gradient = module.embedding.weight.grad
        assert x.grad is not None
        assert gradient is not None
        norms.append((x.grad.norm(), gradient.clone()))
    torch.testing.assert_close(norms[1][0], 4 * norms[0][0])
    assert torch.equal(norms[0][1], norms[1][1])


def test_what_is_too_large_is_not_copied_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class LargeQuantizer(learnable.ScaledWhole):
        def __deepcopy__(self, memo: Any) -> Any:
            pytest.fail("it was copied")

    monkeypatch.setattr(twins, "MAX_ELEMENTS", K * D - 1)
    (item,) = survey(nn.Sequential(LargeQuantizer())).unrecognised
    assert f"more than {K * D - 1} are not copied" in item.reason


def test_what_hangs_on_an_attribute_counts_too_and_the_loop_around_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class HidingQuantizer(quantizers.Learnable):
        def __init__(self, **attributes: Any) -> None:
            super().__init__()
            for key, value in attributes.items():
                object.__setattr__(self, key, value)

    monkeypatch.setattr(twins, "MAX_ELEMENTS", 2 * K * D)
    ballast = [nn.Linear(32, 32)]
    (item,) = survey(nn.Sequential(HidingQuantizer(friend=ballast))).unrecognised
    assert "too much else hangs on its attributes" in item.reason
    assert only_view(HidingQuantizer(_trainer=ballast)).K == K


def test_a_forward_that_was_replaced_on_the_instance_is_not_tried() -> None:
    module = quantizers.Plain()
    original = module.forward
    module.forward = lambda x: original(x)  # type: ignore[method-assign]
    before = module.omega.clone()
    (item,) = survey(nn.Sequential(module)).unrecognised
    assert "replaced on the instance" in item.reason
    assert torch.equal(module.omega, before)


def test_the_attached_event_and_the_console_say_how_sure_the_guard_is() -> None:
    events: list[Event] = []

    class Recorder:
        def write(self, event: Event) -> None:
            events.append(event)

        def close(self) -> None:
            pass

    text = io.StringIO()
    sinks: list[Sink] = [Recorder(), ConsoleSink(Console(file=text, width=80))]
    model = nn.ModuleDict({"quantizer": learnable.Textbook(512, 64), "other": learnable.Wordless()})
    with Guard("observe", console=False, sinks=sinks) as guard:
        guard.attach(model)
    attached = events[0].fields
    assert attached["codebooks"][0]["confidence"] == "confirmed"
    assert (attached["unrecognised"][0]["name"], attached["unrecognised"][0]["confidence"]) == ("other", "unconfirmed")
    assert attached["unrecognised"][0]["advice"]
    table = text.getvalue().split("cannot")[0].split("not watched")[0]
    assert "confirmed" in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_a_moving_average_behind_a_method_is_watched_there_and_frozen_at_the_boundary() -> None:
    class Behind(quantizers.Plain):
        def quantize(self, x: Tensor) -> Any:
            return super().forward(x)

        def forward(self, image: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
            return self.quantize(functional.pad(image, (0, 0)) * mask)

    module = Behind().train()
    view = only_view(module)
    assert (list(view.readers), view.kind) == (["quantize"], "ema")
    view.freeze()
    before = {role: tensor.clone() for role, tensor in view.tensors()}
    module(torch.randn(TOKENS), torch.ones(()))
    view.hold()
    assert all(torch.equal(before[role], tensor) for role, tensor in view.tensors())
