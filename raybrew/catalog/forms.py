"""The forms in which a signal can be kept: what its columns in a store are, and what a loss gets of them.

A form of your own is reached as `package.module:Name`; `raybrew.store.forms.base.Form` says what it has to offer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["DENSE", "FORMS", "FormEntry"]

#: The form of every signal for which `store.forms` names no other one.
DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class FormEntry:
    """One form: where its codec is, and what it keeps."""

    name: str
    target: str  #: module:Class
    summary: str


FORMS: Mapping[str, FormEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            FormEntry(DENSE, "raybrew.store.forms.dense:Dense", "every number of the output, in store.element_type"),
        )
    }
)
