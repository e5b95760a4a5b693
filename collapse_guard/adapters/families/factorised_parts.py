"""What a factorised quantizer is made of, and what a trial forward of a twin tells of it.

The twin is of the same class, with random weights of its own and without hooks. A copy would not do: weights under
weight normalisation cannot be deep-copied once they were computed with gradients. Nothing outside of the twin is
touched, no random stream either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.base import Metric, Observation, Reader
from collapse_guard.adapters.nested import flatten_tensors, given_tensor
from collapse_guard.kmeans import assign

__all__ = ["Form", "Parts", "alone", "as_rows", "confirm", "parts_of", "reader_of", "twin_of", "twin_of_parts"]

_PROJECTIONS = (("in_proj", "out_proj"), ("in_project", "out_project"))
_AGREES = 0.99
_FRAMES = 25
_TRIAL_SEED = 1234
_METRICS: tuple[Metric, ...] = ("cosine", "l2")


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a factorised quantizer.

    Attributes:
        module: the quantizer.
        into: the projection in; the identity where nothing is projected.
        out: the projection back.
        codebook: (K, d).
        stride: how many frames of the input are averaged into one token.
    """

    module: nn.Module
    into: nn.Module
    out: nn.Module
    codebook: nn.Embedding
    stride: int

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        if isinstance(self.into, nn.Conv1d):
            return self.into.in_channels
        return self.into.in_features if isinstance(self.into, nn.Linear) else self.codebook.embedding_dim

    def project(self, given: Tensor) -> Tensor:
        """(B, C, T) -> (B, d, T / stride), what the codes are compared with."""
        pooled = functional.avg_pool1d(given, self.stride, self.stride) if self.stride > 1 else given
        return _project(self.into, pooled)

    def project_back(self, rows: Tensor) -> Tensor:
        """(B, d, T) -> (B, C, T)."""
        return _project(self.out, rows)


@dataclass(frozen=True, slots=True)
class Form:
    """How a quantizer compares, and what its forward takes and returns.

    Attributes:
        metric: how it compares.
        decodes_raw: whether the raw row is decoded, its length included.
        codes: position of the codes among the output's tensors.
        latents: position of the projected latents; `None` where they are not returned.
        decoded: position of the decoded rows, projected back.
        axis: of the channels in the input.
    """

    metric: Metric
    decodes_raw: bool
    codes: int
    latents: int | None
    decoded: int
    axis: Literal[1, -1]


def parts_of(module: nn.Module) -> Parts | None:
    """Return the parts of a module that has those of a factorised quantizer; `None` of any other."""
    codebook = getattr(module, "codebook", None)
    if not isinstance(codebook, nn.Embedding) or not any(codebook is child for child in module.children()):
        return None
    for names in _PROJECTIONS:
        into, out = (cast(nn.Module, getattr(module, name, None)) for name in names)
        if _is_pointwise(into) and _is_pointwise(out):
            stride = getattr(module, "stride", 1)
            return Parts(module, into, out, codebook, stride if isinstance(stride, int) else 1)
    return None


def reader_of(parts: Parts, form: Form) -> Reader:
    """Return the reader of the quantizer's forward. Where latents are not returned, they are projected once more."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        tensors = list(flatten_tensors(output))
        if form.latents is not None:
            latents = tensors[form.latents].detach()
        else:
            given = cast(Tensor, given_tensor(type(parts.module).forward, args, kwargs)).detach()
            latents = parts.project(given.movedim(form.axis, 1))
        return Observation(tensors[form.codes].detach().reshape(-1), as_rows(latents))

    return read


def as_rows(channels_first: Tensor) -> Tensor:
    """(B, d, T) -> (B T, d), in the order in which (B, T) codes lie."""
    return channels_first.movedim(1, -1).reshape(-1, channels_first.shape[1])


def confirm(parts: Parts) -> Form | None:
    """Return the form of a quantizer as a trial forward of a twin shows it; `None` where it shows none."""
    with alone():
        twin = twin_of_parts(parts)
        for axis in (1, -1):
            given = torch.randn(2, twin.channels, _FRAMES * twin.stride).movedim(1, axis)
            try:
                form = _explain(twin, given, twin.module(given), axis)
            except Exception:  # foreign code may refuse a layout in any way, or return anything
                continue
            if form is not None:
                return form
    return None


@contextmanager
def alone() -> Iterator[None]:
    """Run trials on the CPU, without gradients, and on a random stream of their own."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(_TRIAL_SEED)
        yield


def twin_of_parts(parts: Parts) -> Parts:
    """Return the parts of a twin in training mode, with random weights in float32 and rows of different lengths."""
    K, d, C = parts.codebook.num_embeddings, parts.codebook.embedding_dim, parts.channels
    into, out, codebook = _plain(parts.into, C, d), _plain(parts.out, d, C), nn.Embedding(K, d)
    codebook.weight.mul_(0.5 + torch.rand(K, 1))
    twins = {parts.into: into, parts.out: out, parts.codebook: codebook}
    return Parts(twin_of(parts.module, twins), into, out, codebook, parts.stride)


def twin_of(module: nn.Module, children: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a module of the same class in training mode, on the CPU, without hooks.

    Args:
        module: is left as it is; the twin has copies of its own tensors, and of children that are not replaced.
        children: child -> what takes its place.
    """
    twin = object.__new__(type(module))
    hooks = {name: value for name, value in nn.Module().__dict__.items() if isinstance(value, OrderedDict)}
    twin.__dict__.update({**module.__dict__, **hooks})
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    twin._parameters = {name: nn.Parameter(copies[name]) if name in copies else None for name in module._parameters}
    twin._buffers = {name: copies.get(name) for name in module._buffers}
    twin._modules = {
        name: children[child] if child is not None and child in children else deepcopy(child)
        for name, child in module._modules.items()
    }
    return twin.cpu().float().train()


def _project(projection: nn.Module, x: Tensor) -> Tensor:
    """(B, C, T) -> (B, C', T) with the weights that a projection holds now; its hooks do not run."""
    if isinstance(projection, nn.Conv1d):
        return functional.conv1d(x, projection.weight, projection.bias)
    if isinstance(projection, nn.Linear):
        return functional.linear(x.movedim(1, -1), projection.weight, projection.bias).movedim(-1, 1)
    return x


def _is_pointwise(projection: Any) -> bool:
    """Whether a projection treats each frame by itself."""
    if isinstance(projection, nn.Conv1d):
        shape = (projection.kernel_size, projection.stride, projection.padding, projection.groups)
        return shape == ((1,), (1,), (0,), 1)
    return isinstance(projection, (nn.Linear, nn.Identity))


def _plain(projection: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """Return a projection of the same kind with weights of its own, none of them normalised."""
    has_bias = getattr(projection, "bias", None) is not None
    if isinstance(projection, nn.Conv1d):
        return nn.Conv1d(inputs, outputs, 1, bias=has_bias)
    return nn.Linear(inputs, outputs, bias=has_bias) if isinstance(projection, nn.Linear) else nn.Identity()


def _explain(twin: Parts, given: Tensor, output: Any, axis: Literal[1, -1]) -> Form | None:
    """Find codes that are the nearest of the projected input, and the rows that were decoded for them."""
    latents, table = twin.project(given.movedim(axis, 1)), twin.codebook.weight
    tensors = list(flatten_tensors(output))
    for at, codes in enumerate(tensors):
        if codes.is_floating_point() or codes.is_complex() or codes.shape != latents[:, 0].shape:
            continue
        for metric in _METRICS:
            nearest = assign(as_rows(latents), table, metric, backend="torch")
            if float((nearest == codes.reshape(-1)).float().mean()) < _AGREES:
                continue
            for raw in (True, False):
                rows = table if raw else functional.normalize(table, dim=-1)
                decoded = twin.project_back(rows[codes].movedim(-1, 1)).repeat_interleave(twin.stride, dim=-1)
                if (place := _find(tensors, decoded.movedim(1, axis))) is not None:
                    return Form(metric, raw, at, _find(tensors, latents), place, axis)
    return None


def _find(tensors: Sequence[Tensor], wanted: Tensor) -> int | None:
    """Return the position of the tensor that holds these values, up to rounding."""
    for at, tensor in enumerate(tensors):
        if tensor.shape == wanted.shape and torch.allclose(tensor.float(), wanted, rtol=1e-3, atol=1e-4):
            return at
    return None
