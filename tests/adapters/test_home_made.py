"""Home-made quantizers are recognised by what they do, and left alone where that cannot be confirmed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import NoQuantizerError, discover
from collapse_guard.adapters import CodebookView, GenericVQ
from tests import quantizers

K, D = 16, 8
RECOGNISED: list[tuple[type[nn.Module], tuple[str, str, str], str, tuple[int, ...]]] = [
    (quantizers.Plain, ("omega", "alpha", "rho"), "l2", (4, 6, D)),
    (quantizers.Normalising, ("omega", "alpha", "rho"), "l2", (4, 6, D)),
    (quantizers.Cosine, ("omega", "alpha", "rho"), "cosine", (4, 6, D)),
    (quantizers.ChannelFirstOneHot, ("weight", "moving", "seen"), "l2", (3, D, 4, 2)),
    (quantizers.Transposed, ("table", "sums", "counts"), "l2", (4, 6, D)),
]
IDS = [case[0].__name__ for case in RECOGNISED]


def only_view(module: nn.Module) -> CodebookView:
    (view,) = discover(nn.Sequential(nn.Identity(), module)).views
    return view


@pytest.mark.parametrize(("kind", "names", "metric", "shape"), RECOGNISED, ids=IDS)
def test_the_table_the_sum_and_the_count_are_told_apart(
    kind: type[nn.Module], names: tuple[str, str, str], metric: str, shape: tuple[int, ...]
) -> None:
    view = only_view(kind())
    assert (view.name, view.adapter, view.kind, view.K, view.D, view.metric) == (
        "1",
        "home-made",
        "ema",
        K,
        D,
        metric,
    )
    assert tuple(ref.attribute for ref in view.refs().values()) == names


@pytest.mark.parametrize(("kind", "names", "metric", "shape"), RECOGNISED, ids=IDS)
def test_codes_and_latents_agree_with_an_independent_search(
    kind: type[nn.Module], names: tuple[str, str, str], metric: str, shape: tuple[int, ...]
) -> None:
    module = kind().eval()
    view = only_view(module)
    x = torch.randn(shape)
    observation = view.readers["forward"]((x,), {}, module(x))
    assert observation is not None
    assert observation.latents is not None
    latents, table = observation.latents.numpy().astype(np.float64), view.codebook().numpy().astype(np.float64)
    assert latents.shape == (x.numel() // D, D)
    if metric == "cosine":
        table = table / np.linalg.norm(table, axis=1, keepdims=True)
        latents = latents / np.linalg.norm(latents, axis=1, keepdims=True)
    distances = ((latents[:, None] - table[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(observation.codes.numpy(), distances.argmin(1))


@pytest.mark.parametrize(("kind", "names", "metric", "shape"), RECOGNISED, ids=IDS)
def test_recognition_changes_no_bit_of_the_module_and_no_random_stream(
    kind: type[nn.Module], names: tuple[str, str, str], metric: str, shape: tuple[int, ...]
) -> None:
    module = kind()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    stream = torch.random.get_rng_state()
    discover(module)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(("kind", "names", "metric", "shape"), RECOGNISED, ids=IDS)
def test_written_rows_survive_the_next_training_forward(
    kind: type[nn.Module], names: tuple[str, str, str], metric: str, shape: tuple[int, ...]
) -> None:
    """Rows far from every latent are not hit, so that the EMA step must leave them where they were written."""
    module = kind().train()
    view = only_view(module)
    module(torch.randn(shape))
    rows, vectors = torch.tensor([3, 5]), torch.full((2, D), 40.0) + torch.arange(D) * 3
    vectors[1] *= -1
    view.write_rows(rows, vectors, torch.tensor([2.0, 3.0]))
    written = view.codebook()[rows].clone()
    x = torch.randn(shape) * 1e-3
    module(x)
    observation = view.readers["forward"]((x,), {}, module.eval()(x))
    assert observation is not None
    unhit = [index for index in range(2) if int(rows[index]) not in observation.codes]
    assert unhit
    torch.testing.assert_close(view.codebook()[rows][unhit], written[unhit], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "names", "metric", "shape"), RECOGNISED, ids=IDS)
def test_a_frozen_codebook_is_bit_equal_after_training_forwards_which_go_on_as_before(
    kind: type[nn.Module], names: tuple[str, str, str], metric: str, shape: tuple[int, ...]
) -> None:
    module = kind().train()
    view = only_view(module)
    keys = list(module.state_dict())
    view.freeze()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    identities = [id(ref.whole()) for ref in view.refs().values()]
    for _ in range(3):
        module(torch.randn(shape, requires_grad=True))
        assert [id(ref.whole()) for ref in view.refs().values()] == identities
    assert list(module.state_dict()) == keys
    for ref in view.refs().values():
        assert torch.equal(dict(module.state_dict())[_key(module, ref.whole())], ref.whole())
    frozen = {_key(module, ref.whole()) for ref in view.refs().values()}
    assert all(torch.equal(before[key], module.state_dict()[key]) for key in frozen)
    view.unfreeze()
    module(torch.randn(shape))
    assert not all(torch.equal(before[key], module.state_dict()[key]) for key in frozen)


def _key(module: nn.Module, tensor: torch.Tensor) -> str:
    named = (*module.named_parameters(), *module.named_buffers())
    return next(key for key, value in named if value is tensor)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (quantizers.Projected, "neither its input nor its L2-normalised input"),
        (quantizers.Silent, "its forward returns no codes"),
    ],
)
def test_what_cannot_be_confirmed_is_reported_with_the_reason(kind: type[nn.Module], reason: str) -> None:
    with pytest.raises(NoQuantizerError, match=reason) as error:
        discover(nn.Sequential(kind()))
    assert "GenericVQ" in str(error.value)


def test_beside_a_recognised_quantizer_the_unrecognised_one_is_listed() -> None:
    found = discover(nn.Sequential(quantizers.Plain(), quantizers.Silent()))
    assert [view.name for view in found.views] == ["0"]
    assert [item.name for item in found.unrecognised] == ["1"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
        nn.LSTMCell(8, 8),
        nn.BatchNorm1d(8),
        nn.Embedding(16, 8),
        nn.TransformerEncoderLayer(8, 2, batch_first=True),
        nn.MaxPool2d(2, return_indices=True),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_without_a_quantizer_are_refused_clearly(model: nn.Module) -> None:
    with pytest.raises(NoQuantizerError, match="found no quantizer to guard"):
        discover(model)


def test_a_codebook_of_one_code_is_refused() -> None:
    with pytest.raises(NoQuantizerError, match="K = 1"):
        discover(quantizers.Plain(K=1))


def test_a_collapsed_codebook_is_recognised_all_the_same() -> None:
    module = quantizers.Plain()
    with torch.no_grad():
        module.omega.fill_(3.0)
        module.alpha.zero_()
    assert only_view(module).refs()["table"].attribute == "omega"


def test_the_commitment_weight_and_the_decay_are_read_and_set_live() -> None:
    module = quantizers.Plain().train()
    view = only_view(module)
    assert view.commitment is not None
    assert view.decay is not None
    assert (view.commitment.get(), view.decay.get()) == (0.25, 0.9)
    x = torch.randn(5, D)
    first = float(module.eval()(x)[1])
    view.commitment.set(0.5)
    assert float(module(x)[1]) == pytest.approx(2 * first)


def test_an_explicit_description_wins_and_its_mistakes_are_named() -> None:
    model = nn.Sequential(quantizers.Learnable())
    described = GenericVQ(table="embedding.weight", codes=lambda output: output[2], commitment="beta")
    (view,) = discover(model, {"0": described}).views
    assert (view.adapter, view.kind, view.K, view.D) == ("explicit", "learnable", K, D)
    observation = view.readers["forward"]((x := torch.randn(2, 5, D),), {}, model(x))
    assert observation is not None
    nearest = torch.cdist(x.reshape(-1, D), view.codebook()).argmin(1)
    assert torch.equal(observation.codes, nearest)


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("9", {"table": "embedding.weight"}, "the model has no module '9'"),
        ("0", {"table": "weight"}, "has no tensor 'weight'; it has: embedding.weight"),
        ("0", {"table": "embedding.weight", "metric": "dot"}, "expected metric 'l2' or 'cosine', got 'dot'"),
        ("0", {"table": "embedding.weight", "ema_sum": "embedding.weight"}, "both ema_sum and ema_count"),
        ("0", {"table": "beta"}, "expected a tensor, got float"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(path: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discover(nn.Sequential(quantizers.Learnable()), {path: GenericVQ(codes=lambda output: output[2], **arguments)})


def test_a_frozen_learnable_table_stands_still_although_the_optimizer_steps() -> None:
    model = nn.Sequential(quantizers.Learnable())
    view = discover(model, {"0": GenericVQ(table="embedding.weight", codes=lambda output: output[2])}).views[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    view.freeze()
    before = view.codebook().clone()
    for _ in range(3):
        optimizer.zero_grad()
        _, loss, _ = model(torch.randn(6, D, requires_grad=True))
        loss.backward()
        optimizer.step()
        view.hold()
        assert torch.equal(view.codebook(), before)
    view.unfreeze()
    _, loss, _ = model(torch.randn(6, D))
    loss.backward()
    optimizer.step()
    assert not torch.equal(view.codebook(), before)


def test_normalised_latents_are_what_the_codebook_is_compared_with() -> None:
    module = quantizers.Normalising().eval()
    x = torch.randn(3, 4, D) * 7
    observation = only_view(module).readers["forward"]((x,), {}, module(x))
    assert observation is not None
    torch.testing.assert_close(observation.latents, functional.normalize(x, dim=-1).reshape(-1, D))


def test_half_precision_is_no_obstacle_to_recognition() -> None:
    module = quantizers.Plain().to(torch.bfloat16)
    view = only_view(module)
    assert view.refs()["table"].attribute == "omega"
    assert module.omega.dtype is torch.bfloat16


def test_a_frozen_table_that_asks_for_gradients_and_is_re_bound_stands_still_in_every_forward() -> None:
    module = quantizers.Rebinding().train()
    view = only_view(module)
    assert view.kind == "ema"
    view.freeze()
    before = {role: tensor.clone() for role, tensor in view.tensors()}
    for _ in range(4):  # micro-batches of one step: no boundary in between
        loss, output, _ = module(torch.randn(3, D, 4, 2, requires_grad=True))
        (loss + output.sum()).backward()
        assert all(torch.equal(before[role], tensor) for role, tensor in view.tensors())


def test_a_forward_that_calls_itself_is_frozen_throughout() -> None:
    module = quantizers.Reentrant().train()
    view = only_view(module)
    view.freeze()
    before = {role: tensor.clone() for role, tensor in view.tensors()}
    module(torch.randn(6, D))
    assert all(torch.equal(before[role], tensor) for role, tensor in view.tensors())


def test_codes_are_read_where_a_training_forward_returns_them() -> None:
    module = quantizers.MoreInTraining()
    view = only_view(module)
    x = torch.randn(6, D)
    expected = torch.cdist(x, module.omega).argmin(-1)
    observation = view.readers["forward"]((x,), {}, module.train()(x))
    assert observation is not None
    assert torch.equal(observation.codes, expected)


def test_trials_leave_every_random_stream_where_it_was() -> None:
    class Noisy(quantizers.Plain):
        def forward(self, x: torch.Tensor) -> Any:
            random.random()
            np.random.rand(3)
            torch.rand(3)
            return super().forward(x)

    def streams() -> tuple[Any, str, list[int]]:
        return random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()

    module = Noisy()
    before = streams()
    only_view(module)
    assert streams() == before


def test_the_owners_hooks_do_not_see_trial_data() -> None:
    module = quantizers.Plain()
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    only_view(module)
    assert seen == []


def test_a_raw_row_cosine_quantizer_is_watched_and_not_written() -> None:
    view = only_view(quantizers.Cosine())
    assert view.why_not("monitor") is None
    assert "decodes with raw ones" in (view.why_not("reset") or "")


def test_rows_written_to_a_frozen_learnable_table_are_what_is_kept() -> None:
    model = nn.Sequential(quantizers.Learnable())
    view = discover(model, {"0": GenericVQ(table="embedding.weight", codes=lambda output: output[2])}).views[0]
    view.freeze()
    view.write_rows(torch.tensor([1]), torch.full((1, D), 7.0))
    with torch.no_grad():
        view.refs()["table"].whole().add_(1.0)  # an optimizer's weight decay, say
    view.hold()
    assert torch.equal(view.codebook()[1], torch.full((D,), 7.0))


def test_a_frozen_learnable_table_gets_zero_gradients() -> None:
    model = nn.Sequential(quantizers.Learnable())
    view = discover(model, {"0": GenericVQ(table="embedding.weight", codes=lambda output: output[2])}).views[0]
    view.freeze()
    model(torch.randn(6, D))[1].backward()
    gradient = view.refs()["table"].whole().grad
    assert gradient is not None
    assert not gradient.any()


def test_a_forward_that_raises_leaves_the_real_tensors_in_place() -> None:
    class Raising(quantizers.Plain):
        def update(self, z: torch.Tensor, codes: torch.Tensor) -> None:
            super().update(z, codes)
            if self.training and len(z) == 7:
                raise ValueError("in the middle of an update")

    module = Raising().train()
    view = only_view(module)
    view.freeze()
    table, before = module.omega, module.omega.clone()
    with pytest.raises(ValueError, match="in the middle"):
        module(torch.randn(7, D))
    assert module.omega is table
    assert torch.equal(module.omega, before)


def test_keywords_in_another_order_than_declared_hand_over_the_same_latents() -> None:
    class Weighted(quantizers.Plain):
        def forward(self, x: Tensor, weights: Tensor | None = None) -> Any:
            return super().forward(x if weights is None else x * weights)

    module = Weighted()
    view, given = only_view(module), torch.randn(2, 5, D)
    output = module(given)
    swapped = view.readers["forward"]((), {"weights": torch.ones(2, 5, 1), "x": given}, output)
    plain = view.readers["forward"]((given,), {}, output)
    assert swapped is not None
    assert plain is not None
    assert swapped.latents is not None
    assert plain.latents is not None
    torch.testing.assert_close(swapped.latents, plain.latents, rtol=0, atol=0)
