"""The version, written here once: packaging reads this line, run folders and manifests record it."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
