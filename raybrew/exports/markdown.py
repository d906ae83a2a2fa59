"""User text in Markdown and YAML: shown as it is, and never taken for markup."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["escape", "fenced", "quote", "table"]

#: What YAML does not take literally inside double quotes.
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: What has a meaning inside a line; text is never put at the start of one, where more would.
_MARKDOWN = re.compile(r"([\\`*_\[\]#!|~$:@^]|(?<=www)\.)", re.IGNORECASE)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; cells are escaped already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quote(value: Any) -> str:
    """A YAML double-quoted scalar: JSON's, with what YAML would not print escaped too."""
    text = json.dumps(_clean(value), ensure_ascii=False)
    return _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape(value: Any) -> str:
    """Inline Markdown that shows `value` as it is, on one line."""
    text = " ".join(_clean(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def fenced(code: str, language: str) -> str:
    """A code block that nothing inside can close."""
    code = _clean(code)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _clean(value: Any) -> str:
    return _LONE_SURROGATE.sub("\ufffd", str(value))
