"""The codecs of transformers that call `encode` and never `forward`, under the contract: single quantizers and models.

They learn nothing; training code moves what stands around them. Their tables are filled as a checkpoint would.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel, XcodecConfig, XcodecModel
from transformers.models.encodec import modeling_encodec as encodec
from transformers.models.mimi import modeling_mimi as mimi
from transformers.models.xcodec import modeling_xcodec as xcodec

from .case import Case, Run, flat, offset_data

__all__ = ["CASES", "MIMI", "encodec_codebook", "encodec_model", "mimi_codebook", "mimi_model", "sound", "xcodec_model"]


def _import_higgs() -> Any:
    """Import Higgs' module, which wants torchaudio for a resampling that its quantizer does not need."""
    name = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
    if "torchaudio" in sys.modules:
        return importlib.import_module(name)
    stub = ModuleType("torchaudio")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stub
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["torchaudio"]


higgs = _import_higgs()

ENCODEC: dict[str, Any] = {
    "num_filters": 4,
    "hidden_size": 8,
    "codebook_size": 16,
    "upsampling_ratios": [4, 2],
    "num_lstm_layers": 1,
    "sampling_rate": 800,
    "target_bandwidths": [0.4, 1.2],  # kbps: one level, or all three
}
MIMI: dict[str, Any] = {
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "upsampling_ratios": [4, 2],
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 16,
    "num_quantizers": 3,
    "num_semantic_quantizers": 1,
    "upsample_groups": 16,
    "sampling_rate": 800,
    "frame_rate": 50,
}
XCODEC: dict[str, Any] = {
    "target_bandwidths": [0.61],  # kbps: three levels
    "sample_rate": 800,
    "codebook_size": 16,
    "codebook_dim": 24,
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "hidden_size": 8,
        "downsampling_ratios": [4, 4],
        "upsampling_ratios": [4, 4],
    },
    "semantic_model_config": {
        "model_type": "hubert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "layerdrop": 0.0,
        "conv_dim": [8, 8],
        "conv_kernel": [4, 4],
        "conv_stride": [4, 4],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    },
}
XCODEC_ALONE: dict[str, Any] = XCODEC | {"codebook_dim": 8}  # with nothing around the quantizer
MIMI_ALONE: dict[str, Any] = MIMI | {"hidden_size": 8}


def with_weights(module: Any, call: Callable[[Any], object]) -> Any:
    """Fill the tables as a checkpoint does, with rows that fit what reaches each level when the module is called."""
    leaves = [leaf for leaf in module.modules() if {"embed_avg", "embed_sum"} & set(leaf._buffers)]
    for leaf in leaves:
        leaf.encode = functools.partial(_fill, leaf)
    with torch.no_grad():
        call(module)
    for leaf in leaves:
        del leaf.encode
    return module


def _fill(leaf: Any, x: Tensor) -> Tensor:
    """Put a table, and the averages that it is the quotient of, where latents are; then encode them."""
    rows = x.detach().reshape(-1, x.shape[-1])
    table = rows[torch.randperm(len(rows))[:16]] + 0.1 * rows.std() * torch.randn(16, rows.shape[1])
    if "embed_sum" in leaf._buffers:
        leaf.cluster_usage.fill_(16.0)
        leaf.embed_sum.copy_(16.0 * table)
    else:
        leaf.embed.copy_(table)
        leaf.cluster_size.fill_(16.0)
        leaf.embed_avg.copy_(16.0 * table)
    codes: Tensor = type(leaf).encode(leaf, x)
    return codes


def encodec_model() -> Any:
    return with_weights(EncodecModel(EncodecConfig(**ENCODEC)), lambda model: model(sound(), bandwidth=1.2))


def mimi_model() -> Any:
    return with_weights(MimiModel(MimiConfig(**MIMI)), lambda model: model(sound()))


def xcodec_model() -> Any:
    return with_weights(XcodecModel(XcodecConfig(**XCODEC)), lambda model: model(sound()))


def quantizer(cls: Any, config: Any) -> Any:
    return with_weights(cls(config), lambda module: module.encode(latents()))


def encodec_codebook() -> Any:
    return _codebook(encodec.EncodecEuclideanCodebook, EncodecConfig(**ENCODEC))


def mimi_codebook() -> Any:
    return _codebook(mimi.MimiEuclideanCodebook, MimiConfig(**MIMI))


def _codebook(cls: Any, config: Any) -> Any:
    return with_weights(cls(config), lambda module: module.encode(latents().transpose(1, 2)))


def latents() -> Tensor:
    return offset_data(4, 8, 64, channel=1)


def sound() -> Tensor:
    return torch.randn(2, 1, 1600)


def _encode(module: Any, x: Tensor) -> Run:
    return Run({"quantizer": flat(module.encode(x))}, None)


def _encode_leaf(module: Any, x: Tensor) -> Run:
    return Run({"quantizer": flat(module.encode(x.transpose(1, 2)))}, None)


def _encode_levels(names: tuple[str, ...]) -> Any:
    def run(module: Any, x: Tensor) -> Run:
        return Run({name: flat(codes) for name, codes in zip(names, module.encode(x), strict=True)}, None)

    return run


def _model(names: tuple[str, ...], **arguments: float) -> Any:
    def run(module: Any, x: Tensor) -> Run:
        codes = module(x, **arguments).audio_codes
        codes = codes[0] if codes.ndim == 4 else codes  # of Encodec's frames there is one
        return Run({name: flat(codes[:, level]) for level, name in enumerate(names)}, None)

    return run


def _case(cls: str, build: Any, run: Any, views: tuple[str, ...] = ("quantizer",), batch: Any = latents) -> Case:
    return Case(
        package="transformers",
        cls=cls,
        build=build,
        batch=batch,
        run=run,
        views=views,
        lacks=frozenset({"commitment"}),
        trains=False,
    )


def _layers(*prefixes: str, count: int = 3) -> tuple[str, ...]:
    return tuple(f"quantizer.{prefix}.{level}" for prefix in prefixes for level in range(count))


_SPLIT = (
    "quantizer.semantic_residual_vector_quantizer.layers.0",
    "quantizer.acoustic_residual_vector_quantizer.layers.0",
    "quantizer.acoustic_residual_vector_quantizer.layers.1",
)
_IN_MODEL = tuple(name.replace("quantizer.", "quantizer.quantizer.", 1) for name in _SPLIT)


def _higgs_config() -> Any:
    """Return what its quantizer reads of a configuration; the whole one describes three models around it."""
    sizes = {"codebook_size": 16, "codebook_dim": 8, "hidden_size": 8, "num_quantizers": 3, "frame_rate": 50}
    return SimpleNamespace(**sizes)


CASES = (
    _case("EncodecEuclideanCodebook", encodec_codebook, _encode_leaf),
    _case(
        "EncodecVectorQuantization",
        lambda: quantizer(encodec.EncodecVectorQuantization, EncodecConfig(**ENCODEC)),
        _encode,
    ),
    _case(
        "EncodecResidualVectorQuantizer",
        lambda: quantizer(encodec.EncodecResidualVectorQuantizer, EncodecConfig(**ENCODEC)),
        _encode_levels(_layers("layers")),
        _layers("layers"),
    ),
    _case(
        "EncodecModel",
        encodec_model,
        _model(_layers("quantizer.layers"), bandwidth=1.2),
        _layers("quantizer.layers"),
        sound,
    ),
    _case(
        "XcodecVectorQuantization",
        lambda: quantizer(xcodec.XcodecVectorQuantization, XcodecConfig(**XCODEC_ALONE)),
        _encode,
    ),
    _case(
        "XcodecResidualVectorQuantization",
        lambda: quantizer(xcodec.XcodecResidualVectorQuantization, XcodecConfig(**XCODEC_ALONE)),
        _encode_levels(_layers("quantizers")),
        _layers("quantizers"),
    ),
    _case("XcodecModel", xcodec_model, _model(_layers("quantizer.quantizers")), _layers("quantizer.quantizers"), sound),
    _case(
        "HiggsAudioV2TokenizerVectorQuantization",
        lambda: quantizer(higgs.HiggsAudioV2TokenizerVectorQuantization, _higgs_config()),
        _encode,
    ),
    _case(
        "HiggsAudioV2TokenizerResidualVectorQuantization",
        lambda: quantizer(higgs.HiggsAudioV2TokenizerResidualVectorQuantization, _higgs_config()),
        _encode_levels(_layers("quantizers")),
        _layers("quantizers"),
    ),
    _case("MimiEuclideanCodebook", mimi_codebook, _encode_leaf),
    _case(
        "MimiVectorQuantization",
        lambda: quantizer(mimi.MimiVectorQuantization, MimiConfig(**MIMI)),
        _encode,
    ),
    _case(
        "MimiSplitResidualVectorQuantizer",
        lambda: quantizer(mimi.MimiSplitResidualVectorQuantizer, MimiConfig(**MIMI_ALONE)),
        _encode_levels(_SPLIT),
        _SPLIT,
    ),
    _case("MimiModel", mimi_model, _model(_IN_MODEL), _IN_MODEL, sound),
)
