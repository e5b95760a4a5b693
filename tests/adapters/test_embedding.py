"""Image quantizers with a learnable embedding: which term `beta` scales, re-mapped ids, and what is left to others.

That codes, tables, resets and freezes are right for each class of each package is checked by the contract. The terms of
the losses are measured here on the packages themselves, without the adapter, by differentiating them.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as Diffusers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from collapse_guard import CodebookView, Guard, NoQuantizerError, discover
from collapse_guard.adapters import Knob
from collapse_guard.adapters.commitment import AddedCommitment
from collapse_guard.adapters.families.embedding import match_embedding
from collapse_guard.probe import Probe
from tests.contract.diffusers import vq_model
from tests.contract.taming import USED, images, quantize, remapped
from tests.contract.transformers_images import CONFIGS, QUANTIZERS

Build = Callable[[], nn.Module]

SCALES_THE_CODEBOOK: dict[str, Build] = {
    "taming 1": lambda: quantize.VectorQuantizer(16, 8, beta=0.25),
    "taming 2": lambda: quantize.VectorQuantizer2(16, 8, beta=0.25),
    "diffusers": lambda: Diffusers(16, 8, beta=0.25),
    **{name: QUANTIZERS[name] for name in ("Chameleon", "Janus", "GlmImage")},
}
SCALES_THE_COMMITMENT: dict[str, Build] = {
    "taming 2, legacy=False": lambda: quantize.VectorQuantizer2(16, 8, beta=0.25, legacy=False),
    "diffusers, legacy=False": lambda: Diffusers(16, 8, beta=0.25, legacy=False),
}
EITHER = SCALES_THE_CODEBOOK | SCALES_THE_COMMITMENT


def gradients(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the loss to the latents and to the table."""
    given = z.clone().requires_grad_()
    table = module.get_submodule("embedding").weight
    assert isinstance(table, Tensor)
    encoder, codebook = torch.autograd.grad(module(given)[1], (given, table))
    return encoder, codebook


def view_of(module: nn.Module) -> CodebookView:
    (view,) = discover(module).views
    assert view.adapter == "embedding"
    return view


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


# Which term beta scales


@pytest.mark.parametrize("name", SCALES_THE_CODEBOOK)
def test_beta_multiplies_the_codebook_gradient_and_the_commitment_weight_is_one(name: str) -> None:
    module, z = SCALES_THE_CODEBOOK[name](), images()
    encoder, codebook = gradients(module, z)
    module.beta = 1.0  # type: ignore[assignment]
    four_times = gradients(module, z)
    assert torch.equal(four_times[0], encoder)
    assert_close(four_times[1], 4 * codebook)
    commitment = view_of(module).commitment
    assert isinstance(commitment, AddedCommitment)
    assert commitment.get() == 1.0


@pytest.mark.parametrize("name", SCALES_THE_COMMITMENT)
def test_beta_multiplies_the_encoder_gradient_and_is_the_commitment_weight(name: str) -> None:
    module, z = SCALES_THE_COMMITMENT[name](), images()
    encoder, codebook = gradients(module, z)
    module.beta = 1.0  # type: ignore[assignment]
    four_times = gradients(module, z)
    assert_close(four_times[0], 4 * encoder)
    assert torch.equal(four_times[1], codebook)
    assert view_of(module).commitment == Knob(module, "beta")


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("name", EITHER)
def test_a_commitment_weight_multiplies_the_encoder_gradient_and_leaves_that_of_the_codebook(
    name: str, weight: float
) -> None:
    module, z = EITHER[name](), images()
    before = gradients(module, z)
    commitment = view_of(module).commitment
    assert commitment is not None
    factor = weight / commitment.get()
    commitment.set(weight)
    encoder, codebook = gradients(module, z)
    torch.testing.assert_close(encoder, factor * before[0], rtol=1e-4, atol=1e-4 * float(before[0].abs().max()))
    assert torch.equal(codebook, before[1])
    assert commitment.get() == weight


@pytest.mark.parametrize("name", SCALES_THE_CODEBOOK)
def test_the_loss_with_another_commitment_weight_is_that_of_the_formula_in_float64(name: str) -> None:
    module, z = SCALES_THE_CODEBOOK[name](), images()
    commitment = view_of(module).commitment
    assert commitment is not None
    commitment.set(0.1)
    loss = module(z)[1]
    latents = z.double().movedim(1, -1).reshape(-1, 8)
    table = module.get_submodule("embedding").weight.detach().double()  # type: ignore[operator]
    if name == "GlmImage":
        latents, table = functional.normalize(latents, dim=-1), functional.normalize(table, dim=-1)
    error = (latents - table[torch.cdist(latents, table).argmin(-1)]).square().mean()
    assert float(loss.detach()) == pytest.approx(float((0.1 + 0.25) * error), rel=1e-5)


@pytest.mark.parametrize("name", SCALES_THE_CODEBOOK)
def test_a_released_commitment_leaves_no_hook_and_the_same_bits(name: str) -> None:
    module, z = SCALES_THE_CODEBOOK[name](), images()
    before, loss = gradients(module, z), module(z)[1]
    view = view_of(module)
    assert view.commitment is not None
    view.commitment.set(0.25)
    assert len(module._forward_hooks) == 1
    view.release()
    assert view.commitment.get() == 1.0
    assert not module._forward_hooks
    assert torch.equal(module(z)[1], loss)
    assert all(torch.equal(now, then) for now, then in zip(gradients(module, z), before, strict=True))
    view.commitment.set(0.25)
    view.commitment.set(1.0)  # as undoing an intervention does
    assert not module._forward_hooks


def test_a_copy_of_a_model_with_another_commitment_weight_computes_its_own_loss() -> None:
    module, z = SCALES_THE_CODEBOOK["taming 2"](), images()
    loss = module(z)[1]
    view = view_of(module)
    assert view.commitment is not None
    view.commitment.set(0.25)
    assert not torch.equal(module(z)[1], loss)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(z)[1], loss)


@pytest.mark.filterwarnings("ignore::UserWarning")  # where the hooks break the graph
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_follows_each_change_of_the_commitment_weight() -> None:
    torch._dynamo.reset()
    module, z = SCALES_THE_CODEBOOK["taming 2"](), images()
    guard = Guard("observe", console=False)
    guard.attach(module)
    (probe,) = guard._watch.probes.values()
    assert probe.view.commitment is not None
    compiled = torch.compile(module, backend="eager")

    def encoder() -> Tensor:
        given = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(compiled(given)[1], given)
        return gradient

    whole = encoder()
    for weight in (0.25, 0.5, 1.0):
        probe.view.commitment.set(weight)
        assert_close(encoder(), weight * whole)
    guard.close()


@pytest.mark.parametrize("name", SCALES_THE_CODEBOOK)
def test_a_checkpointed_forward_gets_the_same_gradients_and_each_token_is_counted_once(name: str) -> None:
    module, z = SCALES_THE_CODEBOOK[name]().train(), images()
    probe = Probe(view_of(module), seed=0, on_error=_raise)
    assert probe.view.commitment is not None
    probe.view.commitment.set(0.25)
    encoder, codebook = gradients(module, z)
    probe.install()
    given = z.clone().requires_grad_()
    checkpoint(lambda x: module(x)[1], given, use_reentrant=False).backward()
    probe.remove()
    weight = module.get_submodule("embedding").weight
    assert isinstance(weight, Tensor)
    assert torch.equal(given.grad, encoder) if given.grad is not None else False
    assert torch.equal(weight.grad, codebook) if weight.grad is not None else False
    assert probe.window.tallies is not None
    assert int(probe.window.tallies[:16].sum()) == z.numel() // 8


def test_under_autocast_the_loss_keeps_its_type() -> None:
    module, z = SCALES_THE_CODEBOOK["taming 2"](), images()
    commitment = view_of(module).commitment
    assert commitment is not None
    with torch.autocast("cpu", torch.bfloat16):
        before = module(z.bfloat16())[1]
        commitment.set(0.25)
        after = module(z.bfloat16())[1]
    assert after.dtype == before.dtype
    assert float(after.detach()) == pytest.approx(float(before.detach()) * 0.5 / 1.25, rel=2e-2)


DECAYING: dict[str, Any] = {
    "version": 1,
    "name": "decaying",
    "mode": "act",
    "sample": {"every": "2 steps", "when_suspect": "2 steps", "min_tokens": 16},
    "warmup": "2 steps",
    "rules": [
        {
            "name": "always",
            "when": "perplexity < 1000",
            "for": 1,
            "severity": "critical",
            "verify": {"within": "100 steps"},
            "ladder": [{"decay_commitment": {"factor": 0.25, "floor": 0.01}}],
        }
    ],
}


def test_a_guard_decays_the_commitment_of_a_diffusers_model_and_takes_it_back_when_it_closes() -> None:
    model = vq_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    quantizer = model.get_submodule("quantize")
    guard = Guard(DECAYING, console=False)
    guard.attach(model, optimizer)
    x = torch.randn(2, 3, 8, 8)
    losses = []
    for _ in range(8):
        loss = model(x).commit_loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        guard.step()
    (reading,) = guard.readings.values()
    assert reading.commitment_weight == pytest.approx(0.25)
    assert losses[-1] == pytest.approx(losses[0] * (0.25 + 0.25) / (1 + 0.25), rel=1e-4)
    guard.close()
    assert not quantizer._forward_hooks
    assert float(model(x).commit_loss.detach()) == losses[0]


def test_a_resumed_guard_puts_the_commitment_weight_in_force_again() -> None:
    states: list[dict[str, Any]] = []
    for resumed in (False, True):
        torch.manual_seed(0)
        module = SCALES_THE_CODEBOOK["taming 2"]().train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        guard = Guard(DECAYING, console=False)
        guard.attach(module, optimizer)
        if resumed:
            guard.load_state_dict(states[0])
        else:
            for _ in range(4):
                module(images())
                guard.step()
            states.append(guard.state_dict())
        (probe,) = guard._watch.probes.values()
        assert probe.view.commitment is not None
        assert probe.view.commitment.get() == 0.25
        guard.close()


# Re-mapped ids


@pytest.mark.parametrize("unknown", ["random", "extra", 0])
@pytest.mark.parametrize("cls", [quantize.VectorQuantizer2, Diffusers])
def test_re_mapped_ids_are_counted_as_the_rows_that_were_chosen(cls: type[nn.Module], unknown: Any) -> None:
    module = remapped(cls, 16, 8, beta=0.25, unknown_index=unknown).train()
    with torch.no_grad():
        module.get_submodule("embedding").weight.normal_().add_(2.0)  # type: ignore[operator]
    view = view_of(module)
    probe = Probe(view, seed=0, on_error=_raise)
    probe.install()
    z = images()
    returned = module(z)[2][2]
    probe.remove()
    table = view.codebook().double()
    nearest = torch.cdist(z.double().movedim(1, -1).reshape(-1, 8), table).argmin(-1)
    assert int(returned.max()) <= len(USED)
    assert len(set(nearest.tolist()) - set(USED)) > 0  # rows without an id of their own were chosen
    assert probe.window.tallies is not None
    assert probe.window.tallies[:16].tolist() == torch.bincount(nearest, minlength=16).tolist()
    assert type(module) is cls


def test_two_forwards_in_a_row_are_each_counted_with_their_own_ids() -> None:
    module = remapped(Diffusers, 16, 8, beta=0.25).train()
    with torch.no_grad():
        module.get_submodule("embedding").weight.normal_().add_(2.0)  # type: ignore[operator]
    probe = Probe(view_of(module), seed=0, on_error=_raise)
    probe.install()
    expected = torch.zeros(16, dtype=torch.int64)
    for size in (4, 2):
        z = images()[:size]
        module(z)
        nearest = torch.cdist(z.movedim(1, -1).reshape(-1, 8), probe.view.codebook()).argmin(-1)
        expected += torch.bincount(nearest, minlength=16)
    probe.remove()
    assert probe.window.tallies is not None
    assert probe.window.tallies[:16].tolist() == expected.tolist()


def _raise(error: Exception) -> None:
    raise error


# What the table is


def test_rows_that_are_decoded_by_direction_are_measured_by_direction() -> None:
    module = SCALES_THE_CODEBOOK["GlmImage"]().train()
    with torch.no_grad():
        module.get_submodule("embedding").weight.mul_(1000.0)  # type: ignore[operator]
    guard = Guard(DECAYING | {"mode": "observe"}, console=False)
    guard.attach(module)
    for _ in range(2):
        module(images())
        guard.step()
    (reading,) = guard.readings.values()
    guard.close()
    assert reading.norm_ratio == pytest.approx(1.0, rel=1e-5)
    assert reading.relative_error is not None
    assert reading.relative_error < 10


def test_a_trial_leaves_module_and_random_streams_as_they_were() -> None:
    for build in EITHER.values():
        module = build()
        before = copy.deepcopy(module)
        stream = torch.get_rng_state()
        view_of(module)
        assert torch.equal(torch.get_rng_state(), stream)
        assert vars(module).keys() == vars(before).keys()
        torch.testing.assert_close(module.state_dict(), before.state_dict(), rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in module.parameters())


def test_a_forward_that_was_put_on_the_instance_is_not_run_by_a_trial() -> None:
    module = SCALES_THE_CODEBOOK["taming 2"]()
    calls = []
    original = module.forward

    def wrapped(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    module.forward = wrapped
    assert view_of(module).metric == "l2"
    assert not calls
    module(images())
    assert len(calls) == 1


def test_a_half_precision_module_in_eval_mode_with_a_frozen_table_is_recognised() -> None:
    module = SCALES_THE_CODEBOOK["Chameleon"]().to(torch.bfloat16).eval().requires_grad_(False)
    view = view_of(module)
    assert view.commitment is not None
    assert (view.metric, view.commitment.get()) == ("l2", 1.0)
    assert "requires_grad is False" in (view.why_not("reset") or "")


def test_tokens_of_a_gumbel_quantizer_are_counted_and_a_repair_is_refused_with_the_reason() -> None:
    module = quantize.GumbelQuantize(8, 8, 16, use_vqinterface=False).train()
    view = view_of(module)
    assert "drawn from the logits" in (view.why_not("reset") or "")
    assert "kl_weight" in (view.why_not("commitment") or "")
    probe = Probe(view, seed=0, on_error=_raise)
    probe.install()
    codes = module(images())[2]
    probe.remove()
    assert probe.window.tallies is not None
    assert probe.window.tallies[:16].tolist() == torch.bincount(codes.flatten(), minlength=16).tolist()


# What only looks like one


class Lookalike(nn.Module):
    """Everything that is told from structure, and a forward that is not a quantizer's."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.beta = 16, 8, 0.25
        self.embedding = nn.Embedding(16, 8)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(x, self.embedding.weight)


def _logits(x: Tensor, table: Tensor) -> Tensor:
    return torch.einsum("bchw,kc->bkhw", x, table)


def _loss(x: Tensor, rows: Tensor) -> Tensor:
    return (x.detach() - rows).square().mean() + (x - rows.detach()).square().mean()


def _rows_of(codes: Tensor, table: Tensor) -> Tensor:
    return table[codes].movedim(-1, 1)


def _second_nearest(x: Tensor, table: Tensor) -> Any:
    latents = x.movedim(1, -1)
    codes = torch.cdist(latents.reshape(-1, 8), table).argsort(-1)[:, 1].reshape(latents.shape[:-1])
    rows = _rows_of(codes, table)
    return x + (rows - x).detach(), _loss(x, rows), codes


def _soft(x: Tensor, table: Tensor) -> Any:
    weights = _logits(x, table).softmax(1)
    rows = torch.einsum("bkhw,kc->bchw", weights, table)
    return rows, _loss(x, rows), weights.argmax(1)


def _classifier(x: Tensor, table: Tensor) -> Any:
    logits = _logits(x, table)
    return logits, logits.logsumexp(1).mean(), logits.argmax(1)


def _greedy(x: Tensor, table: Tensor) -> Any:
    codes = _logits(x, table).argmax(1)
    rows = _rows_of(codes, table)
    return x + (rows - x).detach(), _loss(x, rows), codes


def _positions(x: Tensor, table: Tensor) -> Any:
    places = torch.arange(x.shape[-1]).expand(x.shape[0], *x.shape[2:])
    return x + _rows_of(places, table), x.square().mean(), places


LOOKALIKES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "soft assignment": _soft,
    "classifier with argmax": _classifier,
    "tied language model that feeds its greedy token back": _greedy,
    "codes alone, by the largest product": lambda x, table: _logits(x, table).argmax(1),
    "position embedding": _positions,
    "token embedding": lambda x, table: functional.embedding(x, table),
    "the second nearest row": _second_nearest,
    "float codes": lambda x, table: (x, x.square().mean(), x.square().mean(1)),
    "maxima of a pooling": lambda x, table: functional.max_pool2d(x, 2, return_indices=True),
    "no codes": lambda x, table: (x, x.square().mean(), None),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_only_has_the_attributes_of_a_quantizer_is_none(name: str) -> None:
    with pytest.raises(NoQuantizerError):
        discover(nn.Sequential(Lookalike(LOOKALIKES[name])))


def test_a_language_model_with_tied_embeddings_has_no_codebook() -> None:
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=32, n_positions=16)
    assert config.tie_word_embeddings
    with pytest.raises(NoQuantizerError):
        discover(GPT2LMHeadModel(config))


def test_of_a_multimodal_model_only_the_image_tokenizer_has_a_codebook() -> None:
    small: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {f"IMGIMG{letter}Z": index for index, letter in enumerate("ABCDEFGHIJABCDEF")}
    config = ChameleonConfig(
        **small, num_key_value_heads=2, vocab_size=32, vq_config=CONFIGS["Chameleon"].to_dict(), vocabulary_map=words
    )
    found = discover(ChameleonForConditionalGeneration(config))
    assert [view.name for view in found.views] == ["model.vqmodel.quantize"]
    assert not found.unrecognised


def test_a_wrapped_token_embedding_is_none_and_its_table_is_not_copied() -> None:
    copied = []

    class Heavy(nn.Parameter):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            copied.append(memo)
            return self

    tokens = Lookalike(lambda ids, table: functional.embedding(ids, table))
    tokens.embedding.weight = Heavy(torch.randn(16, 8))
    assert match_embedding("tokens", tokens) is None
    assert not copied
    with pytest.raises(NoQuantizerError):
        discover(nn.Sequential(tokens))


@pytest.mark.parametrize(("K", "D"), [(300, 8), (300, 300), (2, 8), (1000, 4)])
def test_a_trial_with_fewer_rows_says_the_same_of_a_large_table(K: int, D: int) -> None:
    for module in (quantize.VectorQuantizer(K, D, beta=0.25), Diffusers(K, D, beta=0.25, legacy=False)):
        view = view_of(module)
        assert (view.K, view.D, view.metric) == (K, D, "l2")
        assert view.commitment is not None
        assert isinstance(view.commitment, Knob) == isinstance(module, Diffusers)


def test_a_commitment_that_cannot_be_told_apart_is_refused_with_the_reason() -> None:
    def summed(x: Tensor, table: Tensor) -> Any:
        latents = x.movedim(1, -1).reshape(-1, 8)
        codes = torch.cdist(latents, table).argmin(-1)
        rows = table[codes].reshape(x.movedim(1, -1).shape).movedim(-1, 1)
        return x + (rows - x).detach(), (rows.detach() - x).square().sum() + (rows - x.detach()).square().sum(), codes

    def entangled(x: Tensor, table: Tensor) -> Any:
        quantised, _, codes = summed(x, table)
        return quantised, (table[codes].mean() - x.mean()).square(), codes

    for forward, word in ((summed, "number of tokens"), (entangled, "otherwise than by the mean")):
        view = view_of(Lookalike(forward))
        assert view.commitment is None
        assert word in (view.why_not("commitment") or "")
        assert view.why_not("reset") is None


def test_a_frozen_table_is_watched_and_never_written() -> None:
    quantizer: Any = Diffusers(16, 8, beta=0.25)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), quantizer)
    frozen = quantizer.embedding.weight.requires_grad_(False)
    (view,) = discover(model).views
    assert view.table.get().data_ptr() == frozen.data_ptr()
    assert {each: "requires_grad is False" in (view.why_not(each) or "") for each in ("reset", "fallback")} == {
        "reset": True,
        "fallback": True,
    }
    assert view.why_not("monitor") is None
    frozen.requires_grad_()
    assert [each.why_not("reset") for each in discover(model).views] == [None]
