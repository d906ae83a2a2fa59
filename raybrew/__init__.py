"""Distillation of transformers on Ray: run the teacher once, train any number of students from what it said.

`__init__.pyi` lists the names. They load on first use, so that `import raybrew` imports neither torch nor ray.
"""

from __future__ import annotations

from raybrew.lazy import attach_stub
from raybrew.old_names import add_modules

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
globals().update(add_modules(__name__))
