"""The models of the zoo: a small autoencoder around whichever quantizer, all of them called alike.

A quantizer of any package becomes a `Bottleneck`: tokens (B, T, D) in; output of the same shape, codes of each level
or head (B, T) and a loss out. The package's own module stands unchanged inside it, where the guard finds it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

__all__ = ["FAMILIES", "Bottleneck", "Coder", "build_quantizer"]

Output = tuple[Tensor, list[Tensor], Tensor]
"""Quantised tokens (B, T, D), codes of each level (B, T), loss ()."""


class Coder(nn.Module):
    """Encoder for each vector, quantizer, decoder.

    Args:
        width: of an input vector.
        D: dimension of a token.
        quantizer: a bottleneck of `build_quantizer`.
        tokens: that each input vector becomes.
        hidden: width inside encoder and decoder.
        normalise: batch normalisation of the latents with this momentum; `None` for none.
        is_reshaped: whether channels and positions get mixed up, by `reshape` where `permute` was due.
    """

    def __init__(
        self,
        width: int,
        D: int,
        quantizer: Bottleneck,
        *,
        tokens: int = 1,
        hidden: int = 64,
        normalise: float | None = None,
        is_reshaped: bool = False,
    ) -> None:
        """Build the parts."""
        super().__init__()
        self.D = D
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, tokens * D))
        self.norm = nn.BatchNorm1d(tokens * D, momentum=normalise) if normalise is not None else None
        self.bottleneck = quantizer
        self.decoder = nn.Sequential(nn.Linear(tokens * D, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.is_passed_by = False  # whether the quantizer is left out, as in a warm-up
        self.is_cut = False  # whether the encoder gets no gradient through the codes
        self._is_reshaped = is_reshaped

    def latents(self, x: Tensor) -> Tensor:
        """Return the tokens (B, T, D) that the quantizer is given of x (B, t, width)."""
        encoded = self.encoder(x)
        if self.norm is not None:
            encoded = self.norm(encoded.flatten(0, 1)).reshape(encoded.shape)
        tokens: Tensor = encoded.reshape(len(x), -1, self.D)
        if self._is_reshaped:
            tokens = tokens.transpose(1, 2).reshape(tokens.shape)
        return tokens

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Output:
        """Return what is rebuilt of x (B, t, width), the codes of each level, and the quantizer's loss.

        Args:
            x: the input.
            mask: (B, T) which tokens are none of padding, for quantizers that take one.
        """
        tokens = self.latents(x)
        if self.is_passed_by:
            return self._decode(tokens, x), [], x.new_zeros(())
        quantised, codes, loss = self.bottleneck(tokens, mask)
        return self._decode(quantised.detach() if self.is_cut else quantised, x), codes, loss

    def _decode(self, tokens: Tensor, x: Tensor) -> Tensor:
        if self._is_reshaped:
            tokens = tokens.reshape(len(x), self.D, -1).transpose(1, 2)
        decoded: Tensor = self.decoder(tokens.reshape(len(x), x.shape[1], -1))
        return decoded


class Bottleneck(nn.Module):
    """A package's quantizer, called as all others here are.

    Args:
        module: the quantizer.
        call: (module, tokens, mask) -> quantised, codes, loss.
        K: codes of each level.
    """

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor, Tensor | None], Output], K: int) -> None:
        """Store the parts."""
        super().__init__()
        self.quantizer = module
        self.K = K
        self._call = call

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Output:
        """Quantise (B, T, D) tokens."""
        return self._call(self.quantizer, tokens, mask)


def _vq(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    from vector_quantize_pytorch import VectorQuantize

    def call(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
        quantised, codes, loss = module(tokens, mask=mask) if mask is not None else module(tokens)
        heads = list(codes.unbind(-1)) if codes.ndim == tokens.ndim else [codes]  # (B, T, heads), or (B, T) of one
        return quantised, heads, loss.sum()

    defaults = {"decay": 0.95, "commitment_weight": 0.25, "rotation_trick": False}
    return Bottleneck(VectorQuantize(dim=D, codebook_size=K, **(defaults | dict(options))), call, K)


def _rvq(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    from vector_quantize_pytorch import ResidualVQ

    def call(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
        quantised, codes, loss = module(tokens)
        return quantised, list(codes.unbind(-1)), loss.sum()

    defaults = {"decay": 0.95, "commitment_weight": 0.25, "rotation_trick": False}
    return Bottleneck(ResidualVQ(dim=D, codebook_size=K, **(defaults | dict(options))), call, K)


def _simvq(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    from vector_quantize_pytorch import SimVQ

    def call(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
        # as one row of tokens: `cdist` would copy the codebook for each item of the batch, and take ten times as long
        quantised, codes, loss = module(tokens.reshape(1, -1, D))
        return quantised.reshape(tokens.shape), [codes.reshape(tokens.shape[:-1])], loss.sum()

    return Bottleneck(SimVQ(dim=D, codebook_size=K), call, K)


_LEVELS = {
    4: (2, 2),
    64: (8, 8),
    128: (8, 4, 4),
    256: (8, 6, 5),
    512: (8, 8, 8),
    1024: (8, 5, 5, 5),
    8192: (8, 8, 8, 16),
}


def _fsq(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    """FSQ with about as many codes: its authors' levels where they name some (Mentzer et al. 2024, table 1)."""
    from vector_quantize_pytorch import FSQ

    def call(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
        quantised, codes = module(tokens)
        return quantised, [codes.long()], tokens.new_zeros(())

    module = FSQ(levels=list(_LEVELS[K]), dim=D)
    return Bottleneck(module, call, int(module.codebook_size))


def _reference(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    from collapse_guard.demos import ReferenceQuantizer

    def call(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
        quantised, codes, loss = module(tokens)
        return quantised, [codes], loss

    return Bottleneck(ReferenceQuantizer(K, D, **options), call, K)


def _encodec(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    core = _without_init("encodec", "quantization.core_vq")

    def call(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
        quantised, codes, loss = module(tokens.transpose(1, 2))
        return quantised.transpose(1, 2), [codes], loss.sum()

    return Bottleneck(core.VectorQuantization(D, K, **options), call, K)


def _as_images(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Output:
    quantised, loss, (*_, codes) = module(tokens.transpose(1, 2).unsqueeze(-1))
    return quantised.squeeze(-1).transpose(1, 2), [codes.reshape(tokens.shape[:-1])], loss


def _taming(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    quantize = _without_init("taming", "modules.vqvae.quantize")
    return Bottleneck(
        quantize.VectorQuantizer2(K, D, **({"beta": 0.25, "legacy": False} | dict(options))), _as_images, K
    )


def _diffusers(D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    return Bottleneck(VectorQuantizer(K, D, **({"beta": 0.25, "legacy": False} | dict(options))), _as_images, K)


FAMILIES: dict[str, Callable[[int, int, Mapping[str, Any]], Bottleneck]] = {
    "vq": _vq,
    "rvq": _rvq,
    "simvq": _simvq,
    "fsq": _fsq,
    "reference": _reference,
    "encodec": _encodec,
    "taming": _taming,
    "diffusers": _diffusers,
}
"""Family -> (D, K, options) -> bottleneck."""


def build_quantizer(family: str, D: int, K: int, options: Mapping[str, Any]) -> Bottleneck:
    """Return a bottleneck of a family.

    Raises:
        LookupError: an unknown family.
        ImportError: the package of the family is not installed.
    """
    if family not in FAMILIES:
        raise LookupError(f"expected one of {', '.join(FAMILIES)}, got {family!r}")
    return FAMILIES[family](D, K, options)


def _without_init(package: str, module: str) -> ModuleType:
    """Import `package.module` without any `__init__` on the way: those want torchaudio or training frameworks.

    Raises:
        ImportError: the package is not installed.
    """
    name = f"{package}.{module}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{package} is not installed; see codecs.txt")
    places = list(found.submodule_search_locations)
    parts = [package, *module.split(".")[:-1]]
    for depth in range(1, len(parts) + 1):
        parent = ModuleType(".".join(parts[:depth]))
        parent.__path__ = ["/".join([place, *parts[1:depth]]) for place in places]
        sys.modules.setdefault(parent.__name__, parent)
    return importlib.import_module(name)
