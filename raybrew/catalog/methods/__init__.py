"""Published methods as data: what each one sets in an experiment, its paper, and the figures it published."""

from __future__ import annotations

from raybrew.catalog.methods.base import Figure, Method
from raybrew.catalog.methods.expand import contradictions, with_method
from raybrew.catalog.methods.table import METHODS

__all__ = ["METHODS", "Figure", "Method", "contradictions", "with_method"]
