"""Stories as pages: one HTML file without network, or Markdown. Needs the extra `report` for HTML."""

from __future__ import annotations

from .page import MissingExtraError, html_of, markdown_of

__all__ = ["MissingExtraError", "html_of", "markdown_of"]
