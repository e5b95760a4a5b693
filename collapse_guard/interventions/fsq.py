"""The stand-in of `substitute`: FSQ of vector-quantize-pytorch, and how it takes the place of a quantizer's forward."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from collapse_guard.adapters import CodebookView
from collapse_guard.adapters.nested import flatten_tensors, map_tensors
from collapse_guard.hooks import Hook
from collapse_guard.kmeans import assign

from .holds import Hold

__all__ = ["Layout", "StandIn", "find_layout", "levels_for", "make_fsq", "table_of"]

_LARGEST = 8  # levels of a dimension, where they are chosen here
_SPREAD = 0.8  # a normal variable, scaled so and squashed by tanh, fills (-1, 1) evenly: 1 + tanh(0.8 x) ~ 2 Phi(x)
_TOKENS = 4


def levels_for(K: int, D: int, wanted: Sequence[int] | None) -> tuple[int, ...] | str:
    """Return the levels of an FSQ with K codes, or why there are none.

    >>> levels_for(512, 64, None), levels_for(1000, 64, None), levels_for(16, 2, None)
    ((8, 8, 8), (8, 5, 5, 5), 'FSQ of levels 8, 2 takes fewer dimensions than the codebook has: it has 2')

    Args:
        K: number of codes. D: their dimension.
        wanted: levels that were named.
    """
    levels = tuple(wanted) if wanted is not None else _factors(K)
    product = 1
    for level in levels:
        product *= level
    if product != K:
        return f"expected levels whose product is the number of codes, {K}, got {', '.join(map(str, levels))}"
    if max(levels) > 64:
        return f"{K} codes are no product of small levels: name others, for another number of codes there is no room"
    if len(levels) >= D:
        shown = ", ".join(map(str, levels))
        return f"FSQ of levels {shown} takes fewer dimensions than the codebook has: it has {D}"
    return levels


def _factors(K: int) -> tuple[int, ...]:
    """Return factors of K, each as large as may be up to 8, primes above that by themselves."""
    levels = []
    while K > 1:
        level = next((each for each in range(_LARGEST, 1, -1) if K % each == 0), None)
        if level is None:
            level = next(each for each in range(_LARGEST + 1, K + 1) if K % each == 0)
        levels.append(level)
        K //= level
    return tuple(levels)


def make_fsq(levels: Sequence[int], view: CodebookView, latents: Tensor, *, seed: int) -> nn.Module:
    """Return an FSQ whose projections fit (n, D) latents: principal directions in, the best linear map back out.

    The run's random streams are left alone.
    """
    from vector_quantize_pytorch import FSQ

    device, D, m = view.codebook().device, view.D, len(levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fsq = FSQ(levels=list(levels), dim=D, preserve_symmetry=2 in levels).to(device)
    with torch.no_grad():
        data = latents.to(device, torch.float32)
        mean = data.mean(dim=0)
        _, values, directions = torch.linalg.svd((data - mean).double(), full_matrices=False)
        spread = (values / max(len(data) - 1, 1) ** 0.5)[:m]
        found = len(spread)
        scale = _SPREAD / spread.clamp(min=1e-12 + float(values.max()) * 1e-6)
        project_in, project_out = cast(nn.Linear, fsq.project_in), cast(nn.Linear, fsq.project_out)
        weight = (directions[:found] * scale.unsqueeze(-1)).float()
        project_in.weight[:found].copy_(weight)
        project_in.bias[:found].copy_(-(weight @ mean))
        codes = fsq.quantize(project_in(data).unsqueeze(-2)).squeeze(-2).double()
        design = torch.cat([codes, torch.ones(len(codes), 1, dtype=codes.dtype, device=device)], dim=-1)
        ridge = 1e-6 * len(codes) * torch.eye(m + 1, dtype=codes.dtype, device=device)
        solution = torch.linalg.solve(design.t() @ design + ridge, design.t() @ data.double()).float()
        project_out.weight.copy_(solution[:m].t())
        project_out.bias.copy_(solution[m])
    return cast(nn.Module, fsq)


@torch.no_grad()
def table_of(fsq: nn.Module) -> Tensor:
    """Return the (K, D) vectors that the codes of an FSQ stand for."""
    return cast(Tensor, cast(Any, fsq).project_out(fsq.implicit_codebook.float()))


@dataclass(frozen=True, slots=True)
class Layout:
    """What a quantizer takes and returns.

    Attributes:
        module: the quantizer. K: its codes.
        is_last: whether channels lie last in what it takes; else they lie at axis 1.
    """

    module: nn.Module
    K: int
    is_last: bool

    def tokens(self, given: Tensor) -> Tensor:
        """Return what it takes with the channels last."""
        return given if self.is_last else given.movedim(1, -1)

    def replaced(self, given: Tensor, output: Any, quantised: Tensor, codes: Tensor) -> Any:
        """Return an output with other vectors and codes; what was trained of it is zero.

        Args:
            given: what the quantizer took. output: what it returned.
            quantised: (..., D), channels last. codes: (...) of the same tokens.
        """
        vectors = quantised if self.is_last else quantised.movedim(-1, 1)
        count = codes.numel()

        def put(value: Tensor) -> Tensor:
            if value.is_floating_point() and value.shape == given.shape:
                return vectors.to(value.dtype)
            if not value.is_floating_point() and value.dtype is not torch.bool and value.numel() == count:
                return codes.reshape(value.shape).to(value.dtype)
            if value.is_floating_point() and value.shape == (count, self.K):
                return functional.one_hot(codes.reshape(-1).long(), self.K).to(value.dtype)
            return torch.zeros_like(value) if value.is_floating_point() and value.requires_grad else value

        return map_tensors(output, put)


def find_layout(model: nn.Module, view: CodebookView, *, least_ndim: int = 2) -> Layout | str:
    """Return what the quantizer of a codebook takes and returns, tried on a copy in evaluation mode, or why not.

    It is understood where its codes are the nearest rows of what it is given, and it returns one vector and one code
    for each token.

    Args:
        model: the root. view: the codebook.
        least_ndim: fewest axes of what it must take: 3 where the batch's has to be one of them.
    """
    try:
        module = model.get_submodule(view.name)
    except AttributeError:
        return "its codebook is one of several of one module: it cannot be replaced by itself"
    table = view.codebook().float()
    try:
        twin = copy.deepcopy(module).eval()
    except Exception as error:  # such as of the tensors that a weight_norm leaves from a forward
        return f"a copy on which its forward would be tried cannot be made: {type(error).__name__}: {error}"
    generator = torch.Generator(device=table.device).manual_seed(0)
    for shape, is_last in (((1, _TOKENS, view.D), True), ((_TOKENS, view.D), True), ((1, view.D, 2, 2), False),
                           ((1, view.D, _TOKENS), False)):  # fmt: skip
        if len(shape) < least_ndim:
            continue
        noise = torch.randn(_TOKENS, view.D, generator=generator, device=table.device)
        rows = table[:: max(1, len(table) // _TOKENS)][:_TOKENS]
        tokens = torch.cat([rows, rows[:1].expand(_TOKENS - len(rows), -1)]) + 0.1 * table.std() * noise
        given = tokens.reshape(shape) if is_last else tokens.t().reshape(shape)
        try:
            with torch.no_grad():
                output = twin(given)
        except Exception:
            continue
        codes = assign(tokens, table, view.metric, backend="torch")
        flat = list(flatten_tensors(output))
        has_vectors = any(each.is_floating_point() and each.shape == given.shape for each in flat)
        integers = [each for each in flat if not each.is_floating_point() and each.numel() == _TOKENS]
        if has_vectors and any(torch.equal(each.reshape(-1).long(), codes) for each in integers):
            return Layout(module, view.K, is_last)
    return "what its forward takes and returns is not understood: one vector and one nearest code for each token"


class StandIn(Hold):
    """The forward of a quantizer with FSQ in its place, whose projections an optimizer trains.

    Args:
        layout: of the quantizer.
        fsq: from `make_fsq`.
        optimizer: that is to train the projections, in its last group.
    """

    name = "substitute"

    def __init__(self, layout: Layout, fsq: nn.Module, optimizer: Optimizer) -> None:
        """Store the parts; nothing is hooked before `install`."""
        self.fsq = fsq
        self.levels: list[int] = cast(Tensor, fsq._levels).tolist()
        self._layout = layout
        self.optimizer = optimizer
        self._handles: list[RemovableHandle] = []

    @property
    def place(self) -> Hashable:
        """The quantizer."""
        return self.name, id(self._layout.module)

    @property
    def size(self) -> int:
        """Numbers in the projections."""
        return sum(each.numel() for each in self.fsq.parameters())

    @property
    def is_in_force(self) -> bool:
        """Whether it stands in."""
        return bool(self._handles)

    def describe(self) -> dict[str, Any]:
        """Return levels and size."""
        return {"levels": self.levels, "parameters": self.size}

    def install(self) -> None:
        """Replace what the quantizer returns, and let the optimizer train the projections."""
        if self._handles:
            return
        self._failure = None
        self.optimizer.param_groups[-1]["params"].extend(self.fsq.parameters())
        module = self._layout.module
        self._handles = [
            module.register_forward_hook(Hook(self._replace), with_kwargs=True),
            self.optimizer.register_state_dict_post_hook(self._leave_out),
        ]

    def remove(self) -> None:
        """Give the quantizer its own forward back, and the optimizer its own parameters."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        own = {id(each) for each in self.fsq.parameters()}
        group = self.optimizer.param_groups[-1]
        group["params"] = [each for each in group["params"] if id(each) not in own]
        for parameter in self.fsq.parameters():
            self.optimizer.state.pop(parameter, None)

    def _replace(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if self._failure is not None:
            return None
        try:
            given = next(flatten_tensors((args, kwargs)))
            tokens = self._layout.tokens(given)
            with torch.autocast(given.device.type, enabled=False):  # codes must be those whose vectors the table holds
                quantised, codes = self.fsq(tokens.reshape(1, -1, tokens.shape[-1]).float())
            return self._layout.replaced(
                given, output, quantised.reshape(tokens.shape), codes.reshape(tokens.shape[:-1]).long()
            )
        except Exception as error:  # the user's forward must not fail for the guard
            self._failure = error
            return None

    def _leave_out(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Write a state dict as if the projections were not there: they are the last parameters of all."""
        group = state["param_groups"][-1]
        count = sum(1 for _ in self.fsq.parameters())
        gone = group["params"][-count:]
        state["param_groups"] = [*state["param_groups"][:-1], {**group, "params": group["params"][:-count]}]
        state["state"] = {key: value for key, value in state["state"].items() if key not in gone}

    def state_dict(self) -> dict[str, Any]:
        """Return levels, projections and their optimizer state, as plain data and tensors."""
        states = [dict(self.optimizer.state.get(each, {})) for each in self.fsq.parameters()]
        tensors = {name: each.detach().cpu().clone() for name, each in self.fsq.named_parameters()}
        return {"levels": self.levels, "tensors": tensors, "states": states}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over projections and optimizer state."""
        for name, each in self.fsq.named_parameters():
            each.copy_(state["tensors"][name])
        for each, kept in zip(self.fsq.parameters(), state["states"], strict=True):
            if kept:
                moved = {key: _beside(value, key, each) for key, value in kept.items()}
                self.optimizer.state[each] = moved


def _beside(value: Any, key: str, parameter: nn.Parameter) -> Any:
    """Return a piece of optimizer state on its parameter's device; step counters stay on the host."""
    return value.to(parameter.device) if isinstance(value, Tensor) and key != "step" else value
