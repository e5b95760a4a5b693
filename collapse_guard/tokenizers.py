"""What outlives a run: the fallback codebooks of its end, as tokenizers that need neither the model nor the guard.

A tokenizer is made from the codebook as it stands when it is asked for, refits included. Nothing is fitted here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .events import Fault
from .kmeans import KMeansTokenizer
from .ledger import Ledger
from .probe import Probe

__all__ = ["save_tokenizers", "tokenizers_of"]

_FALLBACK = "fallback_tokenizer"
_FOLDER = "tokenizers"
_UNFIT = re.compile(r"[^\w.-]")  # for the name of a directory


def tokenizers_of(ledger: Ledger, probes: Mapping[str, Probe], step: int, fault: Fault) -> dict[str, KMeansTokenizer]:
    """Return a tokenizer for each codebook on which a fallback is in force, by name.

    Its version is the codebook's in the event log, its provenance the fallback, the steps that it has stood, and which
    level of which residual it codes. One that cannot be made is told and left out.
    """
    made = {}
    for standing in ledger.in_force():
        name = standing["codebook"]
        if standing["action"] != _FALLBACK or name not in probes:
            continue
        view = probes[name].view
        origin = {"made_by": standing["action"], "codebook": name, "since_step": standing["step"], "until_step": step}
        if view.group is not None:
            origin |= {"residual": view.group, "level": view.level}
        try:
            made[name] = KMeansTokenizer(
                view.codebook(), metric=view.metric, version=ledger.version_of(name), provenance=origin
            )
        except Exception as error:  # of foreign tensors
            fault(name, f"its fallback is no tokenizer: {type(error).__name__}: {error}")
    return made


def save_tokenizers(tokenizers: Mapping[str, KMeansTokenizer], folder: Path, run: str, fault: Fault) -> dict[str, str]:
    """Save each below the folder of the event log, `tokenizers/<run>-<codebook>`; return these directories by codebook.

    What cannot be written is told, and raises nothing.
    """
    written: dict[str, str] = {}
    for name, tokenizer in tokenizers.items():
        place = folder / _FOLDER / f"{run}-{_UNFIT.sub('_', name)}"
        while str(place) in written.values():  # of names that differ in what a file name cannot hold
            place = place.with_name(f"{place.name}_")
        try:
            written[name] = str(tokenizer.save(place))
        except Exception as error:  # storage fails in many ways, and the run must outlive each of them
            fault(name, f"its fallback tokenizer could not be saved in {place}: {type(error).__name__}: {error}")
    return written
