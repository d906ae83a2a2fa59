"""Secrets found in what a user gives, and taken out of text that is about to be logged, shown or sent.

What counts as a secret: the value of an environment variable whose name says so, the user part of a URL, tokens of
a well-known shape anywhere in a text, and values that stand under a name such as `password` or `api_key`.

An experiment that holds one is refused (`raybrew.config.values`). What raybrew reads again, such as a ledger or the
configuration of a run, therefore holds none and is never scrubbed: a scrubbed path would lead elsewhere.
Standard library only.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HIDDEN", "scrub", "scrub_message", "secret_in", "secret_variables"]

#: What stands in place of a secret.
HIDDEN = "***"

#: An environment variable holds a secret if one of the words of its name is one of these ...
_ENVIRONMENT_WORD = re.compile(
    r"(?:API|ACCESS|SECRET)?KEYS?\d*|.*(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?\d*"
)
#: ... unless the last one names something else, as in SSH_KEY_DIR, ...
_NO_SECRETS = ("DIR", "PATH", "FILE", "FOLDER", "HOME", "ROOT", "NAME", "TYPE", "MODE", "URL", "URI", "HOST", "PORT")
#: ... or its value is a path that exists, as in GOOGLE_APPLICATION_CREDENTIALS, ...
#: ... or shorter than this: "true" and "8192" would blank out ordinary words, ...
_MIN_SECRET_LENGTH = 8
#: ... or one word, which a path or a name may hold by chance, ...
_WORD = r"(?:[a-z]{1,14}|[A-Z][a-z]{0,13}|[A-Z]{1,14})?\d{0,4}"
_PLAIN_WORD = re.compile(_WORD)
#: ... or several and numbers, as paths and names of models have them, unless the name speaks of what people make up:
#: keys and tokens are drawn at random.
_PLAIN_WORDS = re.compile(rf"(?:{_WORD}|\d+)(?:[-_.,:/\\~ ](?:{_WORD}|\d+))*")
_MADE_UP = re.compile(r"(?:^|_)(?:API|ACCESS|AUTH|PRIVATE)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL")

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

# Repetitions before a fixed word are bounded: of a long text, each position would be tried to its end.
#: The user part of a URL may hold several "@" and ":", and, with a ":" before it, the "/" of an AWS secret; it ends at
#: the last "@". Digits between ":" and "/" are a port, but buckets have none. A URL that was taken for a path has one
#: "/" left after the scheme.
_USERINFO = re.compile(
    r"((?:s3[an]?|gs|gcs):/{1,2}(?=[^\s/:@]*:)"
    r"|(?:https?:/|[a-z][a-z0-9+.-]{0,30}://)(?=[^\s/?#@]*@|[^\s/?#:@]*:(?!\d{1,5}(?:[/?#]|$))))"
    r"[^\s\"'<>]*@",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"([?&][^=&\s?]{0,60}(?:token|key|secret|signature|credential|password)[^=&\s]{0,60}=)[^&\s\"'<>]+", re.IGNORECASE
)
#: `WANDB_API_KEY=...`, `password: ...`, `--api-key ...` inside a text.
_VALUE = r"(?!(?:null|none|~)(?![^\s,;]))(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&]+)"
_ASSIGNMENT = re.compile(
    rf"(?<![A-Za-z0-9])((?:[A-Za-z0-9_.-]{{0,60}}[_.-])?(?:{_SECRET_WORDS})[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE
)
_ASSIGNMENT_WITHOUT_COLON = re.compile(_ASSIGNMENT.pattern.replace("[=:]", "="), re.IGNORECASE)
_OPTION = re.compile(rf"(--(?:[a-z0-9-]{{1,60}}-)?(?:{_SECRET_WORDS}|token|key)(?:\s+|=))[^\s\"']+", re.IGNORECASE)
_FORTY_HEX_ASSIGNMENT = re.compile(r"((?:key|token)[\"']?\s*[=:]\s*[\"']?)[0-9a-f]{40}(?![0-9a-f])", re.IGNORECASE)
_TOKEN_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|wandb_v\d+_[A-Za-z0-9_-]{20,}"  # W&B
    r"|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"  # GitHub, GitLab
    r"|sk-(?=[\w-]{0,200}[0-9])(?=[\w-]{0,200}[A-Z])[A-Za-z0-9_-]{32,}"  # OpenAI and others
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
    return _scrub(value, tuple(secret_variables(environ)))


def scrub_message(text: str) -> str:
    """As `scrub`, for sentences: what follows `api_key: ` there is what is said about that key."""
    return _scrub_text(text, tuple(secret_variables()), _ASSIGNMENT_WITHOUT_COLON)


def secret_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Value -> name of the environment variables that hold a secret, longest values first.

    `environ` defaults to this process's environment.
    """
    found = {
        value: name
        for name, value in (os.environ if environ is None else environ).items()
        if len(value) >= _MIN_SECRET_LENGTH and _names_secret(name.upper()) and not _is_ordinary(name.upper(), value)
    }
    # A secret that contains another must not leave its rest behind.
    return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def secret_in(text: str, name: str | None = None, variables: Mapping[str, str] | None = None) -> str | None:
    """Which kind of secret `text`, given under `name`, holds, in words that do not repeat it; None if it holds none.

    Just what `scrub` changes is one. `variables` defaults to `secret_variables()`.
    """
    for value, variable in (secret_variables() if variables is None else variables).items():
        if value in text:
            return f"the value of the environment variable {variable}, whose name says so"
    if _USERINFO.search(text):
        return "credentials in a URL"
    return None if _scrub_named(name, text, ()) == text else "a token, key or password"


def _names_secret(name: str) -> bool:
    words = name.split("_")
    return words[-1] not in _NO_SECRETS and any(_ENVIRONMENT_WORD.fullmatch(word) for word in words)


def _is_ordinary(name: str, value: str) -> bool:
    """Whether the value of a variable, whatever its name says, may stand in a text by chance."""
    if value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value)):
        return True
    return (_PLAIN_WORD if _MADE_UP.search(name) else _PLAIN_WORDS).fullmatch(value) is not None


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


def _scrub_text(text: str, secrets: tuple[str, ...], assignment: re.Pattern[str] = _ASSIGNMENT) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _TOKEN_SHAPES.sub(HIDDEN, text)
    text = _OPTION.sub(rf"\1{HIDDEN}", text)
    text = assignment.sub(rf"\1{HIDDEN}", text)
    return _FORTY_HEX_ASSIGNMENT.sub(rf"\1{HIDDEN}", text)
