"""Broken inputs for the fuzz tests: experiment files, overrides, bytes and records, drawn by hypothesis."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raybrew.config import Experiment

__all__ = ["DOTTED_KEYS", "FIXED", "broken_bytes", "broken_experiment", "broken_overrides", "broken_values"]

#: The same inputs in every run, so that a failure is the change's own.
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example],
)

#: YAML that stands where a value was: wrong types, wrong tags, numbers and texts beyond all bounds.
SNIPPETS = (
    *("null", "true", "1", "-1", "0", "1.5", "-0.0", ".inf", "-.inf", ".nan", "1e400", "1e-400", "1_000", "0x10"),
    *("9" * 5000, "-" + "9" * 400, "100000000", str(2**63), "1:30", "2001-12-14", "''", "' '", "abc", "T3", "a.b"),
    *("!!set {a, b}", "!!set {}", "!!binary aGVsbG8=", "!!omap [a: 1]", "!!int abc", "!!bool maybe", "!!float x"),
    *("!!python/object:os.system x", "!!timestamp 2001-99-99", "!x 1", "*nope", "&a [*a]", "&a {b: *a}", "<<"),
    *(
        "${",
        "${}",
        "${name}",
        "${nothing.here}",
        "${oc.env:NOT_SET_ANYWHERE}",
        "${${a}}",
        "'???'",
        '"\\0"',
        '"\\ud800"',
    ),
    *(
        "[]",
        "{}",
        "[null, {}]",
        "{null: 1}",
        "{1: 2}",
        "{true: 1}",
        "{[1]: 2}",
        "{a: {b: {c: 1}}}",
        "[" * 40 + "]" * 40,
    ),
    *(
        "x" * 6000,
        "a/" * 2100,
        "/" + "a" * 300 + "/b.csv",
        "~nobody-there/x",
        "../../x.tsv",
        "s3://key:se/cret@bucket/x",
    ),
    *("{kind: []}", "{kind: {}}", "{kind: 3}", "{kind: multi}", "{method: [kd]}", "{layers: 3}", "[{loss: null}]"),
    *("[L3_hidden_mse]", "[[0, 0]]", "[[1], []]", "[{preset: L3_hidden_mse, layers: null}]", "{choice: null}"),
    *("{uniform: [.inf, .nan]}", "{loguniform: [0, 1]}", "{choice: [1, 2], when: {x: 1}}", "{a: [1]}", "[{}]", "50%"),
)
_KEYS = (
    "null",
    "1",
    "true",
    "''",
    "[1]",
    "extends",
    "<<",
    "kind",
    "a.b",
    "'0'",
    "${x}",
    "x" * 300,
    *Experiment.model_fields,
)
_PIECES = (
    b"\t",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"---\n",
    b"? ",
    b"- ",
    b": ",
    b"&a ",
    b"| ",
    b"#",
)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        yield from _inner(field.annotation, f"{prefix}{name}.") if prefix.count(".") < 5 else ()


def _inner(annotation: Any, prefix: str) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _keys(annotation, prefix)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    name = {dict: "rte.", tuple: "0."}.get(origin, "")  # type: ignore[call-overload]
    for argument in arguments[-1:] if name else arguments:
        yield from _inner(argument, prefix + name)


#: Every key of an experiment, with `rte` for a name and 0 for the place in a list.
DOTTED_KEYS = tuple(sorted(set(_keys(Experiment))))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(item, (*path, name))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


@st.composite
def broken_values(draw: st.DrawFn, values: Any, replacements: tuple[Any, ...]) -> Any:
    """`values` with some of what they hold replaced, removed, moved or put twice."""
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in _paths(values) if path]))
        parent, name = _at(values, path[:-1]), path[-1]
        how = draw(st.sampled_from(("replace", "replace", "remove", "copy")))
        if how == "replace":
            parent[name] = copy.deepcopy(draw(st.sampled_from(replacements)))
        elif how == "copy":
            parent[name] = copy.deepcopy(_at(values, draw(st.sampled_from(list(_paths(values))))))
        else:
            del parent[name]
        if not values:
            break
    return values


@st.composite
def broken_experiment(draw: st.DrawFn, text: str) -> bytes:
    """The bytes of an experiment file that was `text`."""
    if draw(st.booleans()):
        return draw(broken_bytes(text.encode(), tuple(snippet.encode() for snippet in SNIPPETS) + _PIECES))
    # YAML that no value stands for is put in after the dump, in place of marks.
    marks = tuple(f"MARK{number}MARK" for number in range(len(SNIPPETS)))
    values = draw(broken_values(yaml.safe_load(text), marks))
    if draw(st.booleans()) and isinstance(values, dict):
        section = draw(st.sampled_from([values, *(item for item in values.values() if isinstance(item, dict))]))
        section[f"KEY{draw(st.integers(0, len(_KEYS) - 1))}KEY"] = draw(st.sampled_from(marks))
    dumped = yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=10**9)
    for number, snippet in reversed(list(enumerate(SNIPPETS))):
        dumped = dumped.replace(f"MARK{number}MARK", snippet)
    for number, key in reversed(list(enumerate(_KEYS))):
        dumped = dumped.replace(f"KEY{number}KEY", key)
    return dumped.encode()


@st.composite
def broken_overrides(draw: st.DrawFn) -> list[str]:
    """Overrides as no reader of the documentation would write them, and some as one would."""
    keys = st.one_of(
        st.sampled_from(DOTTED_KEYS),
        st.sampled_from(
            ("", ".", "a..b", "train.", "a[0]", "[0]", "distill.matches[9].weight", "a" * 900, ".".join("a" * 90))
        ),
        st.text(max_size=12),
    )
    values = st.one_of(st.sampled_from(SNIPPETS), st.integers().map(str), st.floats().map(str), st.text(max_size=12))
    texts = st.one_of(st.builds("{}={}".format, keys, values), st.text(max_size=20))
    return draw(st.lists(texts, min_size=1, max_size=3))


@st.composite
def broken_bytes(draw: st.DrawFn, data: bytes, pieces: tuple[bytes, ...]) -> bytes:
    """`data` with bytes changed, cut out, repeated, or with one of `pieces` put in, more often near its end."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.one_of(st.integers(0, len(found)), st.integers(max(0, len(found) - 300), len(found))))
        how = draw(st.sampled_from(("change", "change", "cut", "end", "repeat", "put", "words")))
        if how == "change":
            found[start : start + 1] = bytes(
                [draw(st.one_of(st.integers(0, 255), st.sampled_from((0, 127, 128, 255))))]
            )
        elif how == "cut":
            del found[start : start + draw(st.integers(1, 64))]
        elif how == "end":
            del found[start:]
        elif how == "repeat":
            found[start:start] = found[max(0, start - draw(st.integers(1, 100))) : start]
        elif how == "put":
            found[start:start] = draw(st.sampled_from(pieces))
        else:  # in place of lengths and offsets
            number = draw(st.sampled_from((2**31 - 1, 2**62, -1, -(2**31), 0, 1)))
            found[start : start + 8] = number.to_bytes(8, "little", signed=True)
    return bytes(found)
