"""An evaluation: what the codebooks show from its begin to its end, and why it differs from training.

Counts of all tokens of a validation make one reading of each codebook, of stage `eval`. Windows, reservoirs and
counters of training stay as they are, and so does the run: what is taken here is copied, never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from collapse_guard.adapters.recognition import CannotTryError
from collapse_guard.ceiling import perplexity_ceiling
from collapse_guard.measure import read_window
from collapse_guard.policies import Diagnosis, Reading
from collapse_guard.probe import Probe
from collapse_guard.statistics import perplexity
from collapse_guard.watch import Watch
from collapse_guard.window import Window

from .causes import MOVES, causes_of
from .compare import Comparison, Facts, compare
from .exhibits import Exhibits
from .replay import Places, Replayer
from .state import ModuleState

__all__ = ["Evaluations"]

_CAPACITY = 4096  # latents of one evaluation that are kept
_NOTHING_LEFT, _LEFT_BY_EACH = 1e-3, 0.1  # of the variance of the coarsest level's latents; by each level before it


@dataclass(slots=True)
class _Course:
    """One codebook in the evaluation that runs, or ran last.

    Attributes:
        as_trained: state of its quantizer as training left it.
        table: its table as training left it. first: the same just before the first forward.
        moved: how far it moved from then to the end, relative to its size.
        reading: of the evaluation, once it is over. trained: perplexity of the latest tokens in training.
    """

    as_trained: ModuleState
    table: Tensor
    first: Tensor | None = None
    moved: float = 0.0
    reading: Reading | None = None
    trained: float = 0.0


class Evaluations:
    """Reads the codebooks of a run in evaluation.

    Attributes:
        exhibits: inputs that are kept; `None` where none are.
        is_running: whether an evaluation has begun and not ended.
        before_each: called at the begin of each evaluation, before anything is noted of it.

    Args:
        model: that trains, and is evaluated.
        watch: its probes.
        fault: where to say what went wrong: (where, reason).
        keeps_inputs: whether a few inputs are kept to compare modes with; not of compiled models, nor on many ranks.
    """

    def __init__(
        self, model: nn.Module, watch: Watch, fault: Callable[[str, str], None], *, keeps_inputs: bool
    ) -> None:
        """Store the parts; nothing is hooked before `install`."""
        self._model, self._watch, self._fault = model, watch, fault
        names = {id(module): path for path, module in model.named_modules()}
        self._places = {name: names[id(probe.view.module)] for name, probe in watch.probes.items()}
        self._paths = frozenset(names.values())
        sees_calls = all("forward" in probe.view.readers for probe in watch.probes.values())
        self.exhibits: Exhibits | None = None
        if keeps_inputs:
            paths = list(dict.fromkeys(self._places.values()))
            self.exhibits = Exhibits(model, paths, sees_calls=sees_calls, on_error=self._cannot_keep)
        self._courses: dict[str, _Course] = {}
        self._norms: tuple[Tensor, Tensor | None] | None = None  # of all weights, as they train and as they evaluate
        self._comparisons: dict[str, Comparison] = {}
        self.is_running = False
        self.before_each: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begin to keep inputs."""
        if self.exhibits is not None:
            self.exhibits.install()

    def remove(self) -> None:
        """Let go of everything."""
        if self.exhibits is not None:
            self.exhibits.remove()
        self._stop()
        self._courses, self._comparisons = {}, {}

    def begin(self) -> None:
        """Begin to count; whatever is called from now on until `end` belongs to evaluation, in whatever mode."""
        self._courses, self._comparisons = {}, {}
        for prepare in list(self.before_each):
            prepare()
        for name, probe in self._watch.probes.items():
            if not probe.is_recording:
                continue
            view = probe.view
            state = ModuleState(self._model.get_submodule(self.quantizer_of(name)))
            self._courses[name] = _Course(as_trained=state, table=view.codebook().clone())
            probe.evaluated = Window(view.K, view.D, capacity=_CAPACITY)
        if self.exhibits is not None:
            self._norms = _norms(self._model), None
            self.exhibits.begin_evaluation(self._note_first)
        self.is_running = True

    def abandon(self) -> None:
        """Forget an evaluation that broke off: there is no reading of a part of one."""
        self._stop()
        self._courses = {}

    def _note_first(self) -> None:
        """Just before the first forward: see with which weights it is evaluated. Asks the device nothing."""
        assert self._norms is not None
        self._norms = self._norms[0], _norms(self._model)
        for name, course in self._courses.items():
            course.first = self._watch.probes[name].view.codebook().clone()

    def _weights_apart(self, course: _Course) -> float:
        """Return how far the weights that were evaluated are from those that train, relative to their size."""
        if self._norms is None or course.first is None:
            return 0.0
        trained, shown = self._norms
        if shown is None:
            return 0.0
        return max(_apart(course.table, course.first), _apart(trained, shown))

    def _stop(self) -> None:
        self.is_running = False
        if self.exhibits is not None:
            self.exhibits.end_evaluation()
        for probe in self._watch.probes.values():
            probe.evaluated = None

    def end(
        self, *, step: int, epoch: int | None, loss: float | None, dead_below: float
    ) -> Iterator[tuple[Reading, np.ndarray]]:
        """Stop counting, and yield a reading and its (K,) counts for each codebook that showed tokens."""
        if not self.is_running:
            return
        windows = {name: probe.evaluated for name, probe in self._watch.probes.items() if probe.evaluated is not None}
        self._stop()
        for name, window in windows.items():
            probe, course = self._watch.probes[name], self._courses[name]
            try:
                if not probe.is_recording or not probe.view.is_initialised():
                    continue
                reading, counts = read_window(
                    window, probe.view, step=step, epoch=epoch, loss=loss, dead_below=dead_below, table=course.first
                )
                if not reading.tokens:
                    continue
                trained, ratio = self._trained(name, probe)
                share = reading.perplexity_ratio / ratio if ratio and self._has_work(name) else None
                course.reading = replace(reading, stage="eval", eval_to_train=share, sampling_ratio=None)
                course.trained = trained
                if course.first is not None and self._weights_apart(course) <= MOVES:
                    course.moved = _apart(course.first, probe.view.codebook())
            except Exception as error:  # one codebook that cannot be read must not keep the others from it
                self._fault(name, f"reading it in evaluation raised {type(error).__name__}: {error}")
                continue
            self._watch.evaluated[name] = course.reading
            yield course.reading, counts

    def _trained(self, name: str, probe: Probe) -> tuple[float, float]:
        """Return perplexity and its ratio to the ceiling of the latest tokens in training; zeros without any."""
        tallies = probe.window.tallies
        latest = self._watch.readings.get(name)
        counts = tallies[: probe.view.K].cpu().numpy() if tallies is not None else np.zeros(1, dtype=np.int64)
        tokens = int(counts.sum())
        if latest is not None and tokens < latest.tokens // 2:
            return latest.perplexity, latest.perplexity_ratio
        if not tokens:
            return 0.0, 0.0
        value = perplexity(counts)
        return value, value / perplexity_ceiling(tokens, probe.view.K)

    def _has_work(self, name: str) -> bool:
        """Whether training leaves a codebook anything to code; of finer levels, where coarser codes leave next to none.

        What the codes of a level did there is then noise, and no measure of what they do in evaluation.
        """
        readings = self._watch.readings
        own = readings.get(name)
        if own is None or not own.level:
            return True
        levels = [each for each in readings.values() if each.group == own.group and each.latent_variance is not None]
        coarsest = min(levels, key=lambda each: each.level or 0, default=own)
        left, whole = own.latent_variance, coarsest.latent_variance
        return left is None or whole is None or left >= min(_NOTHING_LEFT, _LEFT_BY_EACH**own.level) * whole

    # Why

    def explain(
        self, readings: Sequence[Reading], wanted: Callable[[Sequence[Reading]], frozenset[str]]
    ) -> list[Reading]:
        """Return readings in evaluation with their causes, where somebody wants to know them.

        Args:
            readings: of the levels of one residual, or of one codebook.
            wanted: returns the codebooks of which the causes are wanted, given the readings with what is known.
        """
        asked = wanted(readings)
        return [
            replace(each, causes=self._causes(each.codebook)) if each.codebook in asked else each for each in readings
        ]

    def _causes(self, codebook: str) -> tuple[Diagnosis, ...]:
        try:
            return self.causes(codebook)
        except Exception as error:  # a model may do anything when it is copied or replayed
            self._fault("evaluation", f"comparing modes of {codebook} raised {type(error).__name__}: {error}")
            return ()

    def causes(self, codebook: str) -> tuple[Diagnosis, ...]:
        """Return why the last evaluation looked as it did, likeliest first; replays the model in both modes."""
        comparison = self.comparison(codebook)
        return causes_of(comparison) if comparison is not None else ()

    def comparison(self, codebook: str) -> Comparison | None:
        """Return what the modes show on kept inputs; `None` where they cannot be compared, which is told."""
        if codebook in self._comparisons:
            return self._comparisons[codebook]
        course = self._courses.get(codebook)
        if course is None or course.reading is None or self.exhibits is None or not self.exhibits.training:
            return None
        view = self._watch.probes[codebook].view
        facts = Facts(
            perplexity=course.reading.perplexity,
            trained=course.trained,
            table_moved=course.moved,
            weights_apart=self._weights_apart(course),
        )
        try:
            replayer = self._replayer(codebook, course.as_trained)
            training, shown = list(self.exhibits.training), list(self.exhibits.evaluation)
            self._comparisons[codebook] = compare(replayer, training, shown, view.K, facts)
        except CannotTryError as error:
            self._fault("evaluation", f"{codebook}: training and evaluation mode could not be compared: {error}")
            return None
        return self._comparisons[codebook]

    def _replayer(self, codebook: str, as_trained: ModuleState | None = None) -> Replayer:
        places = Places(
            module=self._places[codebook],
            quantizer=self.quantizer_of(codebook),
            quantizers=tuple(dict.fromkeys(map(self.quantizer_of, self._places))),
            trained=self.exhibits.trained if self.exhibits is not None else (),
        )
        return Replayer(self._model, self._watch.probes[codebook].view, places, as_trained)

    def statistics(self, codebook: str) -> dict[str, Tensor]:
        """Return the buffers of batch normalisation before a quantizer as kept inputs of training would have them.

        Raises:
            CannotTryError: there are none, or the model could not be replayed.
        """
        if self.exhibits is None or not self.exhibits.training:
            raise CannotTryError("no input of training was kept")
        return self._replayer(codebook).recalibrated(list(self.exhibits.training))

    def as_trained(self, codebook: str) -> ModuleState | None:
        """Return the state of a quantizer as training left it before the last evaluation."""
        course = self._courses.get(codebook)
        return course.as_trained if course is not None else None

    def quantizer_of(self, codebook: str) -> str:
        """Return the path of the whole quantizer of a codebook; its name may end in the number of a head."""
        path = codebook
        while path and path not in self._paths:
            path = path.rpartition(".")[0]
        place = self._places[codebook]
        return path if path and (place == path or place.startswith(f"{path}.")) else place

    def _cannot_keep(self, error: Exception) -> None:
        self.exhibits = None
        self._fault("evaluation", f"keeping inputs raised {type(error).__name__}: {error}; modes cannot be compared")


@torch.no_grad()
def _norms(model: nn.Module) -> Tensor:
    """Return the norm of each parameter and floating buffer."""
    tensors = [*model.parameters(), *(each for each in model.buffers() if each.is_floating_point())]
    return torch.stack([each.detach().float().norm() for each in tensors])


def _apart(one: Tensor, other: Tensor) -> float:
    return float((other - one).float().norm() / one.float().norm().clamp(min=1e-12))
