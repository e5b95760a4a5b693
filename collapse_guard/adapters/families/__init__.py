"""The families of quantizers that are recognised by themselves, each in a module of its own, by structure alone."""

from __future__ import annotations

from .codec_ema import match_codec_ema
from .fixed import match_fixed
from .home_made import match_home_made
from .lucidrains import match_lucidrains
from .parameter import match_parameter

__all__ = ["BUILT_IN", "BY_TRIAL"]

BUILT_IN = (
    ("vector-quantize-pytorch", match_lucidrains, "VectorQuantize, also in residual, grouped and projected forms"),
    ("codec-ema", match_codec_ema, "encodec, audiocraft, speechtokenizer; Encodec, XCodec and Higgs of transformers"),
    ("parameter", match_parameter, "diveq and nsvq, level by level; the space-filling forms are only watched"),
    ("fixed", match_fixed, "FSQ, LFQ, SimVQ and their residual forms, FSQ of XCodec2 and NeuCodec; only watched"),
)
"""(name, match, covers) in the order in which they are asked."""

BY_TRIAL = (
    (
        "home-made",
        match_home_made,
        "any quantizer whose forward returns the nearest rows of a (K, D) table and their codes",
    ),
)
"""The same of those that try copies of a module, asked after all others."""
