"""Quantizers with a table that gradients move, as people write them.

None is copied; each has one habit seen in the wild.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

K, D = 16, 8


def straight_through(x: Tensor, q: Tensor) -> Tensor:
    return x + (q - x).detach()


class Textbook(nn.Module):
    """An embedding, squared distances by expansion, images channel first, everything in a tuple."""

    def __init__(self, K: int = K, D: int = D, commitment_cost: float = 0.25) -> None:
        super().__init__()
        self._embedding = nn.Embedding(K, D)
        self._embedding.weight.data.uniform_(-1 / K, 1 / K)
        self._commitment_cost = commitment_cost

    def forward(self, inputs: Tensor) -> Any:
        inputs = inputs.permute(0, 2, 3, 1).contiguous()
        flat = inputs.view(-1, self._embedding.embedding_dim)
        weight = self._embedding.weight
        distances = torch.sum(flat**2, dim=1, keepdim=True) + torch.sum(weight**2, dim=1) - 2 * flat @ weight.t()
        indices = torch.argmin(distances, dim=1).unsqueeze(1)
        encodings = torch.zeros(indices.shape[0], weight.shape[0], device=inputs.device)
        encodings.scatter_(1, indices, 1)
        quantized = torch.matmul(encodings, weight).view(inputs.shape)
        e_latent_loss = functional.mse_loss(quantized.detach(), inputs)
        q_latent_loss = functional.mse_loss(quantized, inputs.detach())
        loss = q_latent_loss + self._commitment_cost * e_latent_loss
        share = encodings.mean(dim=0)
        perplexity = torch.exp(-torch.sum(share * torch.log(share + 1e-10)))
        return loss, straight_through(inputs, quantized).permute(0, 3, 1, 2).contiguous(), perplexity, encodings


class LegacyBeta(nn.Module):
    """`beta` weighs the codebook's own term, and the pull on the encoder is fixed."""

    def __init__(self, K: int = K, D: int = D, beta: float = 0.25) -> None:
        super().__init__()
        self.vectors = nn.Embedding(K, D)
        self.beta = beta

    def forward(self, z: Tensor) -> Any:
        z = z.permute(0, 2, 3, 1).contiguous()
        codes = torch.cdist(z.reshape(-1, z.shape[-1]), self.vectors.weight).argmin(1)
        q = self.vectors(codes).view(z.shape)
        loss = ((q.detach() - z) ** 2).mean() + self.beta * ((q - z.detach()) ** 2).mean()
        return straight_through(z, q).permute(0, 3, 1, 2), loss, (None, None, codes)


class ScaledWhole(nn.Module):
    """One weight for the whole loss, another inside it."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(K, D))
        self.loss_weight = 0.5
        self.commitment = nn.Parameter(torch.tensor(0.3), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        codes = torch.cdist(x, self.codebook.expand(x.shape[0], -1, -1)).argmin(-1)
        q = functional.embedding(codes, self.codebook)
        loss = functional.mse_loss(q, x.detach()) + self.commitment * functional.mse_loss(x, q.detach())
        return {"quantized": straight_through(x, q), "codes": codes, "loss": self.loss_weight * loss}


class PortFromKeras(nn.Module):
    """A table stored as (D, K), images channel last, a loss left on the module."""

    loss: Tensor

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(D, K).uniform_())
        self.beta = 0.25
        self.num_embeddings = K

    def forward(self, x: Tensor) -> Any:
        batch, height, width, channels = x.shape
        flat = x.reshape(-1, channels)
        similarity = torch.matmul(flat, self.embeddings)
        distances = (flat**2).sum(1, keepdim=True) + (self.embeddings**2).sum(0) - 2 * similarity
        indices = distances.argmin(1)
        hits = functional.one_hot(indices, self.num_embeddings).to(x.dtype)
        q = torch.matmul(hits, self.embeddings.t()).reshape(x.shape)
        self.loss = self.beta * ((q.detach() - x) ** 2).mean() + ((q - x.detach()) ** 2).mean()
        return straight_through(x, q), indices.reshape(batch, height, width)


class CosineEinsum(nn.Module):
    """Both sides on the unit sphere, einsum, and the normalised row is what it decodes with."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(K, D))
        self.commit_weight = 1

    def forward(self, x: Tensor) -> Any:
        x, rows = functional.normalize(x, dim=-1), functional.normalize(self.codes, dim=-1)
        indices = torch.einsum("b n d, k d -> b n k", x, rows).argmax(-1)
        q = rows[indices]
        commit = functional.mse_loss(x, q.detach()) * self.commit_weight
        return straight_through(x, q), indices, commit, functional.mse_loss(q, x.detach())


class RawOutside(nn.Module):
    """Two-dimensional input, differences by broadcasting; straight-through step and weights are its caller's."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, D))
        self.temperature = 0.5

    def forward(self, z: Tensor) -> Any:
        indices = (z.unsqueeze(1) - self.weight.unsqueeze(0)).pow(2).sum(-1).min(1)[1]
        q = self.weight.index_select(0, indices)
        return q, indices, ((q.detach() - z) ** 2).mean(), ((q - z.detach()) ** 2).mean()


class ByMethod(nn.Module):
    """A whole autoencoder with its codebook on itself and a method `quantize`."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, D, 3, 1, 1))
        self.decoder = nn.ConvTranspose2d(D, 3, 4, 2, 1)
        self.codebook = nn.Embedding(K, D)
        self.beta = 0.25

    def quantize(self, z: Tensor) -> Any:
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        codes = torch.cdist(flat, self.codebook.weight).argmin(1)
        q = self.codebook(codes).view(z.shape[0], z.shape[2], z.shape[3], -1).permute(0, 3, 1, 2)
        loss = functional.mse_loss(q, z.detach()) + self.beta * functional.mse_loss(z, q.detach())
        return straight_through(z, q), codes, loss

    def forward(self, image: Tensor) -> Any:
        q, _, loss = self.quantize(self.encoder(image))
        return self.decoder(q), loss


class FromFirstBatch(Textbook):
    """Starts its codebook from the latents of its first training forward."""

    def __init__(self) -> None:
        super().__init__()
        self.started = False

    def forward(self, inputs: Tensor) -> Any:
        if self.training and not self.started:
            flat = inputs.detach().permute(0, 2, 3, 1).reshape(-1, inputs.shape[1])
            self._embedding.weight.data.copy_(flat[torch.randint(len(flat), (self._embedding.num_embeddings,))])
            self.started = True
        return super().forward(inputs)


class Restarting(Textbook):
    """Moves its unused codes by itself in each training forward."""

    def forward(self, inputs: Tensor) -> Any:
        output = super().forward(inputs)
        if self.training:
            unused = output[3].sum(0) == 0
            flat = inputs.detach().permute(0, 2, 3, 1).reshape(-1, inputs.shape[1])
            self._embedding.weight.data[unused] = flat[torch.randint(len(flat), (int(unused.sum()),))]
        return output


class Projecting(nn.Module):
    """Projects to a smaller codebook and back."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.project_in, self.project_out = nn.Linear(3 * D, D), nn.Linear(D, 3 * D)
        self.codebook = nn.Embedding(K, D)

    def forward(self, x: Tensor) -> Any:
        z = self.project_in(x)
        codes = torch.cdist(z, self.codebook.weight.expand(len(z), -1, -1)).argmin(-1)
        return self.project_out(straight_through(z, self.codebook(codes))), codes


class Wordless(Textbook):
    """Returns the loss and the quantised vectors, and no codes: most tutorials do."""

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs)[:2]


class Stages(nn.Module):
    """A residual quantizer with its embeddings in a list and one forward for all."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Embedding(K, D) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        rest, total, codes = x, torch.zeros_like(x), []
        for level in self.levels:
            assert isinstance(level, nn.Embedding)
            picked = torch.cdist(rest.reshape(-1, rest.shape[-1]), level.weight).argmin(-1)
            q = level(picked).reshape(x.shape)
            rest, total = rest - q.detach(), total + q
            codes.append(picked)
        return straight_through(x, total), torch.stack(codes, -1)


class CodesOnly(nn.Module):
    """An encode-only quantizer: returns the nearest codes and nothing else."""

    def __init__(self, K: int = K, D: int = D) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(K, D))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x.reshape(-1, x.shape[-1]), self.codebook).argmin(-1)


class Frozen(RawOutside):
    """A random table that nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight.requires_grad_(False)
