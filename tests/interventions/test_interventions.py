"""Each intervention on real quantizers: what it writes, leaves alone and refuses, and that undo is bit-equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import GenericVQ, discover
from collapse_guard.adapters import CodebookView
from collapse_guard.interventions import InterventionError, Site, Transaction, find_intervention
from collapse_guard.policies import (
    DecayCommitment,
    DisableNormalisation,
    FallbackTokenizer,
    RaiseCommitment,
    ResetCodes,
    TakeOverUpdates,
)
from collapse_guard.window import Window
from tests import quantizers

K, D = 16, 8


def latents(n: int = 400, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, D, generator=generator) * 3
    return centres[torch.randint(12, (n,), generator=generator)] + 0.1 * torch.randn(n, D, generator=generator)


def site(view: CodebookView, data: Tensor, optimizers: Sequence[Optimizer] = (), used: Sequence[int] = (3,)) -> Site:
    window = Window(view.K, view.D)
    for chunk in data.split(200):
        window.add(torch.zeros(len(chunk), dtype=torch.long), chunk)
    counts = np.zeros(view.K, dtype=np.int64)
    counts[list(used)] = 50
    return Site(view=view, window=window, optimizers=optimizers, counts=counts, seed=1)


def learnable() -> tuple[nn.Module, CodebookView, torch.optim.Adam]:
    torch.manual_seed(0)
    model = nn.Sequential(quantizers.Learnable(K, D))
    described = GenericVQ(table="embedding.weight", codes=lambda output: output[2], commitment="beta")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, amsgrad=True)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(40, D))[1].backward()
        optimizer.step()
    return model, discover(model, {"0": described}).views[0], optimizer


def plain() -> tuple[quantizers.Plain, CodebookView]:
    torch.manual_seed(0)
    module = quantizers.Plain(K, D).train()
    for _ in range(3):
        module(torch.randn(40, D))
    return module, discover(module).views[0]


def test_reset_of_all_codes_writes_table_sum_and_count_together() -> None:
    module, view = plain()
    reset = find_intervention("reset_codes")(ResetCodes(scope="all"), site(view, latents()))
    assert reset.refusal() is None
    assert reset.apply() == "16 of 16 codes placed by kmeans on 400 latents, few for 16 codes"
    counts = module.rho
    torch.testing.assert_close(module.alpha / counts.unsqueeze(1), module.omega, rtol=1e-5, atol=1e-6)
    assert float(counts.min()) >= 0.5 * float(counts.mean()) * 0.9
    assert len(torch.unique(module.omega, dim=0)) == K
    nearest = torch.cdist(latents(), module.omega).min(dim=1).values
    assert float(nearest.mean()) < 1.0


def test_with_39_latents_a_code_a_reset_does_not_call_them_few() -> None:
    _, view = plain()
    reset = find_intervention("reset_codes")(ResetCodes(scope="all"), site(view, latents(39 * K)))
    assert reset.apply() == "16 of 16 codes placed by kmeans on 624 latents"


@pytest.mark.parametrize("source", ["kmeans", "reservoir"])
def test_reset_of_dead_codes_leaves_living_rows_bit_equal(source: Any) -> None:
    module, view = plain()
    before, living = module.omega.clone(), [3, 7]
    reset = find_intervention("reset_codes")(ResetCodes(source=source), site(view, latents(), used=living))
    reset.apply()
    assert torch.equal(module.omega[living], before[living])
    changed = (module.omega != before).any(dim=1)
    assert int(changed.sum()) == K - 2
    assert len(torch.unique(module.omega, dim=0)) == K


def test_revived_codes_get_a_fraction_of_the_mean_count() -> None:
    module, view = plain()
    mean = float(module.rho.mean())
    find_intervention("reset_codes")(ResetCodes(refill=0.25), site(view, latents())).apply()
    revived = torch.tensor([row != 3 for row in range(K)])
    torch.testing.assert_close(module.rho[revived], torch.full((K - 1,), 0.25 * mean))


def test_a_reset_survives_the_next_forward_and_its_rows_are_selected() -> None:
    module, view = plain()
    data = latents()
    find_intervention("reset_codes")(ResetCodes(), site(view, data)).apply()
    written = module.omega.clone()
    codes = module.train()(data)[2]
    assert len(codes.unique()) >= 10
    unhit = torch.bincount(codes, minlength=K) == 0
    torch.testing.assert_close(module.omega[unhit], written[unhit], rtol=1e-4, atol=1e-4)


def test_moments_of_reset_rows_are_cleared_and_all_others_are_bit_equal() -> None:
    model, view, optimizer = learnable()
    (parameter,) = model.parameters()
    before = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    find_intervention("reset_codes")(ResetCodes(), site(view, latents(), [optimizer], used=[2, 5])).apply()
    rows = [row for row in range(K) if row not in (2, 5)]
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        after = optimizer.state[parameter][key]
        assert torch.equal(after[rows], torch.zeros(K - 2, D))
        assert torch.equal(after[[2, 5]], before[key][[2, 5]])
    assert torch.equal(optimizer.state[parameter]["step"], before["step"])


def test_reset_rows_do_not_move_in_a_step_without_gradient() -> None:
    _, view, optimizer = learnable()
    find_intervention("reset_codes")(ResetCodes(), site(view, latents(), [optimizer])).apply()
    before = view.codebook().clone()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    moved = (view.codebook() != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() in ([], [3])


@pytest.mark.parametrize(("name", "params"), [
    ("reset_codes", ResetCodes(scope="all")), ("reset_codes", ResetCodes()),
    ("decay_commitment", DecayCommitment()), ("raise_commitment", RaiseCommitment(to=5.0)),
    ("fallback_tokenizer", FallbackTokenizer()),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["ema", "learnable", "library"])
def test_undo_is_bit_equal(name: str, params: Any, kind: str) -> None:
    model: nn.Module
    optimizers: list[Optimizer] = []
    if kind == "ema":
        model, view = plain()
    elif kind == "learnable":
        model, view, optimizer = learnable()
        optimizers = [optimizer]
    else:
        model = VectorQuantize(dim=D, codebook_size=K).train()
        model(torch.randn(2, 30, D))
        (view,) = discover(model).views
    before = {key: value.clone() for key, value in model.state_dict().items()}
    moments = [
        value.clone() for optimizer in optimizers for state in optimizer.state.values() for value in state.values()
    ]
    weight = view.commitment.get() if view.commitment is not None else None
    intervention = find_intervention(name)(params, site(view, latents(), optimizers))
    transaction = Transaction(intervention.parts())
    assert intervention.refusal() is None
    intervention.apply()
    transaction.check()
    assert transaction.manifest()
    transaction.undo()
    assert transaction.manifest() == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    after = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(old, new) for old, new in zip(moments, after, strict=True))
    assert (view.commitment.get() if view.commitment is not None else None) == weight
    assert not view.is_frozen


def test_commitment_decays_by_its_factor_down_to_its_floor() -> None:
    module, view = plain()
    module.commitment_cost = 0.4
    seen = []
    for _ in range(3):
        find_intervention("decay_commitment")(DecayCommitment(factor=0.25, floor=0.02), site(view, latents())).apply()
        seen.append(round(module.commitment_cost, 6))
    assert seen == [0.1, 0.025, 0.02]
    spent = find_intervention("decay_commitment")(DecayCommitment(factor=0.25, floor=0.02), site(view, latents()))
    assert spent.refusal() == "the commitment weight is 0.02, already at or below the floor 0.02"


def test_a_commitment_is_raised_to_its_target_and_never_lowered() -> None:
    module, view = plain()
    module.commitment_cost = 0.1
    raised = find_intervention("raise_commitment")(RaiseCommitment(to=0.3), site(view, latents()))
    assert raised.refusal() is None
    assert raised.apply() == "commitment weight 0.1 -> 0.3"
    assert module.commitment_cost == 0.3
    assert raised.refusal() == "the commitment weight is 0.3, already at or above 0.3"
    lower = find_intervention("raise_commitment")(RaiseCommitment(to=0.2), site(view, latents()))
    assert lower.refusal() == "the commitment weight is 0.3, already at or above 0.2"


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
@pytest.mark.parametrize("kind", ["plain", "library", "cosine"])
def test_under_the_fallback_every_token_gets_its_nearest_centroid_and_the_forward_goes_on(
    kind: str, backend: Any
) -> None:
    torch.manual_seed(0)
    if kind == "plain":
        model: nn.Module = quantizers.Plain(K, D)
    else:
        model = VectorQuantize(dim=D, codebook_size=K, use_cosine_sim=kind == "cosine")
    (view,) = discover(model.train()).views
    keys = list(model.state_dict())
    data = latents()
    fallback = find_intervention("fallback_tokenizer")(FallbackTokenizer(backend=backend), site(view, data))
    assert fallback.refusal() is None
    fallback.apply()
    frozen = view.codebook().clone()
    x = data.clone().reshape(4, 100, D).requires_grad_()
    output = model(x)
    codes = (output[2] if kind == "plain" else output[1]).flatten()
    points, table = data.double(), view.codebook().double()
    if kind == "cosine":
        points = torch.nn.functional.normalize(points, dim=-1)
    expected = ((points[:, None] - table[None]) ** 2).sum(-1).argmin(1)
    assert torch.equal(codes, expected)
    output[0].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)
    assert torch.equal(view.codebook(), frozen)
    assert list(model.state_dict()) == keys
    assert "in force already" in (fallback.refusal() or "")


def test_a_refit_follows_the_latents_and_keeps_most_ids() -> None:
    _, view = plain()
    place = site(view, latents(2000))
    params = FallbackTokenizer.model_validate({"refit_every": "10 steps"})
    fallback = find_intervention("fallback_tokenizer")(params, place)
    fallback.apply()
    first = torch.cdist(latents(), view.codebook()).argmin(1)
    for chunk in (latents(4096) + 0.5).split(256):
        place.window.add(torch.zeros(len(chunk), dtype=torch.long), chunk)
    assert fallback.tend(9) is None
    assert "refitted" in (fallback.tend(10) or "")
    moved = latents() + 0.5
    second = torch.cdist(moved, view.codebook()).argmin(1)
    assert float((moved - view.codebook()[second]).square().sum(-1).mean()) < 0.2
    assert float((first == second).float().mean()) > 0.5


@pytest.mark.parametrize("name", ["reset_codes", "fallback_tokenizer", "take_over_updates"])
@pytest.mark.parametrize("kind", ["spread", "broken"])
def test_a_codebook_placed_anew_takes_over_the_ids_of_the_old_one(name: str, kind: str) -> None:
    """Twelve clusters in an order of their own; or half of them, and codes without a number."""
    module = quantizers.Plain(12, D).train()
    (view,) = discover(module).views
    data = latents(2000)
    centres = torch.randn(12, D, generator=torch.Generator().manual_seed(0)) * 3
    old = centres[torch.randperm(12, generator=torch.Generator().manual_seed(8))]
    if kind == "broken":
        old[[1, 4, 5]] = torch.nan
    view.write_rows(torch.arange(12), old, None if view.ema_count is None else torch.full((12,), 5.0))
    before = np.nanargmin(np.square(data.double().numpy()[:, None] - old.double().numpy()).sum(-1), axis=1)
    params: Any = {"reset_codes": ResetCodes(scope="all"), "fallback_tokenizer": FallbackTokenizer()}
    action = find_intervention(name)(params.get(name, TakeOverUpdates()), site(view, data))
    action.apply()
    after = np.square(data.double().numpy()[:, None] - view.codebook().double().numpy()).sum(-1).argmin(1)
    assert action.facts == {"ids_changed": int((before != after).sum()), "ids_compared": 2000}
    assert action.facts["ids_changed"] <= (0 if kind == "spread" else 700)  # three clusters of twelve had no code
    assert view.ema_count is not None
    counts, used = view.ema_count.get().double().numpy(), np.bincount(after, minlength=12)
    np.testing.assert_allclose(counts / counts.sum(), used / used.sum(), rtol=0.01)


def test_codes_placed_anew_without_normalisation_take_over_the_ids_of_their_directions() -> None:
    """Four directions, each at two lengths: of the codes at a direction the one of most latents keeps its id."""
    torch.manual_seed(0)
    module = VectorQuantize(dim=D, codebook_size=8, use_cosine_sim=True)
    (view,) = discover(module).views
    directions = torch.eye(D)[:4]
    old = torch.cat([torch.eye(D)[4:], directions.flip(0)])
    view.write_rows(torch.arange(8), old, torch.full((8,), 5.0))
    kind, long = torch.arange(2000) % 4, torch.arange(2000) % 5 == 0
    data = directions[kind] * torch.where(long, 9.0, 2.0).unsqueeze(1) + 0.01 * torch.randn(2000, D)
    place = site(view, torch.randn(400, D))
    action = find_intervention("disable_normalisation")(DisableNormalisation(), place)
    action.apply()
    for chunk in data.split(200):
        place.window.add(torch.zeros(len(chunk), dtype=torch.long), chunk)
    assert "400 of 2000 ids changed" in (action.tend(1) or "")
    assert action.facts == {"ids_changed": 400, "ids_compared": 2000}
    after = torch.cdist(data, view.codebook()).argmin(1)
    assert torch.equal(after[~long], 7 - kind[~long])


@pytest.mark.parametrize("name", ["reset_codes", "fallback_tokenizer"])
def test_without_distinct_latents_nothing_is_placed(name: str) -> None:
    _, view = plain()
    params: Any = ResetCodes() if name == "reset_codes" else FallbackTokenizer()
    for data, expected in (
        (torch.ones(50, D), "all 50 latents are the same"),
        (torch.full((50, D), float("nan")), "no finite latents were seen"),
    ):
        assert expected in (find_intervention(name)(params, site(view, data)).refusal() or "")


def test_a_codebook_that_waits_for_its_own_start_is_not_written() -> None:
    (view,) = discover(VectorQuantize(dim=D, codebook_size=K, kmeans_init=True)).views
    for name, params in (("reset_codes", ResetCodes()), ("fallback_tokenizer", FallbackTokenizer())):
        assert "not initialised yet" in (find_intervention(name)(params, site(view, latents())).refusal() or "")


def test_nothing_dead_is_no_reason_to_reset() -> None:
    _, view = plain()
    reset = find_intervention("reset_codes")(ResetCodes(), site(view, latents(), used=range(K)))
    assert "no code is dead" in (reset.refusal() or "")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda module: module.omega[2].fill_(float("inf")), "non-finite"),
        (lambda module: module.omega[2].copy_(module.omega[3]), "1 duplicate rows of 16"),
        (lambda module: module.omega[2].add_(1.0), "EMA sum / EMA count does not equal"),
    ],
)
def test_an_inconsistent_codebook_is_refused(spoil: Any, message: str) -> None:
    module, view = plain()
    reset = find_intervention("reset_codes")(ResetCodes(scope="all"), site(view, latents()))
    transaction = Transaction(reset.parts())
    reset.apply()
    transaction.check()
    spoil(module)
    with pytest.raises(InterventionError, match=message):
        transaction.check()


def test_an_unknown_action_lists_the_known_ones() -> None:
    with pytest.raises(
        KeyError,
        match="known: alert, bridge_gradient, clip_gradients, cool_sampling, decay_commitment, disable_normalisation",
    ):
        find_intervention("pray")


def test_optimizer_state_that_may_be_a_master_copy_is_left_alone_and_said() -> None:
    model, view, optimizer = learnable()
    (parameter,) = model.parameters()
    master = optimizer.state[parameter]["master_weight"] = torch.ones(K, D)
    reset = find_intervention("reset_codes")(ResetCodes(), site(view, latents(), [optimizer]))
    transaction = Transaction(reset.parts())
    reset.apply()
    assert torch.equal(master, torch.ones(K, D))
    (told,) = [change for change in transaction.manifest() if "left_alone" in change]
    assert told["name"] == "optimizer0.master_weight"
