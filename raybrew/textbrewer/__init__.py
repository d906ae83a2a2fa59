"""TextBrewer's Python API on raybrew's loop and objective: distillers, adaptors, configurations, presets.

`__init__.pyi` lists the names, which load on first use.
"""

from __future__ import annotations

from raybrew.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
