"""Image quantizers whose table is the learnable `nn.Embedding` of the module: taming-transformers and what came of it.

taming's `VectorQuantizer` and `VectorQuantizer2`, diffusers' `VectorQuantizer`, and the vector quantizers of Chameleon,
Janus, GlmImage and Emu3 in transformers. They look alike and are not: some search by angle, and in most of them `beta`
weighs the pull on the codebook, not the commitment. A trial forward of a *copy* tells; a module whose codes are not the
nearest rows of its table is left to others. None of these libraries is imported.

taming's `GumbelQuantize` draws its codes from the logits of a convolution: it is watched, and cannot be repaired here.
Its `EMAVectorQuantizer` is in no release, and cannot be constructed from its repository, where a name is not defined.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.base import CodebookView, Metric, Observation, Reader, Unrecognised
from collapse_guard.adapters.commitment import AddedCommitment, find_commitment
from collapse_guard.adapters.nested import flatten_tensors, given_tensor
from collapse_guard.adapters.refs import Knob, Switch, TensorRef
from collapse_guard.kmeans import assign

__all__ = ["match_embedding"]

_DRAWN = (
    "its codes are drawn from the logits of a convolution, not by distance: a row placed anew would be drawn no more"
)
_KL = "its loss is a divergence to uniform codes (kl_weight), not a commitment: it has no term that pulls to the codes"
_TRIAL_ROWS = 256
_SHAPES = ((2, 6, 8), (2, 2, 4, 6))  # all but the channels, which stand third from the end: images, and clips


@dataclass(frozen=True, slots=True)
class _Structure:
    """What a candidate is made of.

    Attributes:
        table: name of the child that holds the codes.
        projection: the child that its input goes through first, where there is one.
    """

    table: str
    projection: str | None

    def embedding(self, module: nn.Module) -> nn.Embedding:
        """Return the table's owner."""
        return cast(nn.Embedding, getattr(module, self.table))

    def project(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return (..., D, H, W) what is compared with the table; hooks on the projection stay silent."""
        return given if self.projection is None else getattr(module, self.projection).forward(given)


@dataclass(frozen=True, slots=True)
class _Search:
    """How a trial searched: by which metric, and whether the row itself or its direction is the quantised vector."""

    metric: Metric
    decodes_raw: bool

    def as_compared(self, projected: Tensor) -> Tensor:
        """Return (..., D, H, W) with the length that decoded rows have."""
        return projected if self.decodes_raw else functional.normalize(projected, dim=-3)


def match_embedding(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise the module by its children and a trial; `None` where its codes are not the nearest rows."""
    if _draws(module):
        return [_watched(name, module)]
    structure = _structure(module)
    if structure is None:
        return None
    devices = [structure.embedding(module).weight.device]
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        return _try(name, module, structure)


def _structure(module: nn.Module) -> _Structure | None:
    """Return the candidate's parts; its table must be all that it trains, but for a projection of its input.

    With moving averages beside it the table would be theirs, and another family's.
    """
    children = dict(module.named_children())
    tables = [key for key in ("embedding", "embed") if type(children.get(key)) is nn.Embedding]
    if len(tables) != 1 or list(module.parameters(recurse=False)):
        return None
    table = cast(nn.Embedding, children.pop(tables[0]))
    trained = [key for key, child in children.items() if list(child.parameters())]
    structure = _Structure(tables[0], trained[0] if trained else None)
    if table.padding_idx is not None or len(trained) > 1 or _averages(module, table.weight):
        return None
    if trained:
        projection = children[trained[0]]
        if not isinstance(projection, nn.Conv2d) or projection.out_channels != table.embedding_dim:
            return None
    return structure


def _averages(module: nn.Module, table: Tensor) -> list[str]:
    """Return the buffers that may be moving averages of the table or of its counts."""
    sizes = (len(table), table.numel())
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if name != "embed_prob")  # shares, for anchors
    return [name for name, buffer in buffers if buffer.is_floating_point() and buffer.numel() in sizes]


def _try(name: str, module: nn.Module, structure: _Structure) -> Sequence[CodebookView] | None:
    """Let a copy search among random rows; make the view of what it turns out to be."""
    table = structure.embedding(module)
    for K in sorted({table.num_embeddings, _trial_rows(table)}):
        for shape in _SHAPES:
            try:
                twin = _twin(module, structure, K)
                given = _input(twin, structure, shape)
                search = _search(twin, structure, given)
            except (
                Exception
            ):  # foreign code may refuse the copy or the layout in any way; then there is nothing to learn
                continue
            if search is not None:
                return [_view(name, module, structure, search, _commitment(module, twin, structure, search, given))]
    return None


def _trial_rows(table: nn.Embedding) -> int:
    """Return how many rows are enough for a trial: of a large table, gradients take long and a copy takes room."""
    K, D = table.weight.shape
    return K if K == D else min(K, _TRIAL_ROWS)


def _commitment(
    module: nn.Module, twin: nn.Module, structure: _Structure, search: _Search, given: Tensor
) -> Knob | AddedCommitment | str:
    def term(owner: nn.Module, given: Tensor, quantised: Tensor) -> Tensor:
        latents = search.as_compared(structure.project(owner, given))
        return (quantised.detach() - latents).square().mean()

    try:
        return find_commitment(module, twin, structure.embedding(twin).weight, given, term)
    except Exception as error:  # as above; codes and rows are known all the same
        return f"what weighs its commitment could not be found: {type(error).__name__}: {error}"


def _twin(module: nn.Module, structure: _Structure, K: int) -> nn.Module:
    """Return a copy in eval mode and float32, with K random rows of different lengths, ids as they are, no hooks."""
    table = structure.embedding(module).weight
    generator = torch.Generator(table.device).manual_seed(1234)
    rows = torch.empty(K, table.shape[1], device=table.device).normal_(generator=generator)
    rows *= torch.linspace(0.5, 2.0, K, device=table.device).unsqueeze(-1)
    twin = copy.deepcopy(module, {id(table): nn.Parameter(rows)}).float().eval()
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        part.__dict__.pop("forward", None)  # one that was put on the instance still belongs to the original
        for key, value in vars(part).items():
            if type(value) is int and value == len(table):
                setattr(part, key, K)
    if hasattr(twin, "remap"):
        twin.remap = None  # type: ignore[assignment]
    return twin.requires_grad_()


def _input(twin: nn.Module, structure: _Structure, shape: tuple[int, ...]) -> Tensor:
    weight = structure.embedding(twin).weight
    channels = weight.shape[1]
    if structure.projection is not None:
        channels = cast(nn.Conv2d, getattr(twin, structure.projection)).in_channels
    given = torch.randn(*shape[:-2], channels, *shape[-2:], generator=torch.Generator().manual_seed(4321))
    return given.to(weight.device)


@torch.no_grad()
def _search(twin: nn.Module, structure: _Structure, given: Tensor) -> _Search | None:
    """Say how the copy searched; `None` where it returned no codes that are nearest rows, or no rows for them."""
    output = twin(given)
    codes, table = _codes(output), structure.embedding(twin).weight
    latents = _rows(structure.project(twin, given))
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.numel() != len(latents):
        return None
    metrics: tuple[Metric, ...] = ("l2", "cosine")
    found = {
        each: float((assign(latents, table, each, backend="torch") == codes.reshape(-1)).float().mean())
        for each in metrics
    }
    metric = max(metrics, key=lambda each: found[each])
    if found[metric] < 0.9:  # rounding may decide a token, no more
        return None
    if isinstance(output, Tensor):
        return _Search(metric, decodes_raw=metric == "l2")
    for raw in (True, False):
        decoded = table if raw else functional.normalize(table, dim=-1)
        if torch.allclose(_rows(output[0]), decoded[codes.reshape(-1)], rtol=1e-4, atol=1e-5):
            return _Search(metric, decodes_raw=raw) if raw or metric == "cosine" else None
    return None


def _view(
    name: str, module: nn.Module, structure: _Structure, search: _Search, commitment: Knob | AddedCommitment | str
) -> CodebookView:
    started = getattr(module, "data_initialized", None)
    return CodebookView(
        name=name,
        adapter="embedding",
        module=module,
        table=TensorRef(structure.embedding(module), "weight"),
        readers=_readers(module, structure, search),
        metric=search.metric,
        decodes_raw=search.metric == "cosine" and search.decodes_raw,
        commitment=None if isinstance(commitment, str) else commitment,
        replacement=_replacement(module),
        is_initialised=(lambda: True) if started is None else (lambda: bool(module.data_initialized)),
        lacks={"commitment": commitment} if isinstance(commitment, str) else {},
    )


def _replacement(module: nn.Module) -> Switch | None:
    """Return the switch of codes that are re-initialised from latents in each forward, where the module has it."""
    names = ("init", "anchor", "embed_prob")
    return Switch(module, {"init": True}) if all(hasattr(module, name) for name in names) else None


def _readers(module: nn.Module, structure: _Structure | None, search: _Search | None) -> dict[str, Reader]:
    """Return the reader of (quantised, loss, codes), (quantised, loss, (perplexity, one-hot, codes)) or codes alone.

    A module that re-maps its ids returns others than those of its rows, made up at random for rows that have none. The
    true ones are what its method `remap_to_used` is called with.
    """
    true_ids: list[Tensor] = []

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        codes = true_ids[0] if getattr(module, "remap", None) is not None else _codes(output)
        latents = None
        if structure is not None and search is not None:
            given = cast(Tensor, given_tensor(type(module).forward, args, kwargs)).detach()
            latents = _rows(search.as_compared(structure.project(module, given)))
        return Observation(codes.detach().reshape(-1), latents)

    def read_ids(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        true_ids[:] = [next(flatten_tensors((args, kwargs))).detach()]
        return None

    remaps = getattr(module, "remap", None) is not None and callable(getattr(type(module), "remap_to_used", None))
    return {"forward": read} | ({"remap_to_used": read_ids} if remaps else {})


def _codes(output: Any) -> Any:
    """Return the codes as the module returns them, of any shape."""
    while isinstance(output, tuple):
        output = output[2]
    return output


def _rows(latents: Tensor) -> Tensor:
    """(..., D, H, W) -> (n, D), in the order of the codes."""
    return latents.movedim(-3, -1).reshape(-1, latents.shape[-3])


def _draws(module: nn.Module) -> bool:
    """Whether the module draws its codes by Gumbel noise from the logits of a convolution."""
    embed, proj = getattr(module, "embed", None), getattr(module, "proj", None)
    numbers = (getattr(module, key, None) for key in ("temperature", "kl_weight", "straight_through"))
    return (
        isinstance(embed, nn.Embedding)
        and isinstance(proj, nn.Conv2d)
        and proj.out_channels == embed.num_embeddings
        and all(isinstance(number, (int, float)) for number in numbers)
    )


def _watched(name: str, module: nn.Module) -> CodebookView:
    return CodebookView(
        name=name,
        adapter="embedding",
        module=module,
        table=TensorRef(cast(nn.Embedding, module.embed), "weight"),
        readers=_readers(module, None, None),
        lacks=dict.fromkeys(("reset", "freeze", "fallback"), _DRAWN) | {"commitment": _KL},
    )
