"""Secrets taken out of anything that is about to be stored, logged or sent. Standard library only.

What counts as a secret: the value of an environment variable whose name says so, the user part of a URL, tokens of
a well-known shape anywhere in a text, and values that stand under a name such as `password` or `api_key`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HIDDEN", "scrub"]

#: What stands in place of a secret.
HIDDEN = "***"

#: An environment variable whose name contains one of these holds a secret ...
_ENVIRONMENT_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
#: ... if its value is this long; shorter ones ("true", "8192") would blank out ordinary words.
_MIN_SECRET_LENGTH = 8

_SECRET_WORDS = (
    r"(?:api|access|private|signing|encryption|wandb|hf)[_-]?key(?:[_-]id)?|apikey"
    r"|(?:api|access|auth|bearer|session|security|refresh|id|hf)[_-]?token"
    r"|password|passwd|secret|credentials?|authorization"
)
#: Types of values that hide nothing.
_PLAIN = frozenset({int, float, bool, type(None)})
#: Texts up to this length are remembered.
_SHORT = 80
#: Names under which any text is a secret. `mask_token` and `tokenizer` are none.
_SECRET_NAME = re.compile(rf"(?:.*[._-])?(?:{_SECRET_WORDS})(?:[_-](?:key|value))?", re.IGNORECASE)
#: Names under which 40 hexadecimal digits are a W&B key rather than a commit.
_KEY_NAME = re.compile(r"(?:.*[._-])?(?:key|token)s?", re.IGNORECASE)
_FORTY_HEX = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)

#: The user part of a URL may hold several "@" and ":"; it ends at the last "@" before the path.
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#\"'<>]*@", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&][^=&\s]*(?:token|key|secret|signature|credential|password)[^=&\s]*=)[^&\s\"'<>]+", re.IGNORECASE
)
#: `WANDB_API_KEY=...`, `password: ...`, `--api-key ...` inside a text.
_VALUE = r"(?!(?:null|none|~)(?![^\s,;]))(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&]+)"
_ASSIGNMENT = re.compile(
    rf"(?<![A-Za-z0-9])((?:[A-Za-z0-9_.-]*[_.-])?(?:{_SECRET_WORDS})[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE
)
_OPTION = re.compile(rf"(--(?:[a-z0-9-]+-)?(?:{_SECRET_WORDS}|token|key)(?:\s+|=))[^\s\"']+", re.IGNORECASE)
_FORTY_HEX_ASSIGNMENT = re.compile(r"((?:key|token)[\"']?\s*[=:]\s*[\"']?)[0-9a-f]{40}(?![0-9a-f])", re.IGNORECASE)
_TOKEN_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|wandb_v\d+_[A-Za-z0-9_-]{20,}"  # W&B
    r"|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"  # GitHub, GitLab
    r"|sk-[A-Za-z0-9_-]{20,}"  # OpenAI and others
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|A(?:KIA|SIA)[A-Z0-9]{16}"  # AWS access key ids
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"  # JSON web tokens
    r"|(?<=Bearer )[A-Za-z0-9._~+/-]{8,}=*"
    r")"
)


def scrub(value: Any, environ: Mapping[str, str] | None = None) -> Any:
    """`value` with every secret replaced by `***`; mappings, lists, tuples and sets are searched through.

    Returns new containers (tuples and sets stay what they are) and leaves numbers and other objects alone. `environ`
    defaults to this process's environment.
    """
    return _scrub(value, _environment_secrets(os.environ if environ is None else environ))


def _environment_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    found = {
        value
        for name, value in environ.items()
        if len(value) >= _MIN_SECRET_LENGTH and any(word in name.upper() for word in _ENVIRONMENT_WORDS)
    }
    # Longest first: a secret that contains another must not leave its rest behind.
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))


def _scrub(value: Any, secrets: tuple[str, ...]) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return _scrub_text(value, secrets) if len(value) > _SHORT else _scrub_short(value, secrets)
    if isinstance(value, Mapping):
        return {
            _scrub(name, secrets): item if type(item) in _PLAIN else _scrub_named(name, item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_scrub(item, secrets) for item in value]
    if isinstance(value, tuple):
        return tuple(_scrub(item, secrets) for item in value)
    if isinstance(value, set | frozenset):
        return type(value)(_scrub(item, secrets) for item in value)
    return value


def _scrub_named(name: Any, value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(name, str) and isinstance(value, str) and value:
        is_secret, is_key = _kind_of_name(name)
        if is_secret or (is_key and _FORTY_HEX.fullmatch(value)):
            return HIDDEN
    return _scrub(value, secrets)


@functools.lru_cache(maxsize=1 << 12)
def _kind_of_name(name: str) -> tuple[bool, bool]:
    """Whether any text under `name` is a secret, and whether 40 hexadecimal digits are."""
    return bool(_SECRET_NAME.fullmatch(name)), bool(_KEY_NAME.fullmatch(name))


@functools.lru_cache(maxsize=1 << 14)
def _scrub_short(text: str, secrets: tuple[str, ...]) -> str:
    """Names and words, of which thousands of runs have the same."""
    return _scrub_text(text, secrets)


def _scrub_text(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _TOKEN_SHAPES.sub(HIDDEN, text)
    text = _OPTION.sub(rf"\1{HIDDEN}", text)
    text = _ASSIGNMENT.sub(rf"\1{HIDDEN}", text)
    return _FORTY_HEX_ASSIGNMENT.sub(rf"\1{HIDDEN}", text)
