"""Model cards: what a student is, where it comes from, how good it is and how to use it.

All names, labels and commands are user text: quoted for YAML, escaped for Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raybrew.config.kinds import known_task
from raybrew.exports.facts import CardFacts
from raybrew.exports.formats import FORMATS
from raybrew.exports.markdown import escape, fenced, quote, table
from raybrew.exports.usage import usage
from raybrew.records.summary import Latency, RunSummary

__all__ = ["format_rows", "model_card", "shown_name"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
#: Metrics that are counts, not qualities.
_COUNTS = ("rows",)


def model_card(facts: CardFacts) -> str:
    """A Hugging Face model card in Markdown with YAML metadata."""
    sections = [
        _metadata(facts),
        f"# {escape(facts.run.name or 'student')}",
        _introduction(facts),
        usage(facts),
        _figures(facts),
        _formats(facts.export),
        _lineage(facts),
        _settings(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(facts: CardFacts) -> str:
    lines = ["---", "library_name: transformers"]
    if facts.license:
        lines.append(f"license: {quote(facts.license)}")
    spec = known_task(facts.task)
    pipeline = spec.pipeline if spec is not None else None
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    model = facts.run.teacher.model if facts.run.teacher is not None else None
    if model is not None and _is_hub_name(model):
        lines.append(f"base_model: {quote(model)}")
    tags = ["raybrew", "knowledge-distillation"] if facts.run.verb == "distill" else ["raybrew"]
    tags += [tag for tag in ("onnx",) if any(name.startswith(tag) for name in facts.formats)]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _introduction(facts: CardFacts) -> str:
    student, teacher = facts.run.student, facts.run.teacher
    text = {"finetune": "A model fine-tuned", "distill": "A student distilled"}.get(
        str(facts.run.verb), "A model exported"
    )
    if teacher is not None and teacher.model:
        text += f" from {escape(shown_name(teacher.model))}"
    text += " with raybrew."
    sizes = []
    if student.description:
        sizes.append(escape(student.description))
    if student.parameters:
        sizes.append(f"{student.parameters:,} parameters")
    if student.megabytes:
        sizes.append(f"{student.megabytes:.1f} MB")
    lines = [text, *([f"Size: {'; '.join(sizes)}."] if sizes else [])]
    if facts.labels:
        lines.append(f"Labels, in the order of the outputs: {', '.join(map(escape, facts.labels))}.")
    return "\n\n".join(lines)


def _figures(facts: CardFacts) -> str:
    """Student, teacher and control side by side, first on the rows that chose nothing."""
    run, control = facts.run, facts.control
    teacher, test = run.teacher, run.test
    tested = teacher.test if teacher is not None else None
    parts = _side_by_side(
        "metric, data.test",
        test.metrics if test is not None else {},
        tested.metrics if tested is not None else {},
        control.test if control is not None else {},
    )
    if parts:
        counted = f"{test.rows:,} rows" if test is not None and test.rows else "rows"
        parts.append(f"Measured on {counted} of data.test, held out, not used for choosing.")
    on_eval = _side_by_side(
        "metric, data.eval" if parts else "metric",
        (run.best or run.last).metrics,
        teacher.metrics if teacher is not None else {},
        control.metrics if control is not None else {},
    )
    chosen = _chosen(run)
    parts += [*on_eval, *([chosen] if on_eval and chosen else [])]
    parts += [escape(f"{text[0].upper()}{text[1:]}.") for text in facts.compared if text]
    sizes = _sizes(run)
    if sizes:
        parts.append(sizes)
    # An export times its own forms; trials of a sweep disturb each other's times.
    if run.latency is not None and run.latency.alone and not facts.export:
        parts.append(_latency(run.latency))
    return "\n\n".join(["## Figures", *parts]) if parts else ""


def _latency(latency: Latency) -> str:
    """Milliseconds of the student, beside those of its teacher where both were timed in turn."""
    columns = {"student": latency.student, **({"teacher": latency.teacher} if latency.teacher else {})}
    batches = [name for name in latency.student if all(name in times for times in columns.values())]
    rows = [[escape(name.replace("_", " ")), *(f"{times[name]:.2f}" for times in columns.values())] for name in batches]
    conditions = f"{latency.tokens} tokens, {latency.precision}, {_threads(latency.threads)}"
    note = f"Milliseconds per example on {escape(latency.device)}: {conditions}."
    return table(["latency", *columns], rows) + "\n\n" + note


def _threads(count: int | None) -> str:
    return f"{count} CPU thread{'s' if count != 1 else ''}"


def _side_by_side(
    title: str, student: Mapping[str, float], teacher: Mapping[str, float], control: Mapping[str, float]
) -> list[str]:
    """A table with a column for each of the three that is known; no table if none is."""
    named = {"student": student, "teacher": teacher, "same student without teacher": control}
    columns = {name: _metrics(values) for name, values in named.items() if _metrics(values)}
    names = list(dict.fromkeys(metric for values in columns.values() for metric in values))
    rows = [
        [escape(name), *(f"{values[name]:.4f}" if name in values else "" for values in columns.values())]
        for name in names
    ]
    return [table([title, *columns], rows)] if columns else []


def _chosen(run: RunSummary) -> str:
    """What the evaluation rows chose: values on them are those of the luckiest as well as of the best."""
    rows = run.chosen.rows or run.rows.eval
    if not rows:
        return ""
    counts = [(run.chosen.configurations, "configuration"), (run.chosen.checkpoints, "checkpoint")]
    best = " and ".join(f"best of {count:,} {noun}s" for count, noun in counts if count and count > 1)
    where = f"{rows:,} rows of data.eval" if rows != 1 else "1 row of data.eval"
    if not best:
        return f"Measured on {where}, which could choose the checkpoint."
    return f"{best[0].upper()}{best[1:]}, chosen on {where}: values on these rows are too high rather than too low."


def format_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """The formats of `raybrew.json` as a table: a header, then a row for each, plain text."""
    formats: dict[str, Mapping[str, Any]] = dict(facts["formats"])
    if facts.get("float32") and "hf" not in formats:
        formats = {"float32": facts["float32"], **formats}
    metric = facts["task"].get("metric")
    timed = next(iter(formats.values()))["latency_ms"]
    batches = [name for name in timed if name.startswith("batch_")]
    header = ["format", "file", "MB"]
    # Column -> its cell of a format; left out where no format has it.
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "off torch": lambda known: f"{known['max_difference']:.1e}" if "max_difference" in known else "",
        str(metric): lambda known: f"{known['metrics'][metric]:.4f}" if metric in known.get("metrics", {}) else "",
        "changed": lambda known: str(known.get("changed_rows", "")),
    }
    columns = {title: cell for title, cell in columns.items() if any(map(cell, formats.values()))}
    rows = [[*header, *columns, *(f"ms, {name.replace('_', ' ')}" for name in batches)]]
    for name, known in formats.items():
        row = [FORMATS[name].title if name in FORMATS else "float32, not exported", known.get("file", "")]
        row.append(f"{known['megabytes']:.2f}" if "megabytes" in known else "")
        row += [cell(known) for cell in columns.values()]
        rows.append([*row, *(f"{known['latency_ms'][batch]:.3f}" for batch in batches)])
    return rows


def _formats(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    header, *rows = format_rows(facts)
    timed = next(iter(facts["formats"].values()))["latency_ms"]
    notes = [
        f"Milliseconds are per row of {timed['tokens']} tokens, on {_threads(timed['threads'])} of the machine that "
        "exported, the formats in turn."
    ]
    if facts.get("evaluated_rows"):
        notes.append(f"Quality is that of the files themselves on {facts['evaluated_rows']:,} evaluation rows.")
    if "changed" in header:
        notes.append("`changed` counts the rows that are answered otherwise than by the float32 model.")
    onnx = facts["formats"].get("onnx")
    if onnx:
        shapes = ", ".join(f"{rows} x {tokens}" for rows, tokens in onnx["checked"])
        notes.append(
            f"ONNX opset {onnx['opset']}, any number of rows and tokens; outputs compared with torch's on {shapes} "
            "tokens, padded rows among them."
        )
    if any(FORMATS[name].is_int8 and "metrics" not in known for name, known in facts["formats"].items()):
        notes.append("The quality of the quantized files was not measured.")
    formats = table([escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows])
    return "\n\n".join(["## Formats", formats, " ".join(notes)])


def _sizes(run: RunSummary) -> str:
    ours, theirs = run.student.parameters, run.teacher.parameters if run.teacher is not None else None
    if not ours or not theirs:
        return ""
    return f"The student has {100 * ours / theirs:.1f} % of the teacher's {theirs:,} parameters."


def _lineage(facts: CardFacts) -> str:
    run, teacher = facts.run, facts.run.teacher
    named = [
        ("teacher", shown_name(teacher.model) if teacher is not None else None),
        ("teacher store", teacher.fingerprint if teacher is not None else None),
        ("run", run.run_id),
        ("control run", facts.control.run_id if facts.control is not None else None),
        ("training rows", f"{run.rows.train:,}" if run.rows.train else None),
        ("unlabelled rows", f"{run.rows.unlabeled:,}" if run.rows.unlabeled else None),
    ]
    lines = [f"- {name}: {escape(value)}" for name, value in named if value]
    if facts.versions:
        shown = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
        lines.append(f"- made with: {escape(shown)}")
    return "\n".join(["## Where it comes from", "", *lines]) if lines else ""


def _settings(facts: CardFacts) -> str:
    run = facts.run
    counts: dict[str, Any] = {"seed": run.seed, "steps": run.steps, "epochs": run.epochs}
    rows = [(name, count) for name, count in counts.items() if count is not None]
    rows += list(run.distill.plain().items()) if run.distill is not None else []
    parts = []
    if rows:
        parts.append(table(["setting", "value"], [[escape(name), escape(_plain(value))] for name, value in rows]))
    if facts.config:
        import yaml

        config = yaml.safe_dump(_without_paths(facts.config), sort_keys=False, allow_unicode=True)
        parts += ["Settings that are not the defaults:", fenced(config.rstrip(), "yaml")]
    if facts.command:
        parts.append(fenced(facts.command, "sh"))
    return "\n\n".join(["## How it was trained", *parts]) if parts else ""


def _metrics(values: Mapping[str, float]) -> dict[str, float]:
    found = {name.removeprefix("eval/"): value for name, value in values.items()}
    return {name: value for name, value in found.items() if name not in _COUNTS}


def _is_hub_name(model: str) -> bool:
    return _HUB_NAME.fullmatch(model) is not None and not Path(model).exists()


def shown_name(model: str | None) -> str:
    """A hub name, or the end of a folder's path: the rest tells about the author's machine, not about the model."""
    if not model:
        return ""
    if _is_hub_name(model):
        return model
    path = Path(model)
    # Run folders all keep their model under the same name.
    return f"{path.parent.name}/{path.name}" if path.name == "student" else path.name or model


def _without_paths(value: Any) -> Any:
    """The same with the ends of absolute paths alone."""
    if isinstance(value, Mapping):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return shown_name(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
