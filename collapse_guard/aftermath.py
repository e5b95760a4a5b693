"""The aftermath of an intervention: for how long optimizers may remember what made it, and how much they do.

A collapse has gradients a hundred times larger than the run after it. As long as an Adam remembers them the repaired
encoder takes steps that are too small; see `optimizer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.optim import Optimizer

from collapse_guard.policies import RestartOptimizer, actions

from .events import Fault
from .ledger import Ledger, without_tables
from .optimizer import moment_sums, movers_of, ratio_of_moments
from .ranks import Alone
from .watch import Watch

__all__ = ["Aftermath"]

_STEPS = 300  # a third of what Adam's usual 0.999 takes to forget two thirds of what it has seen


class Aftermath:
    """What is remembered after an intervention.

    Args:
        optimizers: of the run. ledger: of its interventions. watch: its codebooks.
        ranks: that train together. fault: where to say what went wrong.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], ledger: Ledger, watch: Watch, *, ranks: Alone, fault: Fault
    ) -> None:
        """Store the parts."""
        self._optimizers, self._ledger, self._watch = optimizers, ledger, watch
        self._ranks, self._fault = ranks, fault

    def moment_ratio(self, step: int) -> float | None:
        """Return how much larger gradients the encoder's optimizer remembers than it is shown, over all ranks.

        Args:
            step: optimizer steps completed; all ranks ask at the same.

        Returns:
            The ratio, 0 or more; `None` where it is no number, or the guard has not intervened lately.
        """
        if step - next(self._interventions(), -math.inf) > _STEPS:
            return None
        probes = self._watch.probes
        feeds = without_tables((each for probe in probes.values() for each in probe.feeds), probes)
        try:
            sums = moment_sums(movers_of(self._optimizers, feeds))
        except Exception as error:  # foreign optimizers may fail in any way; the other ranks wait for this one
            self._fault("moments", f"what optimizers remember cannot be read: {type(error).__name__}: {error}")
            sums = np.zeros(2)
        return ratio_of_moments(*self._ranks.add_up(sums).tolist())

    def _interventions(self) -> Iterator[int]:
        """Yield the steps of what was done and may have left something, the latest first.

        Gradual interventions go on for long and leave nothing; nor does a restart of optimizers, once it has worked.
        """
        known = actions()
        for each in reversed(self._ledger.entries):
            model = known.get(each.action)  # `None` of a package that was there before a resume
            if each.action == RestartOptimizer.action:
                leaves_nothing = each.result == "recovered"
            else:
                leaves_nothing = model is not None and model.is_gradual
            if not leaves_nothing and each.result not in ("refused", "postponed"):
                yield each.step
