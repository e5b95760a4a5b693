"""Models that pick, look up, count or compare as quantizers do, and are none: nothing of them may be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

K, D = 16, 8


class TiedLanguageModel(nn.Module):
    """Embeds ids and returns its best next ids."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(K, D)
        self.body = nn.Linear(D, D)

    def forward(self, ids: Tensor) -> Any:
        logits = self.body(self.tokens(ids)) @ self.tokens.weight.t()
        return logits, logits.argmax(-1)


class TiedHead(nn.Module):
    """The last part of a tied language model: hidden states in, the embedded greedy token and its id out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(K, D)

    def forward(self, hidden: Tensor) -> Any:
        ids = (hidden @ self.tokens.weight.t()).argmax(-1)
        return self.tokens(ids), ids


class FeedsBack(nn.Module):
    """A tied language model that goes on from its own greedy token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(K, D)
        self.cell = nn.GRUCell(D, D)

    def forward(self, hidden: Tensor) -> Any:
        ids = functional.linear(hidden, self.tokens.weight).argmax(-1)
        return self.cell(self.tokens(ids), hidden), ids


class ClassifierWithLogits(nn.Module):
    """A bias-free head of its own weight; logits and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, D))

    def forward(self, x: Tensor) -> Any:
        logits = functional.linear(x, self.weight)
        return logits, logits.argmax(-1)


class ClassifierWithLabels(ClassifierWithLogits):
    """The same; labels only."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[1]


class CosineClassifier(ClassifierWithLogits):
    """Both sides normalised; labels only."""

    def forward(self, x: Tensor) -> Any:
        return (functional.normalize(x, dim=-1) @ functional.normalize(self.weight, dim=-1).t()).argmax(-1)


class LinearHead(nn.Module):
    """torch's own layer; labels only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, K, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.head(x).argmax(-1)


class Prototypes(nn.Module):
    """Few-shot classifier by distance; prototypes stored as (D, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(D, K))

    def forward(self, x: Tensor) -> Any:
        distances = torch.cdist(x, self.prototypes.t())
        return -distances, distances.argmin(-1)


class Router(nn.Module):
    """Mixture of experts: top-2 of a learned gate, and the mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(K, D))
        self.experts = nn.Parameter(torch.randn(K, D, D))

    def forward(self, x: Tensor) -> Any:
        x = x.reshape(-1, x.shape[-1])
        weights, chosen = functional.linear(x, self.gate).softmax(-1).topk(2, dim=-1)
        out = torch.einsum("nd,nkde->nke", x, self.experts[chosen])
        return (out * weights.unsqueeze(-1)).sum(1), chosen


class SwitchRouter(Router):
    """Top-1: one expert per token."""

    def forward(self, x: Tensor) -> Any:
        x = x.reshape(-1, x.shape[-1])
        chosen = functional.linear(x, self.gate).argmax(-1)
        return torch.einsum("nd,nde->ne", x, self.experts[chosen]), chosen


class PoolingNet(nn.Module):
    """Max-pooling with indices, and a table of positions of the channels' width."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(12, D))

    def forward(self, x: Tensor) -> Any:
        pooled, where = functional.max_pool1d(x + self.positions[: x.shape[-1]].t(), 2, return_indices=True)
        return pooled, where


class Positions(nn.Module):
    """Learned position embeddings, added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, D)

    def forward(self, x: Tensor) -> Any:
        where = torch.arange(x.shape[1]).expand(x.shape[:2])
        return x + self.table(where), where


class ProductKeyMemory(nn.Module):
    """Two halves of keys, the best pair picks one of K x K values."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(2, K, D // 2))
        self.values = nn.Embedding(K * K, D)

    def forward(self, x: Tensor) -> Any:
        x = x.reshape(-1, x.shape[-1])
        first, second = ((half @ keys.t()).topk(1)[1] for half, keys in zip(x.chunk(2, -1), self.keys, strict=True))
        slots = first * K + second
        return self.values(slots).sum(1), slots


class TopMemory(nn.Module):
    """Keys and values of the same shape, and how often a slot was used: as near to moving averages as it gets."""

    usage: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Parameter(torch.randn(K, D)), nn.Parameter(torch.randn(K, D))
        self.register_buffer("usage", torch.zeros(K))

    def forward(self, x: Tensor) -> Any:
        x = x.reshape(-1, x.shape[-1])
        slots = torch.cdist(x, self.keys).argmin(-1)
        if self.training:
            self.usage.mul_(0.9).add_(functional.one_hot(slots, K).sum(0), alpha=0.1)
        return self.values[slots], slots


class SoftAttention(nn.Module):
    """Attention over a learned table; weights and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(K, D))

    def forward(self, x: Tensor) -> Any:
        weights = (x @ self.memory.t()).softmax(-1)
        return weights @ self.memory, weights


class DummyQuantizer(nn.Module):
    """Its codes are the latents themselves."""

    def forward(self, x: Tensor) -> Any:
        return x, x.unsqueeze(1), x.new_zeros(())


class Recommender(nn.Module):
    """Bags of items, scored against the items; the best one."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.EmbeddingBag(K, D)

    def forward(self, bags: Tensor) -> Any:
        scores = self.items(bags) @ self.items.weight.t()
        return scores, scores.argmax(-1)


class Retrieval(nn.Module):
    """k nearest neighbours in a bank: their mean label vector, and who they are."""

    bank: Tensor
    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.randn(K, D))
        self.register_buffer("labels", torch.randn(K, D))

    def forward(self, x: Tensor) -> Any:
        near = torch.cdist(x.reshape(-1, x.shape[-1]), self.bank).topk(3, largest=False)[1]
        return self.labels[near].mean(1), near


class NearestLabel(Retrieval):
    """One nearest neighbour; its index only."""

    def forward(self, x: Tensor) -> Any:
        return torch.cdist(x.reshape(-1, x.shape[-1]), self.bank).argmin(-1)


class GroupStatistics(nn.Module):
    """Running sums of the shapes of an EMA quantizer, for normalisation: nothing is searched."""

    total: Tensor
    squares: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(K, D))
        self.register_buffer("squares", torch.ones(K, D))
        self.register_buffer("seen", torch.ones(K))

    def forward(self, x: Tensor) -> Any:
        mean = self.total.mean(0)
        if self.training:
            self.seen.mul_(0.9).add_(0.1)
            self.total.mul_(0.9).add_(0.1 * x.reshape(-1, D).mean(0))
            self.squares.mul_(0.9).add_(0.1 * x.reshape(-1, D).pow(2).mean(0))
        return (x - mean) / self.squares.mean(0).sqrt()


class LowRank(nn.Module):
    """An adapter of low rank: two matrices that are shaped like a codebook and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(K, D)), nn.Parameter(torch.randn(D, K))

    def forward(self, x: Tensor) -> Any:
        hidden = functional.linear(x, self.down)
        return functional.linear(hidden, self.up), hidden.argmax(-1)


class HashLookup(nn.Module):
    """Tokens pick rows by the sign of their features: integers and rows, and no search."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2**4, D)

    def forward(self, x: Tensor) -> Any:
        slots = ((x[..., :4] > 0) * torch.tensor([1, 2, 4, 8])).sum(-1)
        return x + self.table(slots), slots


REPORTED: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (TiedHead, FeedsBack, CosineClassifier, Prototypes, NearestLabel, TopMemory, GroupStatistics)
}
"""Those that act so much like a quantizer, or hold its tensors, that a reader of the report should hear of them."""

SILENT: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        TiedLanguageModel,
        ClassifierWithLogits,
        ClassifierWithLabels,
        LinearHead,
        Router,
        SwitchRouter,
        PoolingNet,
        Positions,
        ProductKeyMemory,
        SoftAttention,
        DummyQuantizer,
        Recommender,
        Retrieval,
        LowRank,
        HashLookup,
    )
}
"""Those of which nothing at all should be said."""
