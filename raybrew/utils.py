"""Helpers under names that TextBrewer's users know: `raybrew.utils.display_parameters`. Loads torch when called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raybrew.models.inspection import ParameterNode

__all__ = ["display_parameters"]


def display_parameters(model: nn.Module | Mapping[str, Tensor], max_level: int | None = 3) -> tuple[str, ParameterNode]:
    """Text table and tree of a model's parameters; see `raybrew.models.inspection.display_parameters`."""
    from raybrew.models import inspection

    return inspection.display_parameters(model, max_level)
