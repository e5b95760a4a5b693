"""Adapters: translate families of quantizers into uniform codebook views. They import no quantizer library."""

from __future__ import annotations

from .base import CAPABILITIES, CodebookView, Knob, Observation, TensorRef
from .discovery import Discovery, NoQuantizerError, discover
from .explicit import GenericVQ
from .structure import Unrecognised

__all__ = [
    "CAPABILITIES",
    "CodebookView",
    "Discovery",
    "GenericVQ",
    "Knob",
    "NoQuantizerError",
    "Observation",
    "TensorRef",
    "Unrecognised",
    "discover",
]
