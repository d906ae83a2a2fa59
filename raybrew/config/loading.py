"""Reading experiment files: YAML, `extends`, overrides, and all problems at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raybrew.config.base import Section
from raybrew.config.data import SOURCES, DataConfig
from raybrew.config.experiment import Experiment
from raybrew.config.interpolation import resolved
from raybrew.config.kinds import MULTI, is_multi
from raybrew.config.multi_task import MultiTaskConfig
from raybrew.config.overrides import apply_overrides
from raybrew.config.problems import near_match, problems_of, raise_problems, shown
from raybrew.config.reading import merged, read_yaml, shown_path
from raybrew.config.rows import Rows
from raybrew.config.rules import check_sections
from raybrew.config.space import check_sweep
from raybrew.config.sweep import SweepConfig
from raybrew.config.sweep_judge import check_judges
from raybrew.config.task import TASK_CONFIGS, task_config_of
from raybrew.config.values import sound_values
from raybrew.config.views import with_data
from raybrew.errors import ConfigError, Problem
from raybrew.files import make_storage
from raybrew.secrets import HIDDEN

__all__ = ["build_experiment", "load_experiment"]

#: Files that extend one another.
_MAX_CHAIN = 20


def load_experiment(path: str | Path, overrides: Sequence[str] = (), check_files: bool = True) -> Experiment:
    """The experiment in the YAML file `path`, with `section.key=value` overrides applied.

    `extends: other.yaml` (or a list) in a file is read first, relative to that file; later values win. Paths of data
    and models are relative to the current folder.

    Args:
        path: The experiment file.
        overrides: As on the command line: `train.seed=1`, `student=T6`.
        check_files: Whether files and folders that the experiment names must exist.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong. Lists all problems at once.

    Example:
        >>> raybrew.load_experiment("experiment.yaml", ["train.epochs=2", "student=T6"]).student
        StudentConfig(shape='T6')
    """
    values = apply_overrides(_with_bases(Path(path)), overrides)
    return build_experiment(resolved(values, str(path)), source=str(path), check_files=check_files)


Experiment.from_yaml = load_experiment


def build_experiment(values: Any, source: str = "experiment", check_files: bool = True) -> Experiment:
    """An experiment from the values that a file would hold; `raybrew.Experiment(...)` from keyword arguments.

    Args:
        values: Section by name, as the class of the section, a mapping, or in its short form.
        source: What errors call the experiment.
        check_files: Whether files and folders that the experiment names must exist.

    Raises:
        ConfigError: A key or value is wrong. Lists all problems at once, each with its dotted key.
        DataError: Rows from Python that make no table.
        EnvironmentProblem: Rows cannot be written to `data.cache`.

    Example:
        >>> raybrew.build_experiment({"name": "x", "teacher": "owner/model", "student": "T3"}).teacher
        Teacher(model='owner/model')
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: an experiment is a mapping of sections, given {type(values).__name__}")
    values, unsound = sound_values(_with_rows(Experiment.long_form(values)))
    parts, problems = _sections(values)
    sections = parts | _defaults(values)
    if _section_class("task", values.get("task"), None) is MultiTaskConfig and "task" not in parts:
        # Data and teachers are in it, and what it says is not known.
        sections = {name: section for name, section in sections.items() if name not in ("data", "teacher")}
    problems += check_sections(sections, check_files)
    # Of a value that no key takes, only that is said.
    problems = [problem for problem in problems if not any(_repeats(problem, said) for said in unsound)]
    raise_problems(source, [*unsound, *problems])
    experiment = _with_kept_rows(Experiment.model_validate(parts))
    if experiment.sweep is not None:
        # The space last: each of its corners is a whole experiment.
        corner = functools.partial(build_experiment, check_files=check_files)
        raise_problems(source, check_sweep(experiment, experiment.sweep, corner))
        raise_problems(source, check_judges(experiment))
    return experiment


def _sections(values: Mapping[Any, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The sections that are valid by themselves, and what is wrong with the others."""
    problems: list[Problem] = []
    parts: dict[str, Any] = {}
    for key, value in values.items():
        field = Experiment.model_fields.get(str(key))
        if field is None:
            allowed = list(Experiment.model_fields)
            near = near_match(str(key), allowed)
            words = f"unknown section; allowed: {', '.join(allowed)}{near}"
            problems.append(Problem(str(key), words, "unknown"))
            continue
        if str(key) == "task" and (problem := _unfit_task(value)) is not None:
            problems.append(problem)
            continue
        section = _section_class(str(key), value, field.annotation)
        if section is not None:
            try:
                parts[str(key)] = section.model_validate({} if value is None else value)
            except ValidationError as error:
                problems += problems_of(error, str(key), section)
        else:
            parts[str(key)] = value
    try:
        Experiment.model_validate({"name": values.get("name")} if "name" in values else {})
    except ValidationError as error:
        problems += problems_of(error, "", Experiment)
    return parts, problems


def _from_values(**values: Any) -> Experiment:
    return build_experiment(values)


Experiment.from_values = _from_values  # type: ignore[method-assign]


def _with_rows(values: Any) -> Any:
    """`values` with rows of Python's, wherever rows may be named, as Rows."""
    if not isinstance(values, Mapping):
        return values
    found = dict(values)
    if isinstance(data := found.get("data"), Mapping):
        found["data"] = {key: Rows.of(value) if key in SOURCES else value for key, value in data.items()}
    task = found.get("task")
    if isinstance(task, Mapping) and isinstance(parts := task.get("tasks"), Mapping):
        found["task"] = {**task, "tasks": {name: _with_rows(part) for name, part in parts.items()}}
    return found


def _with_kept_rows(experiment: Experiment) -> Experiment:
    """`experiment` with the paths of their files in place of rows that were given in Python."""

    def kept(key: str, data: DataConfig) -> DataConfig:
        rows = {name: value for name in SOURCES if isinstance(value := getattr(data, name), Rows)}
        if rows and data.cache is None and experiment.data.cache is None:
            make_storage(Path(experiment.store.storage_path))
        folder = Path(data.cache) if data.cache else experiment.cache_folder
        written = {name: str(value.write(folder, f"{key}.{name}")) for name, value in rows.items()}
        return data.model_copy(update=written) if written else data

    return with_data(experiment, kept)


def _unfit_task(value: Any) -> Problem | None:
    """What is wrong with a task of which no config can tell: none at all, or of an unknown kind."""
    if value is not None and not isinstance(value, Mapping):
        return Problem("task", f"given {value!r}; allowed: a section of keys")
    try:
        if _section_class("task", value, None) is not None:
            return None
    except ConfigError as error:  # a task of the user's
        return Problem("task.kind", str(error).removeprefix("task.kind: "))
    kind, allowed = (value or {})["kind"], [*TASK_CONFIGS, MULTI]
    near = near_match(kind, allowed) if isinstance(kind, str) else ""
    words = f"given {kind!r}; allowed: {', '.join(allowed)}, or package.module:Name of a TaskSpec{near}"
    return Problem("task.kind", words, "unknown")


def _section_class(key: str, value: Any, annotation: Any) -> type[Section] | None:
    """The model of a section, which for `task` depends on its `kind`."""
    if key == "task":
        return MultiTaskConfig if is_multi(value) else task_config_of({} if value is None else value)
    if key == "sweep":
        return None if value is None else SweepConfig
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _repeats(problem: Problem, said: Problem) -> bool:
    """Whether `problem` comes of the mark in place of the value that `said` tells of."""
    if f"{said.key}.".startswith(f"{problem.key}."):
        return problem.key == said.key or HIDDEN in problem.message
    return problem.key.startswith(f"{said.key}.")


def _defaults(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        name: field.get_default()
        for name, field in Experiment.model_fields.items()
        if name not in values and not field.is_required()
    }


def _with_bases(path: Path) -> dict[str, Any]:
    """The values of an experiment file over those of the files that it extends."""
    return _Files().read(path, ())


class _Files:
    """Reads each file once, however often others extend it."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, Any]] = {}

    def read(self, path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
        absolute = path.absolute()
        if absolute in chain:
            circle = " -> ".join(part.name for part in (*chain, absolute))
            raise_problems(str(path), [Problem("extends", f"goes in a circle: {circle}")])
        if len(chain) > _MAX_CHAIN:
            raise_problems(str(path), [Problem("extends", f"a chain of more than {_MAX_CHAIN} files")])
        if absolute in self._read:
            return self._read[absolute]
        values = read_yaml(path, f" (extended by {shown_path(chain[-1])})" if chain else "")
        values = {} if values is None else values
        if not isinstance(values, dict):
            given = "a list" if isinstance(values, list) else "a single value"
            raise ConfigError(f"{shown_path(path)}: an experiment is a mapping of sections; the file holds {given}")
        bases = values.pop("extends", None)
        names = [bases] if isinstance(bases, str) else bases or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            allowed = "allowed: a file name or a list of them"
            raise_problems(str(path), [Problem("extends", f"given {shown(bases)}; {allowed}")])
        found: dict[str, Any] = {}
        for name in names:
            found = merged(found, self.read(path.parent / name, (*chain, absolute)))
        self._read[absolute] = merged(found, Experiment.long_form(values))
        return self._read[absolute]
