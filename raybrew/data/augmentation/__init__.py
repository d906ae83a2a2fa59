"""Further rows for a transfer set: token lists with other tokens, and rows with other words."""

from __future__ import annotations

from raybrew.data.augmentation.tokens import deleting, long_disorder, masking, n_gram_sampling, short_disorder

__all__ = ["deleting", "long_disorder", "masking", "n_gram_sampling", "short_disorder"]
