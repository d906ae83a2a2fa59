"""Reading experiment files: YAML, `extends`, overrides, and all problems at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from raybrew.config.base import Section
from raybrew.config.checks import check_sections
from raybrew.config.experiment import Experiment
from raybrew.config.multi_task import MultiTaskConfig
from raybrew.config.problems import Problem, near_match, problems_of, raise_problems
from raybrew.config.space import check_sweep
from raybrew.config.sweep import SweepConfig
from raybrew.config.sweep_judge import check_judges
from raybrew.config.task import TASK_CONFIGS, task_config_of
from raybrew.errors import ConfigError, first_line

__all__ = ["build_experiment", "dump_experiment", "load_experiment"]


def load_experiment(path: str | Path, overrides: Sequence[str] = (), check_files: bool = True) -> Experiment:
    """The experiment in the YAML file `path`, with `section.key=value` overrides applied.

    `extends: other.yaml` (or a list) in a file is read first, relative to that file; later values win. Paths of data
    and models are relative to the current folder. ConfigError lists every problem that was found.
    """
    merged = OmegaConf.merge(_read(Path(path), ()), _overrides(overrides))
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    return build_experiment(values, source=str(path), check_files=check_files)


def build_experiment(values: Any, source: str = "experiment", check_files: bool = True) -> Experiment:
    """An experiment from plain values; ConfigError lists every problem, each with its dotted key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: an experiment is a mapping of sections, given {type(values).__name__}")
    problems: list[Problem] = []
    parts: dict[str, Any] = {}
    for key, value in values.items():
        field = Experiment.model_fields.get(str(key))
        if field is None:
            allowed = list(Experiment.model_fields)
            problems.append(
                Problem(str(key), f"unknown section; allowed: {', '.join(allowed)}{near_match(str(key), allowed)}")
            )
            continue
        if str(key) == "task":
            problem = _unfit_task(value)
            if problem is not None:
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
    sections = parts | _defaults(values)
    if _section_class("task", values.get("task"), None) is MultiTaskConfig and "task" not in parts:
        # Data and teachers are in it, and what it says is not known.
        sections = {name: section for name, section in sections.items() if name not in ("data", "teacher")}
    problems += check_sections(sections, check_files)
    raise_problems(source, problems)
    experiment = Experiment.model_validate(parts)
    if experiment.sweep is not None:
        # The space last: each of its corners is a whole experiment.
        corner = functools.partial(build_experiment, check_files=check_files)
        raise_problems(source, check_sweep(experiment, experiment.sweep, corner))
        raise_problems(source, check_judges(experiment))
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """The resolved experiment as YAML; `load_experiment` reads it back to an equal one."""
    # A default would be a value that is given, which methods of a sweep's space contradict.
    varies = experiment.sweep is not None and not {"distill", "distill.method"}.isdisjoint(experiment.sweep.space)
    values = experiment.written() if varies else experiment.plain()
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _unfit_task(value: Any) -> Problem | None:
    """What is wrong with a task of which no config can tell: none at all, or of an unknown kind."""
    if value is not None and not isinstance(value, Mapping):
        return Problem("task", f"given {value!r}; allowed: a section of keys")
    if _section_class("task", value, None) is not None:
        return None
    kind, allowed = (value or {})["kind"], [*TASK_CONFIGS, "multi"]
    near = near_match(kind, allowed) if isinstance(kind, str) else ""
    return Problem("task.kind", f"given {kind!r}; allowed: {', '.join(allowed)}{near}")


def _section_class(key: str, value: Any, annotation: Any) -> type[Section] | None:
    """The model of a section, which for `task` depends on its `kind`."""
    if key == "task":
        several = isinstance(value, Mapping) and value.get("kind") == "multi"
        return MultiTaskConfig if several else task_config_of({} if value is None else value)
    if key == "sweep":
        return None if value is None else SweepConfig
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _defaults(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        name: field.get_default()
        for name, field in Experiment.model_fields.items()
        if name not in values and not field.is_required()
    }


def _read(path: Path, chain: tuple[Path, ...]) -> DictConfig:
    absolute = path.absolute()
    if absolute in chain:
        raise ConfigError(f"{path}: `extends` goes in a circle: {' -> '.join(str(p.name) for p in (*chain, absolute))}")
    if not path.is_file():
        by = f" (extended by {chain[-1]})" if chain else ""
        raise ConfigError(f"{path}: no such experiment file{by}; looked at {absolute}")
    try:
        config = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{path}:{where} {getattr(error, 'problem', None) or first_line(error)}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from error
    if isinstance(config, ListConfig):
        raise ConfigError(f"{path}: an experiment is a mapping of sections, this file holds a list")
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: an experiment is a mapping of sections; the file holds none")
    bases = config.pop("extends", None) if "extends" in config else None
    names = [bases] if isinstance(bases, str) else list(bases or [])
    parts = [_read(path.parent / str(name), (*chain, absolute)) for name in names]
    result = OmegaConf.merge(*parts, config)
    if not isinstance(result, DictConfig):
        raise ConfigError(f"{path}: an experiment is a mapping of sections")
    return result


def _overrides(overrides: Sequence[str]) -> DictConfig:
    wrong = [text for text in overrides if "=" not in text or text.startswith(("=", "-"))]
    if wrong:
        raise ConfigError(
            "command line: an override reads section.key=value, given " + ", ".join(map(repr, wrong)), tuple(wrong)
        )
    result = OmegaConf.create({})
    for text in overrides:
        try:
            OmegaConf.update(result, *_split(text), force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"command line: {text!r}: {first_line(error)}", (text,)) from error
    return result


def _split(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    parsed = OmegaConf.from_dotlist([f"value={value}"])
    return key, OmegaConf.to_container(parsed)["value"] if value else None  # type: ignore[index,call-overload]
