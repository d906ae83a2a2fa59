"""What a form of a signal has to offer, which form a signal is kept in, and the name of its folder.

A form turns the output of a model, without padding, into a few columns (`encode`), and what was gathered of these into
what losses get (`decode`). All between is the same for every form: `raybrew.store.forms.columns`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy.typing as npt
import pyarrow as pa

from raybrew.catalog.forms import DENSE, FORMS
from raybrew.catalog.target import load_target
from raybrew.config.outside import load_outside
from raybrew.signals import Signal, parse_signal

if TYPE_CHECKING:
    from torch import Tensor

    from raybrew.data.loader import Payload

__all__ = ["Column", "Form", "Forms", "StoredAs", "form_of"]

#: Is not told by the folder of a dense signal.
_USUAL_TYPE = "float16"
_FOLDER = re.compile(r"signals/([a-z_]+(?:\.\d{2,3})?)(?:\.(float32|bfloat16|int8)|\.([a-z0-9]+)@([\w.]+(?:-\w+)?))?")


class Column(NamedTuple):
    """One column of a shard: `width` numbers for each token, item or row; None: a single one.

    `pairs`: a number for each head and each pair of tokens of a row instead.
    """

    type: pa.DataType
    width: int | None = None
    pairs: bool = False


class Form(Protocol):
    """How the outputs of one signal are kept. Made of the signal and an element type, one that it chose itself."""

    checked: str
    """The column that is NaN or infinite where a value cannot be stored."""

    def __init__(self, signal: Signal, element_type: str) -> None: ...

    @staticmethod
    def element_type_of(signal: Signal, wanted: str) -> str:
        """How numbers are kept where `store.element_type` is `wanted`: small letters and digits."""

    def problem(self, model_type: str) -> str | None:
        """Why the signal of a model of this type cannot be kept in this form; None if it can."""

    def columns(self, dim: int) -> Mapping[str, Column]:
        """The columns of a shard, of outputs of `dim` numbers (for attention: heads)."""

    def encode(self, output: Tensor) -> Mapping[str, Tensor]:
        """Values of the columns for (n, dim) outputs of n tokens, items or rows, on their device.

        Of pairs for (rows, heads, length, length) outputs, zeros being padding.
        """

    def decode(self, columns: Mapping[str, npt.NDArray[Any]], dim: int) -> Payload:
        """What losses get of the columns of a batch: (rows, width), or with padding (rows, length, width)."""

    def live(self, output: Tensor) -> Payload:
        """What losses get of the output of a model that runs live, (rows, dim) or (rows, length, dim)."""

    def rounding(self, exact: Tensor) -> Tensor:
        """Bounds of the difference between `decode(...).to_dense()` of what is stored and `exact`, those of a model."""

    def remedy(self) -> str:
        """What to do about values that overflow."""


class StoredAs(NamedTuple):
    """A signal as it lies in a store, which the name of its folder tells."""

    signal: Signal
    element_type: str
    form: str = DENSE

    @property
    def folder(self) -> str:
        """signals/logits, signals/hidden.08, signals/hidden.08.float32, signals/logits.int8@package.module-Name."""
        name = f"signals/{self.signal.name}"
        if self.form != DENSE:
            return f"{name}.{self.element_type}@{self.form.replace(':', '-')}"
        return name if self == Forms(_USUAL_TYPE).stored_as(self.signal) else f"{name}.{self.element_type}"

    @property
    def described(self) -> str:
        """For messages: int8, or int8 in package.module:Name."""
        return self.element_type if self.form == DENSE else f"{self.element_type} in {self.form}"

    @classmethod
    def parse(cls, folder: str) -> StoredAs | None:
        """What the name of a folder tells; None if it is not the folder of a signal. No form is imported but ours."""
        found = _FOLDER.fullmatch(folder)
        if found is None:
            return None
        try:
            signal = parse_signal(found[1])
        except ValueError:
            return None
        if found[4] is not None:
            stored = cls(signal, found[3], found[4].replace("-", ":"))
        else:
            stored = Forms(found[2] or _USUAL_TYPE).stored_as(signal)
        return stored if stored.folder == folder else None


@dataclasses.dataclass(frozen=True)
class Forms:
    """How the signals of a store are kept: `store.element_type` and `store.forms`."""

    element_type: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)  #: kind of signal -> form

    def stored_as(self, signal: Signal) -> StoredAs:
        """How `signal` is kept."""
        name = self.names.get(signal.kind, DENSE)
        return StoredAs(signal, _form_class(name, signal.kind).element_type_of(signal, self.element_type), name)

    def of(self, signal: Signal) -> Form:
        """The form of `signal`."""
        return form_of(self.stored_as(signal))


@functools.lru_cache(maxsize=1024)
def form_of(stored: StoredAs) -> Form:
    """The form of what is stored like this. ConfigError if it is one of the user's that cannot be imported."""
    found: Form = _form_class(stored.form, stored.signal.kind)(stored.signal, stored.element_type)
    return found


@functools.lru_cache(maxsize=64)
def _form_class(name: str, kind: str) -> Any:
    if name in FORMS:
        return load_target(FORMS[name].target)
    return load_outside(name, f"store.forms.{kind}")
