"""Where codes should stand, given latents: a k-means codebook, and the nearest code of each latent.

It knows tensors and nothing of quantizers. FAISS and scikit-learn are loaded when a codebook is fitted, not before.
"""

from .backends import draw_by_odds, spread_out
from .budget import Budget
from .fit import CodebookFit, fit_codebook
from .index import ApproximateIndex, IndexSettings
from .lengths import with_lengths
from .matching import Matching, match, match_codes
from .precision import without_autocast
from .relocation import mean_rows
from .search import Metric, assign, finite_rows, nearest_errors, squared_errors, unit_rows
from .tokenizer import KMeansTokenizer, Refit
from .totals import totals

__all__ = [
    "ApproximateIndex",
    "Budget",
    "CodebookFit",
    "IndexSettings",
    "KMeansTokenizer",
    "Matching",
    "Metric",
    "Refit",
    "assign",
    "draw_by_odds",
    "finite_rows",
    "fit_codebook",
    "match",
    "match_codes",
    "mean_rows",
    "nearest_errors",
    "spread_out",
    "squared_errors",
    "totals",
    "unit_rows",
    "with_lengths",
    "without_autocast",
]
