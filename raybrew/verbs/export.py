"""export: a student as others use it, with what it is, where it comes from and how good each form of it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import Columns, Experiment
from raybrew.config.base import Section
from raybrew.config.kinds import task_spec
from raybrew.config.problems import near_match
from raybrew.errors import ConfigError, DataError, RunError
from raybrew.exports.card import format_rows, model_card, shown_name
from raybrew.exports.folder import EXPORT_MARK, check_target, held_export, scratch_beside, whole_folder
from raybrew.exports.formats import FORMATS
from raybrew.exports.hub import check_push, push_folder
from raybrew.exports.onnx_file import OPSET, model_inputs, require
from raybrew.exports.writer import FormatWriter
from raybrew.files import write_json
from raybrew.models.cache import ModelCache
from raybrew.pipeline.benchmark import Evaluated, measure_forms
from raybrew.pipeline.evaluation import evaluation_rows, labels_of_model
from raybrew.pipeline.export_source import ExportSource, find_source
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.rows import say_cautions
from raybrew.reports.notebook import html_table
from raybrew.store.fingerprint import hash_weights
from raybrew.tasks.base import Labels, build_task
from raybrew.version import __version__

__all__ = ["Export", "export"]

#: Tokens of latency, where no rows tell of a typical length.
_USUAL_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported student: its folder, and the facts in its `raybrew.json`."""

    path: Path
    facts: dict[str, Any]
    url: str | None = None
    """Its page on the hub, if it was pushed."""

    @property
    def formats(self) -> dict[str, dict[str, Any]]:
        """Format -> `file`, `megabytes`, `latency_ms`; `metrics` and `changed_rows` where quality was measured."""
        formats: dict[str, dict[str, Any]] = self.facts["formats"]
        return formats

    def _repr_html_(self) -> str:
        """The formats as a table, for notebooks."""
        header, *rows = format_rows(self.facts)
        return html_table(f"export of {self.facts['name']}", rows, header, [str(self.path), *filter(None, [self.url])])


@dataclasses.dataclass(frozen=True)
class _Wish:
    """What an export shall hold."""

    formats: tuple[str, ...]
    evaluate: bool
    opset: int
    push: str | None

    def hash_for(self, student: _Student) -> str:
        """Of all that decides an export: two that agree differ in the times that were measured at most."""
        found = student.source
        parts = {
            "weights": hash_weights(student.model),
            "task": found.task.model_dump(mode="json"),
            "data": found.view.data.model_dump(mode="json") if found.view is not None else None,
            "run": found.run.run_id if found.run is not None else None,
            "raybrew": __version__,
            **dataclasses.asdict(self),
        }
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def export(
    source: str | Path,
    to: str | Path,
    *,
    formats: Sequence[str] = ("hf",),
    task: str | None = None,
    experiment: Experiment | None = None,
    evaluate: bool = True,
    opset: int = OPSET,
    force: bool = False,
    push: str | None = None,
    public: bool = False,
    reporter: Reporter | None = None,
) -> Export:
    """Export the student of a run, the best of a sweep, or a model folder, to the folder `to`.

    `formats` (see FORMATS): `hf` is a Hugging Face folder; `onnx` is checked against torch on rows of several sizes and
    lengths; `onnx-int8`, `int8` and `int8-weights` are quantized. The quality of all but `hf` alone is measured on
    `data.eval`, beside that of the float model, unless `evaluate` is false; for int8 there must be such rows. Size and
    latency on this machine's CPU are measured of all, in turn; model card and `raybrew.json` tell them. `experiment`
    names other evaluation rows than the run's own, and is needed for those of a plain folder; `task` chooses one of
    several.

    The folder appears whole or not at all; `force` replaces an export that is there. Without it one that was made
    alike of the same model stays, and one that differs is a RunError. `push` names a repository of the Hugging Face
    hub, `owner/name`, to which it is then uploaded in one commit; a new one is private unless `public`.
    ConfigError, EnvironmentProblem (a package is missing) and RunError before any work; ModelError where a format
    cannot be made or differs from torch.
    """
    reporter = reporter or QuietReporter()
    target = Path(to)
    chosen = _checked(formats)
    if public and push is None:
        raise ConfigError("--public: applies to --push owner/name only, which is not given")
    check_target(target, force=True)
    if push is not None:
        check_push(push)
    found = find_source(Path(source), task, experiment)
    # Students of tasks without predictions are starting points for others: of no use to a service.
    if not _predicts(found) and chosen != ["hf"]:
        raise ConfigError(f"--format: given {', '.join(chosen)}; a masked language model is exported as hf only")
    student = _loaded(found)
    wish = _Wish(tuple(chosen), evaluate, opset, push)
    held = held_export(target)
    if held is None or force:
        facts = _make(student, wish, target, force, reporter)
        reporter.say(f"exported to {target}: {', '.join(chosen)}")
    elif held.get("request") == wish.hash_for(student):
        facts = held
        reporter.say(f"{target} holds this export already; --force makes it anew")
    else:
        raise RunError(f"{target} holds another export; --force replaces it")
    if push is None:
        return Export(target, facts)
    url = push_folder(target, push, public=public)
    reporter.say(f"pushed to {url}")
    return Export(target, facts, url)


class _Student(NamedTuple):
    """The student in memory, and where it is from."""

    source: ExportSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: Labels


def _predicts(found: ExportSource) -> bool:
    return bool(task_spec(found.task.kind).row)


def _loaded(found: ExportSource) -> _Student:
    models, labels, kind = ModelCache(), Labels(()), found.task.kind
    if _predicts(found):
        labels = labels_of_model(found.source, build_task(found.task), models)
    return _Student(found, models.model(found.source, kind), models.own_tokenizer(found.source), labels)


def _make(student: _Student, wish: _Wish, target: Path, force: bool, reporter: Reporter) -> dict[str, Any]:
    """Write the folder; returns the facts in its `raybrew.json`."""
    found, model, tokenizer, labels = student
    with whole_folder(target, force) as new, scratch_beside(target) as scratch:
        rows = None
        if wish.evaluate and wish.formats != ("hf",):
            rows = _evaluation_rows(found, scratch, any(FORMATS[name].is_int8 for name in wish.formats), reporter)
        made = FormatWriter(found.task.kind, model, tokenizer, new, scratch, wish.opset, reporter.say)
        described = {name: made.make(name) for name in wish.formats}
        floats, *others = measure_forms(
            {"float32": model, **made.networks}, model.config, _tokens(found, rows), found, rows, labels, reporter
        ).values()
        for name, measured in zip(made.networks, others, strict=True):
            described[name] |= measured
        if "hf" in described:
            described["hf"] |= floats
        model.config.save_pretrained(new)
        tokenizer.save_pretrained(new)
        facts = {
            "request": wish.hash_for(student),
            **_facts(student, rows, described, floats),
        }
        card = dataclasses.replace(
            found.facts(), labels=labels.names, config=_config_of(found), export=facts, repository=wish.push
        )
        (new / "README.md").write_text(model_card(card), encoding="utf-8")
        write_json(new / EXPORT_MARK, facts)
    return facts


def _checked(formats: Sequence[str]) -> list[str]:
    """Each format once, in the order of FORMATS; ConfigError for unknown ones, EnvironmentProblem if packages lack."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        given = ", ".join(map(repr, unknown)) or "none"
        near = near_match(unknown[0], FORMATS) if unknown else ""
        raise ConfigError(f"--format: given {given}; allowed: {', '.join(FORMATS)}{near}")
    chosen = [name for name in FORMATS if name in formats]
    for name in chosen:
        if FORMATS[name].extra is not None:
            require(FORMATS[name].packages, str(FORMATS[name].extra))
    return chosen


def _evaluation_rows(found: ExportSource, scratch: Path, needed: bool, reporter: Reporter) -> Evaluated | None:
    """The rows of `data.eval`. If there are none: where they are `needed` ConfigError or DataError says how to do
    without, otherwise a line says that quality is not measured, and None is returned."""
    hint = "name an experiment file with --experiment, or leave quality unmeasured with --no-evaluate"
    if found.view is None or found.view.data.eval is None:
        if needed:
            raise ConfigError(
                f"--format: quality of int8 is measured on data.eval, and {found.folder} names none; {hint}"
            )
        reporter.say("quality is not measured: no data.eval is known; --experiment names rows")
        return None
    data = found.view.data.model_copy(update={"cache": str(scratch / "rows")})
    try:
        task = resolve(found.view).tasks[0].changed(data=data)
        rows, encoded = evaluation_rows(task, found.source)
    except DataError as error:
        if needed:
            raise DataError(f"{error}; quality of int8 is measured on these rows: {hint}") from error
        reporter.say(f"quality is not measured: {error}")
        return None
    assert rows.evaluation is not None  # data.eval is given
    say_cautions(rows.cautions, {"eval": rows.evaluation}, reporter.say)
    return Evaluated(task, rows.evaluation.table, encoded)


def _tokens(found: ExportSource, rows: Evaluated | None) -> int:
    """Length at which latency is measured: that of a typical evaluation row."""
    if rows is not None:
        return max(2, int(np.median(rows.encoded.lengths)))
    known = found.run.facts.tokens if found.run is not None else None
    return known or min(_USUAL_TOKENS, found.task.max_length)


def _facts(
    student: _Student,
    rows: Evaluated | None,
    described: Mapping[str, dict[str, Any]],
    floats: Mapping[str, Any],
) -> dict[str, Any]:
    """What `raybrew.json` says: all that a program needs to use the student, and what was measured."""
    found, model, tokenizer, labels = student
    run = found.facts().run
    teacher = run.teacher
    columns = found.view.data.columns if found.view is not None else Columns()
    return {
        "raybrew": __version__,
        "name": found.name,
        "task": found.task.model_dump(mode="json"),
        "columns": _named(columns).model_dump(mode="json"),
        "labels": list(labels.names),
        "inputs": list(model_inputs(model, tokenizer.model_input_names)),
        "run": run.run_id,
        "teacher": {"model": shown_name(teacher.model), "fingerprint": teacher.fingerprint} if teacher else None,
        "evaluated_rows": rows.encoded.num_source_rows if rows is not None else None,
        "float32": dict(floats),
        "formats": dict(described),
    }


def _named(columns: Columns) -> Columns:
    """Numbers of columns are those of CoNLL files; other rows have them under their usual names."""
    usual = {name: name for name in ("tokens", "tags") if isinstance(getattr(columns, name), int)}
    return columns.model_copy(update=usual)


def _config_of(found: ExportSource) -> dict[str, Any]:
    """The settings of student, distillation and training that are not the defaults."""
    if found.view is None:
        return {}
    view = found.view
    sections: tuple[tuple[str, Section], ...] = (
        ("task", found.task),
        ("student", view.student),
        ("distill", view.distill),
        ("train", view.train),
    )
    config = {
        name: _changed(section.model_dump(mode="json"), type(section)().model_dump(mode="json"))
        for name, section in sections
    }
    config["task"] = {"kind": found.task.kind, **config["task"]}
    return {name: changed for name, changed in config.items() if changed}


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            inner = _changed(value, default)
            if inner:
                # Other settings mean nothing without the kind that they belong to.
                found[key] = {"kind": value["kind"], **inner} if "kind" in value else inner
        elif value != default:
            found[key] = _without_nulls(value)
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
