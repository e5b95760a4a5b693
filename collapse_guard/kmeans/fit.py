"""A codebook for given latents: k-means, with every degenerate case defined.

What surrounds the backends: which latents count, in which frame of reference the backend sees them, what becomes of
codes that no latent backs, and what is reported. No training state is known here, and no random generator but its own
is touched.

The cases, for N latents of dimension D and K codes:

    a latent with NaN or Inf       dropped, as is one whose squared length exceeds float32, and a zero one with "cosine"
    no latent left                 ValueError
    at most K distinct latents     each is a code (inertia 0); the other rows are jittered copies, count 0 (`surplus`)
    more                           every code is backed by a latent, as far as float32 tells them apart
    constant latents, N < K        as "at most K distinct latents"
    K = 1                          the mean; with "cosine" its direction
    D = 1                          as any other; "cosine" has but two directions there, so K > 2 is a ValueError
    float16, bfloat16, float64     fitted and returned in float32
"""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from .backends import Backend, Start, drawn_at_random, resolve_backend
from .budget import Allowance, Budget
from .relocation import Refinement, refine
from .search import METRICS, Comparison, Metric, assign, squared_errors, unit_rows
from .surplus import distinct_rows, place_rows, refilled, spread_of, with_surplus

__all__ = ["CodebookFit", "fit_codebook"]

LATENTS_PER_CODE = 39
"""Below this many latents for each code a codebook follows the sample rather than what it was drawn from."""

_EARLY_LATENTS = 32  # per code: what the first rounds look at
_EARLY_SHARE = 0.5  # of the budget

Init: TypeAlias = Literal["k-means++", "random"]


@dataclass(frozen=True, slots=True, eq=False)
class CodebookFit:
    """A codebook, and how well it stands.

    Attributes:
        codebook: (K, D) float32 on the latents' device; rows of length 1 with metric "cosine".
        counts: (K,) int64 on the same device: how many of the latents that count `assign` gives to each code.
        inertia: sum of squared distances from these latents to their codes; with metric "cosine" from the normalised
            latents, which is 2 (1 - cos) each.
        iterations: how often all latents were compared with all codes, rounds on a part of them counted as that part,
            rounded up; 0 where every distinct latent is a code.
        seconds: wall time.
        backend: "faiss", "sklearn" or "torch".
        distinct: number of codes that latents back (count above 0), from 1 to K.
        moved: codes that relocation took from where they were hardly missed to where the error was.
    """

    codebook: Tensor
    counts: Tensor
    inertia: float
    iterations: int
    seconds: float
    backend: str
    distinct: int
    moved: int = 0

    @property
    def is_thin(self) -> bool:
        """Whether fewer than 39 latents a code were there: below that FAISS, too, warns of overfitting."""
        return int(self.counts.sum()) < LATENTS_PER_CODE * len(self.counts)

    def __str__(self) -> str:
        """Say what was fitted: `faiss, 4096 latents, few for 256 codes, error 0.0123`; the error is that of a latent.

        Where weights were given it is the weighed sum over the number of latents.
        """
        n, K = int(self.counts.sum()), len(self.counts)
        thin = f", few for {K} codes" if self.is_thin else ""
        return f"{self.backend}, {n} latents{thin}, error {self.inertia / n:.4g}"


@torch.no_grad()
def fit_codebook(
    latents: Tensor,
    K: int,
    *,
    backend: Backend = "auto",
    metric: Metric = "l2",
    budget: int | Budget = Budget(),  # noqa: B008
    seed: int = 0,
    init: Init | Tensor = "k-means++",
    weights: Tensor | None = None,
) -> CodebookFit:
    """Fit K codes to latents by k-means with relocation.

    A backend gives the start; Lloyd's algorithm ("Least squares quantization in PCM", 1982) and jumps of useless codes
    to where the error is (`relocation`) take turns from there. The same latents, seed, backend and number of threads
    give the same codebook, bit for bit, on CUDA too. The module docstring lists what happens with few, equal, constant
    or non-finite latents.

    Args:
        latents: (N, D) floating point, on any device.
        K: number of codes, at least 1.
        backend: "faiss", "sklearn", "torch", or "auto": torch on an accelerator, else FAISS where it is installed. All
            work with latents on any device; torch alone leaves them there.
        metric: "l2", or "cosine" for spherical k-means on normalised latents.
        budget: what to spend at most, in iterations, or a `Budget` that bounds the seconds too. One iteration is a
            comparison of all latents with all codes.
        seed: of the start, and of the jitter of surplus rows.
        init: "k-means++", the backend's own way to draw a start by squared distances; "random" latents; or a (K, D)
            codebook to start from. Its rows keep their indices: none jumps but those that no latent comes near.
        weights: (N,) finite, not negative: how much each latent counts in means and error, relative to the others; a
            latent of weight 0 is left out, as is one of less than a 2^60th of the largest.

    Raises:
        TypeError: latents that are no tensor of real numbers.
        ValueError: no usable latents, a wrong shape, or an argument out of range.

    >>> fit = fit_codebook(torch.tensor([[0.0], [0.2], [5.0], [5.2]]), 2)
    >>> [round(code, 3) for code in sorted(fit.codebook.flatten().tolist())], fit.counts.tolist(), round(fit.inertia, 3)
    ([0.1, 5.1], [2, 2], 0.04)
    """
    began = time.perf_counter()
    allowance = Allowance(budget if isinstance(budget, Budget) else Budget(budget))
    _check_arguments(latents, K, metric, init, weights)
    name, start = resolve_backend(backend, latents.device)
    seed = operator.index(seed) % 2**31  # what every generator takes
    unit, weights = _scaled(weights)
    usable, weighing = _usable(latents, metric, weights)
    first = _rows(init, metric).to(usable.device) if isinstance(init, Tensor) else None
    few = distinct_rows(usable, K)
    moved = 0
    if few is None:
        start = drawn_at_random if init == "random" else start
        found = _fitted(usable, K, metric, allowance, seed, first, start, weighing)
        table, moved = found.table, found.moved
    else:
        table = torch.full((K, usable.shape[1]), torch.nan, device=usable.device)
        table[place_rows(few, first, K).to(usable.device)] = few
    codes = assign(usable, table, metric)
    if few is None:
        table, codes = refilled(table, codes, usable, metric)
    table, codes = with_surplus(table, codes, usable, metric, seed)
    counts = codes.bincount(minlength=K)
    errors = squared_errors(usable, table, codes)
    return CodebookFit(
        codebook=table,
        counts=counts,
        inertia=_sum(errors if weighing is None else errors * weighing) * unit,
        iterations=math.ceil(allowance.spent - 1e-6),
        seconds=time.perf_counter() - began,
        backend=name,
        distinct=int((counts > 0).sum()),
        moved=moved,
    )


def _sum(values: Tensor) -> float:
    """Return a sum in double precision, on the device where that has any."""
    return float((values if values.device.type == "cuda" else values.cpu()).double().sum())


def _check_arguments(latents: Tensor, K: int, metric: str, init: Init | Tensor, weights: Tensor | None) -> None:
    given: object = latents  # whatever the annotation says
    if not isinstance(given, Tensor) or given.is_complex():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"latents: expected a tensor of real numbers, got {kind}; see torch.as_tensor")
    if latents.ndim != 2 or latents.shape[1] == 0:
        raise ValueError(
            f"latents: expected shape (N, D) with D at least 1, got {tuple(latents.shape)}; "
            "flatten batch, time and space first: latents.reshape(-1, D)"
        )
    if K < 1:
        raise ValueError(f"K: expected at least 1 code, got {K}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if metric == "cosine" and latents.shape[1] == 1 and K > 2:
        raise ValueError(f'metric "cosine": one dimension has two directions, got K={K}; use metric "l2"')
    if not isinstance(init, Tensor) and init not in get_args(Init):
        raise ValueError(f"init: expected {', '.join(get_args(Init))} or a (K, D) tensor, got {init!r}")
    if isinstance(init, Tensor) and tuple(init.shape) != (K, latents.shape[1]):
        raise ValueError(f"init: expected a codebook of shape {(K, latents.shape[1])}, got {tuple(init.shape)}")
    if weights is not None and (
        weights.shape != latents.shape[:1] or not bool(((weights >= 0) & weights.isfinite()).all())
    ):
        raise ValueError(
            f"weights: expected ({len(latents)},) finite numbers from 0, got {tuple(weights.shape)}: {weights}"
        )


def _rows(values: Tensor, metric: Metric) -> Tensor:
    rows = values.detach().float()
    return unit_rows(rows) if metric == "cosine" else rows


def _scaled(weights: Tensor | None) -> tuple[float, Tensor | None]:
    """Return a power of two and the weights in units of it, float32: sums of them neither overflow nor vanish."""
    if weights is None or not len(weights):
        return 1.0, weights
    values = weights.detach().cpu().double().numpy()
    exponent = int(np.frexp(values.max())[1]) - 1
    scaled = np.ldexp(values, -exponent)  # the largest is now from 1 to 2
    return 2.0**exponent, torch.from_numpy(np.where(scaled < 2.0**-60, 0.0, scaled)).float()


def _usable(latents: Tensor, metric: Metric, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the latents that count, (n, D) float32, normalised with metric "cosine", and their weights."""
    rows = latents.detach().float()
    fit = rows.square().sum(dim=1).isfinite()
    if metric == "cosine":
        fit &= (rows != 0).any(dim=1)
    if weights is not None:
        fit &= weights.to(rows.device) > 0
    if not fit.any():
        kinds = ["NaN", "Inf", "longer than 1.8e19"]
        kinds += ["zero"] if metric == "cosine" else []
        kinds += ["weight 0"] if weights is not None else []
        raise ValueError(
            f"latents: none of the {len(latents)} can be used ({', '.join(kinds)}); "
            "wait until the probe holds finite latents, or lower the learning rate if the encoder diverges"
        )
    kept = None if weights is None else weights.detach().to(rows.device, torch.float32)[fit]
    chosen = rows if bool(fit.all()) else rows[fit]  # a copy takes as long as the rest of this
    return _rows(chosen, metric).contiguous(), kept


def _fitted(
    points: Tensor,
    K: int,
    metric: Metric,
    allowance: Allowance,
    seed: int,
    init: Tensor | None,
    start: Start,
    weights: Tensor | None,
) -> Refinement:
    """Fit points of which more than K are distinct.

    With metric "l2" they are seen around the origin at unit spread: k-means does not mind, float32 does.
    """
    if metric == "cosine":
        shift, scale, framed = points.new_zeros(1), 1.0, points
    else:
        shift = points.mean(dim=0)
        scale = max(spread_of(points), torch.finfo(torch.float32).tiny)
        framed = (points - shift) / scale
    every = Comparison(framed, weights)
    if init is not None:
        begun = _finite_start((init - shift) / scale, framed, seed)
        found = refine(every, begun, metric, allowance, relocate=False)
    else:
        found = _from_start(every, K, metric, allowance, seed, start)
    return replace(found, table=found.table * scale + shift)


def _from_start(every: Comparison, K: int, metric: Metric, allowance: Allowance, seed: int, start: Start) -> Refinement:
    """Fit from nothing: start and first rounds on a part of the points where there are many for each code, then on all.

    Most of what relocation does a few latents of each code can tell; what they cannot, the later rounds make good.
    """
    few = every.part(_EARLY_LATENTS * K, seed) if len(every) >= 2 * _EARLY_LATENTS * K else every
    share = len(few) / len(every)
    begun, passes = start(few.points, K, metric, allowance.budget.iterations, seed, few.weights)
    table, moved = _rows(begun.to(few.points.device), metric), 0
    allowance.spent += passes * share
    if few is not every:
        reserve = (1 - _EARLY_SHARE) * allowance.budget.iterations
        found = refine(few, table, metric, allowance, relocate=True, share=share, reserve=reserve, is_rough=True)
        table, moved = found.table, found.moved
    found = refine(every, table, metric, allowance, relocate=True)
    return Refinement(found.table, moved + found.moved)


def _finite_start(values: Tensor, points: Tensor, seed: int) -> Tensor:
    """Return the start (K, D) with every row that no distance can be taken from replaced by one of the points."""
    start = values.clone()
    broken = ~start.square().sum(dim=1).isfinite()
    drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[: int(broken.sum())]
    start[broken] = points[drawn.to(points.device)]
    return start
