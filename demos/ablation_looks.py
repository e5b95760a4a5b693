"""Three looks at each of a few models, over seeds: collapse in training and collapse in evaluation only, told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .evaluation_modes import LOOKS, look_at
from .kmeans_cells import append_line, read_lines

__all__ = ["LookRun", "measure_looks"]


@dataclass(frozen=True, slots=True)
class LookRun:
    """Perplexities of one model on one seed.

    Attributes:
        model: a name of `LOOKS`. seed: of the run.
        training, evaluation, quantizer_training: as in `Looks`.
    """

    model: str
    seed: int
    training: float
    evaluation: float
    quantizer_training: float


def measure_looks(path: Path, *, seeds: int, tell: Callable[[str], object]) -> list[LookRun]:
    """Take the looks that a file does not hold yet, append them, and return all."""
    have = {(look.model, look.seed) for look in read_lines(path, LookRun)}
    for seed in range(seeds):
        for model in (name for name in LOOKS if (name, seed) not in have):
            look = LookRun(model, seed, **asdict(look_at(LOOKS[model], seed)))
            append_line(path, asdict(look))
            tell(f"seed {seed}, {model}: {look.training:.1f} / {look.evaluation:.1f} / {look.quantizer_training:.1f}")
    order = {name: place for place, name in enumerate(LOOKS)}
    known = [look for look in read_lines(path, LookRun) if look.model in order]
    return sorted(known, key=lambda look: (order[look.model], look.seed))
