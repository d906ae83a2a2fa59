"""YAML as plain values: text, numbers, true, false, null, lists and mappings with text keys, all within bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raybrew.errors import ConfigError, first_line
from raybrew.secrets import scrub

__all__ = ["MAX_DEPTH", "MAX_FILE_BYTES", "describe", "merged", "parse_yaml", "read_yaml", "shown_path"]

#: An experiment is a page or two; a list of 50,000 label names fits.
MAX_FILE_BYTES = 1 << 20
#: Lists and mappings inside one another. Experiments come to about twelve.
MAX_DEPTH = 32
#: Values of a document, each alias counted as what it stands for.
_MAX_NODES = 200_000

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name: name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_MERGE = _TAG + "merge"
#: Mappings that one `<<` may name; each may itself be merged from others.
_MAX_MERGED = 100
#: YAML 1.1 reads 1e-4, without a point, as text.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    """Reads plain values only; whatever else a document holds is a YAMLError with its place."""

    def construct_document(self, node: yaml.Node) -> Any:
        _count(node, {}, [])
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN:
            raise _problem(f"the tag {_short(node.tag)} is not supported; allowed: {', '.join(_PLAIN.values())}", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _problem(f"{_short(node.value)} is not a valid {_PLAIN[node.tag]}", node) from error

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, value in node.value:
            if key.tag == _MERGE:
                if isinstance(value, yaml.SequenceNode) and len(value.value) > _MAX_MERGED:
                    raise _problem(f"`<<` merges {len(value.value)} mappings; allowed: {_MAX_MERGED}", key)
                continue
            if key.tag != _TAG + "str":
                kind = _PLAIN.get(key.tag, key.tag)
                raise _problem(f"a key must be text, but {_short(key.value)} is of type {kind}; quote it", key)
            if key.value in seen:
                raise _problem(f"the key {_short(key.value)} occurs twice", key)
            seen.add(key.value)
        super().flatten_mapping(node)
        # What is given in place overrides what is merged, so that only one of each name is needed.
        node.value = list({key.value: (key, value) for key, value in node.value}.values())


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (_TAG + "timestamp", _TAG + "value", _TAG + "float")]
    for first, found in _BASE.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path, hint: str = "", what: str = "experiment file") -> Any:
    """The plain values of the YAML file `path`; ConfigError with line and column if it has others, or is too large.

    `hint` says who asks for the file, `what` what it should be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except IsADirectoryError:
        raise ConfigError(f"{shown_path(path)}: a folder, not an {what}{hint}") from None
    except FileNotFoundError:
        raise ConfigError(
            f"{shown_path(path)}: no such {what}{hint}; looked at {shown_path(path.absolute())}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise ConfigError(
            f"{shown_path(path)}: cannot be read{hint}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{shown_path(path)}: larger than {MAX_FILE_BYTES >> 20} MiB, so not an {what}{hint}")
    try:
        return parse_yaml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown_path(path)}: not UTF-8: {first_line(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown_path(path)}:{describe(error)}") from error


def parse_yaml(text: str) -> Any:
    """The plain values of one YAML document; YAMLError for anything else."""
    depth = 0
    # The parser in C composes nested nodes on its stack, which it does not watch.
    for event in yaml.parse(text, Loader=_BASE):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _nested(event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.load(text, Loader=_Loader)


def describe(error: yaml.YAMLError) -> str:
    """Place and problem of a YAML error, on one line and without secrets."""
    mark = getattr(error, "problem_mark", None)
    place = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{place} {scrub(getattr(error, 'problem', None) or first_line(error))}"


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`: mappings key by key, anything else in place of what was there."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    result = dict(base)
    for key, value in over.items():
        result[key] = merged(base[key], value) if key in base else value
    return result


def _count(node: yaml.Node, sizes: dict[int, tuple[int, int]], above: list[int]) -> tuple[int, int]:
    """Values below `node` and how deep they are nested, aliases followed; a YAMLError beyond the bounds."""
    if id(node) in above:
        raise _problem("an alias holds itself", node)
    if id(node) in sizes:
        return sizes[id(node)]
    count, depth = 1, 0
    if isinstance(node, yaml.CollectionNode):
        above.append(id(node))
        for part in node.value:
            for child in part if isinstance(part, tuple) else (part,):
                more, below = _count(child, sizes, above)
                count += more
                depth = max(depth, below + 1)
                if count > _MAX_NODES:
                    raise _problem(f"more than {_MAX_NODES} values", node)
        above.pop()
    if depth > MAX_DEPTH:
        raise _nested(node.start_mark)
    sizes[id(node)] = count, depth
    return count, depth


def _problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def _nested(mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=f"lists and mappings are nested more than {MAX_DEPTH} deep", problem_mark=mark)


def _short(value: Any) -> str:
    # Before it is cut: a part of a secret is not known as one.
    text = scrub(value.removeprefix(_TAG)) if isinstance(value, str) else "a list or mapping"
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def shown_path(path: Path) -> str:
    """A path in a message: without secrets, and in a length that people read."""
    text = str(scrub(str(path)))
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"
