"""The healthy controls of the zoo: what looks odd in some of them and is right in all."""

from __future__ import annotations

from typing import Any

from .disturbances import passed_by_at_first, restart_warm
from .draws import (
    echoed,
    few_clips,
    few_items,
    flat_first,
    growing,
    mostly_silence,
    one_class,
    one_photo_then_the_other,
    popular,
    whole_epochs,
)
from .mistakes import freeze_codes, raise_commitment
from .scenario import KMEANS, Scenario
from .starts import finished, start_from_latents

__all__ = ["CONTROLS"]


def _control(name: str, says: str, **fields: Any) -> Scenario:
    return Scenario(name, says, is_collapse=False, **fields)


CONTROLS: tuple[Scenario, ...] = (
    _control("plain-ema", "a codebook that starts by k-means", options=KMEANS),
    _control("four-codes", "four codes: perplexity can be 4 at most", K=4, options=KMEANS),
    _control(
        "class-sorted",
        "batches of one class each: neighbouring readings show other codes",
        data="digits",
        tokens=2,
        K=64,
        batch=128,
        draw=one_class,
        options={"decay": 0.99},
        start=start_from_latents,
    ),
    _control(
        "small-batches",
        "four tokens a step: few for any reading",
        batch=4,
        K=64,
        options={"decay": 0.99},
        start=start_from_latents,
    ),
    _control(
        "warm-up",
        "no quantizer for 100 steps, a learning rate that rises for 200",
        options=KMEANS,
        routine=passed_by_at_first(until=100, slow_until=200),
    ),
    _control(
        "data-shift",
        "from one photograph to another in the middle",
        options=KMEANS,
        draw=one_photo_then_the_other(200),
    ),
    _control(
        "few-modes",
        "three different items: three codes are all there is to use",
        K=64,
        options=KMEANS,
        draw=few_items(3),
    ),
    _control(
        "residual-healthy",
        "four residual levels that start by k-means",
        family="rvq",
        options={"num_quantizers": 4, **KMEANS},
    ),
    _control(
        "repaired-64",
        "the reference quantizer with its factor put back: only a third of the codes is in use at first",
        data="digits",
        family="reference",
        K=64,
        D=64,
        tokens=2,
        batch=32,
        lr=5e-4,
        options={"repaired": True},
    ),
    _control("cosine-healthy", "a cosine codebook that starts by k-means", options={"use_cosine_sim": True, **KMEANS}),
    _control(
        "warm-restarts",
        "a learnable codebook, and a learning rate that falls to zero along a cosine and starts anew, four times",
        family="taming",
        K=512,
        start=start_from_latents,
        routine=restart_warm(every=200),
    ),
    _control(
        "few-tokens",
        "1024 codes and 32 tokens a step: most codes have none for many steps",
        K=1024,
        batch=32,
        options={"decay": 0.99},
        start=start_from_latents,
    ),
    _control(
        "quantize-dropout",
        "the deep ones of four residual levels are left out at random",
        family="rvq",
        options={"num_quantizers": 4, "quantize_dropout": True, **KMEANS},
    ),
    _control(
        "flat-first",
        "a curriculum from flat patches to all of them",
        options=KMEANS,
        draw=flat_first(until=400),
    ),
    _control(
        "mostly-silence",
        "nine tenths of the tokens are one and the same silence: one code has most, and the others share the rest",
        family="diffusers",
        K=256,
        start=start_from_latents,
        draw=mostly_silence(0.9),
    ),
    _control(
        "nothing-left-over",
        "twelve different items: the first of 3 residual levels tells them apart, and the others have nothing to do",
        family="rvq",
        K=64,
        batch=128,
        options={"num_quantizers": 3, **KMEANS},
        draw=few_items(12),
    ),
    _control(
        "growing-batches",
        "16 items a step at first, and twice as many every 100 steps, up to 512",
        family="encodec",
        batch=512,
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        start=start_from_latents,
        draw=growing(first=16, every=100),
    ),
    _control(
        "finished-tokenizer",
        "only the decoder is trained on: encoder and codebook are frozen, for others have learned these codes",
        family="diffusers",
        K=256,
        start=finished,
    ),
    _control(
        "few-clips",
        "256 frames a step are of 8 clips, and those of a clip nearly alike: a step shows few codes, many steps all",
        family="encodec",
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        start=start_from_latents,
        draw=few_clips(8, noise=0.1),
    ),
    _control(
        "cool-sampling",
        "codes are drawn at random in training, at a temperature so low that only near ones are",
        data="digits",
        tokens=2,
        K=64,
        options={"stochastic_sample_codes": True, "sample_codebook_temp": 0.1, **KMEANS},
    ),
    _control(
        "short-last-batch",
        "an epoch of 2000 items in batches of 285: each eighth step has five items and shows five codes at most",
        data="little",
        family="taming",
        batch=285,
        start=start_from_latents,
        draw=whole_epochs,
    ),
    _control(
        "popular-items",
        "of 2000 items the first is drawn most often, and the n-th an n-th as often: few codes have most tokens",
        data="little",
        family="rvq",
        K=64,
        options={"num_quantizers": 2, **KMEANS},
        draw=popular,
    ),
    _control(
        "settled-codebook",
        "the codebook is frozen on purpose after half of the steps, and encoder and decoder are trained on",
        lr=3e-4,
        options={"decay": 0.99, **KMEANS},
        routine=freeze_codes(at=400),
    ),
    _control(
        "echoed-batches",
        "the loader is slow, and each batch is trained on four times in a row: a reading is of few items",
        lr=5e-4,
        options={"decay": 0.99, **KMEANS},
        draw=echoed(4),
    ),
    _control(
        "shared-by-heads",
        "four heads share a codebook, and each has tokens of its own kind: to any of them few codes are of use",
        data="sequences",
        D=16,
        K=256,
        batch=32,
        options={"heads": 4, "codebook_dim": 4, "decay": 0.99, **KMEANS},
    ),
    _control(
        "commitment-warm-up",
        "the weight of the commitment rises on purpose, from 0.05 to 0.37 in 200 steps",
        data="sequences",
        family="taming",
        K=512,
        D=16,
        batch=24,
        options={"beta": 0.05},
        start=start_from_latents,
        routine=raise_commitment(1.01, until=200),
    ),
)
