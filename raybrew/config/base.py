"""The base of all configs: frozen, closed, strict; defaults stand on the field and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "MAX_COUNT",
    "MAX_CPUS",
    "MAX_SEED",
    "MAX_TEMPERATURE",
    "MAX_THREADS",
    "MAX_WEIGHT",
    "MIN_TEMPERATURE",
    "NOT_IDENTITY",
    "WHEN_SET",
    "Many",
    "Name",
    "Section",
    "identity_of",
]

Item = TypeVar("Item")

#: A tuple that a YAML list may fill (strict mode would ask for a Python tuple).
Many = Annotated[tuple[Item, ...], Field(strict=False)]

#: What a teacher or task may be called: it becomes part of keys, of names of losses, and of folders.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=50)]

#: Bounds of numbers. What lies beyond is a slip, and ends in libraries that do not check it: torch takes a number of
#: threads without looking, and dies.
MAX_COUNT = 10**9
MAX_CPUS = 10**5
MAX_THREADS = 1024
#: Of weights, rates and norms: what float32 holds. One that is far too large is a divergence, which training tells.
MAX_WEIGHT = 1e38
#: Every generator of random numbers takes it, and those after it that a sweep uses.
MAX_SEED = 2**31 - 1
#: float32 logits divided by it, and a loss multiplied by its square, stay finite.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e4

#: Mark of fields that change how a run is executed but not what it computes; they stay out of a run's identity.
NOT_IDENTITY: dict[str, Any] = {"identity": False}

#: Mark of fields that belong to a run's identity only where they are given.
WHEN_SET: dict[str, Any] = {"identity": "when_set"}


class Section(BaseModel):
    """One section of an experiment: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a secret in the wrong place
    )

    def is_identity(self, name: str) -> bool:
        """Whether the value of field `name` decides what a run computes, where its mark alone does not tell."""
        return True


def identity_of(section: Section) -> dict[str, Any]:
    """The plain values of `section` that decide what a run computes.

    Without fields marked NOT_IDENTITY, or WHEN_SET and not given.
    """
    result: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        value = getattr(section, name)
        if not section.is_identity(name):
            continue
        if isinstance(extra, dict) and extra.get("identity") == "when_set" and value == field.default:
            continue
        result[name] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return identity_of(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
