"""Stories as pages: one HTML file without network, or Markdown. Needs the extra `report` for HTML."""

from __future__ import annotations

from .figure import MissingExtraError, figure_of_history
from .page import html_of, markdown_of

__all__ = ["MissingExtraError", "figure_of_history", "html_of", "markdown_of"]
