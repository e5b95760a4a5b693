"""Adapters: translate families of quantizers into uniform codebook views. They import no quantizer library."""

from __future__ import annotations

from .base import CAPABILITIES, CodebookView, Confidence, Observation, Unrecognised
from .discovery import Discovery, NoQuantizerError, discover, survey
from .explicit import GenericVQ
from .interception import Interception, InterceptionError
from .refs import Derived, Knob, Quotient, Switch, TensorRef
from .registry import Adapter, adapters, register_adapter, unregister_adapter

__all__ = [
    "CAPABILITIES",
    "Adapter",
    "CodebookView",
    "Confidence",
    "Derived",
    "Discovery",
    "GenericVQ",
    "Interception",
    "InterceptionError",
    "Knob",
    "NoQuantizerError",
    "Observation",
    "Quotient",
    "Switch",
    "TensorRef",
    "Unrecognised",
    "adapters",
    "discover",
    "register_adapter",
    "survey",
    "unregister_adapter",
]
