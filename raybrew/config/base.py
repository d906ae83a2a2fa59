"""The base of all configs: frozen, closed, strict; defaults stand on the field and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from raybrew.config.problems import Problem, problems_of, raise_problems, shown

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = [
    "MAX_COUNT",
    "MAX_CPUS",
    "MAX_SEED",
    "MAX_TEMPERATURE",
    "MAX_THREADS",
    "MAX_WEIGHT",
    "MAX_WORKERS",
    "MIN_TEMPERATURE",
    "NOT_IDENTITY",
    "WHEN_SET",
    "Many",
    "Name",
    "Section",
    "given_values",
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
#: Training workers and teacher actors.
MAX_WORKERS = 4096
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


#: Sections whose short names mean results in `raybrew`: a student that predicts, a store, a finished sweep.
_TAKEN = ("Student", "Store", "Sweep")


class _Called(ModelMetaclass):
    """Makes calling a section in Python what reading it from a file is."""

    if not TYPE_CHECKING:

        def __call__(self, *short: Any, **values: Any) -> Any:
            return self.from_values(*short, **values)


class Section(BaseModel, metaclass=_Called):
    """One section of an experiment: unknown keys and wrong types are errors, values never change.

    Calling a section raises ConfigError, which lists every key that is wrong, as it stands in a file.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a secret in the wrong place
    )

    short: ClassVar[str] = ""
    """The key whose value may stand for the whole section; empty where nothing may."""

    @classmethod
    def from_values(cls, *short: Any, **values: Any) -> Any:
        """The section with these values, or with its short form and further values."""
        key = cls.__name__.removesuffix("Config").lower()
        allowed = f"keys ({', '.join(cls.model_fields)})"
        try:
            given = cls.long_form(short[0]) if len(short) == 1 else {}
        except ValueError as error:
            given, allowed = None, str(error)
        if len(short) > 1 or not isinstance(given, Mapping):
            problems = [Problem(key, f"given {', '.join(map(shown, short))}; allowed: {allowed}")]
        else:
            try:
                return cls.model_validate({**given, **values})
            except ValidationError as error:
                problems = problems_of(error, key, cls)
        raise_problems(f"raybrew.{cls.__repr_name__(cls)}", problems)  # type: ignore[arg-type]

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """`value` with its short form and those of sections inside it written out as mappings.

        ValueError says which short forms there are, if it is none.
        """
        if isinstance(value, str) and cls.short:
            return {cls.short: value}
        if not isinstance(value, Mapping):
            return value
        return {key: _long_field(cls, key, item) for key, item in value.items()}

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        return cls.long_form(value)

    def is_identity(self, name: str) -> bool:
        """Whether the value of field `name` decides what a run computes, where its mark alone does not tell."""
        return True

    def identity_value(self, name: str) -> Any:
        """The value of field `name` as a run's identity has it."""
        return getattr(self, name)

    def __repr_name__(self) -> str:
        cls = self if isinstance(self, type) else type(self)
        name = cls.__name__.removesuffix("Config")
        return cls.__name__ if name in _TAKEN else name

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Only what is not a default."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True):
                yield name, value


def _long_field(section: type[Section], key: Any, value: Any) -> Any:
    field = section.model_fields.get(key)
    if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Section):
        return value
    with contextlib.suppress(ValueError):  # told by the field itself, at its key
        return field.annotation.long_form(value)
    return value


def given_values(section: Section) -> dict[str, Any]:
    """What a section was given, and of its defaults the kind alone, which says what section it is."""
    names = section.model_fields_set | {"kind"}
    return {name: getattr(section, name) for name in type(section).model_fields if name in names}


def identity_of(section: Section) -> dict[str, Any]:
    """The plain values of `section` that decide what a run computes.

    Without fields marked NOT_IDENTITY, or WHEN_SET and not given.
    """
    result: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        value = section.identity_value(name)
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
