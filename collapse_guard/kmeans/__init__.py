"""Where codes should stand, given latents: a k-means codebook, and the nearest code of each latent.

It knows tensors and nothing of quantizers. FAISS and scikit-learn are loaded when a codebook is fitted, not before.
"""

from .backends import spread_out
from .budget import Budget
from .fit import CodebookFit, fit_codebook
from .relocation import mean_rows
from .search import Metric, assign

__all__ = ["Budget", "CodebookFit", "Metric", "assign", "fit_codebook", "mean_rows", "spread_out"]
