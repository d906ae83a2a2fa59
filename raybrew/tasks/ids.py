"""The id of an example: a hash of its content, wherever it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

__all__ = ["example_id"]


def example_id(content: Sequence[str]) -> bytes:
    """16 bytes that name an example by its content.

    xxh3_128 of every text's UTF-8, each preceded by its length in bytes (8 bytes, little-endian), so that no two
    contents run together.
    """
    parts = []
    for text in content:
        data = text.encode()
        parts += [len(data).to_bytes(8, "little"), data]
    return xxhash.xxh3_128_digest(b"".join(parts))
