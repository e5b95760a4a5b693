"""The families of quantizers that are recognised by themselves, each in a module of its own, by structure alone."""

from __future__ import annotations

from .codec_ema import match_codec_ema
from .embedding import match_embedding
from .factorised import match_factorised
from .fixed import match_fixed
from .home_made import match_home_made
from .lucidrains import match_lucidrains
from .parameter import match_parameter
from .sum_usage import match_sum_usage

__all__ = ["BUILT_IN", "BY_TRIAL"]

BUILT_IN = (
    ("vector-quantize-pytorch", match_lucidrains, "VectorQuantize, also in residual, grouped and projected forms"),
    ("codec-ema", match_codec_ema, "encodec, audiocraft, speechtokenizer; Encodec, XCodec and Higgs of transformers"),
    ("factorised", match_factorised, "descript-audio-codec, DAC of transformers, snac, and copies of their quantizer"),
    ("sum-usage", match_sum_usage, "moshi; Mimi of transformers, also inside its Moshi"),
    ("parameter", match_parameter, "diveq and nsvq, level by level; the space-filling forms are only watched"),
    ("embedding", match_embedding, "taming-transformers, diffusers; Chameleon, Janus, GlmImage, Emu3 of transformers"),
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
