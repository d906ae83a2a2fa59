"""What an error says, as programs read it: sentences are for people and may change."""

from __future__ import annotations

from raybrew.errors import ConfigError

__all__ = ["told"]


def told(error: ConfigError) -> list[str]:
    """`key: code` of each problem."""
    return [f"{problem.key}: {problem.code}" for problem in error.problems]
