"""Model cards: what a student is, where it comes from, how good it is and how to use it.

All names, labels and commands are user text: quoted for YAML, escaped for Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raybrew.catalog.tasks import TASKS
from raybrew.exports.formats import FORMATS
from raybrew.exports.markdown import escape, fenced, quote, table
from raybrew.exports.usage import formats_of, usage

__all__ = ["format_rows", "model_card", "shown_name", "summary_of_task"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
#: Metrics that are counts, not qualities.
_COUNTS = ("rows",)


def model_card(summary: Mapping[str, Any]) -> str:
    """A Hugging Face model card in Markdown with YAML metadata.

    `summary` is a run's summary.json. Read if there: `name`, `run_id`, `verb`, `seed`, `student`, `teacher`, `best`,
    `steps`, `epochs`, `rows`, `latency`, `distill`, and further `task` (kind), `labels`, `license`, `command`,
    `versions` (name -> version), `control` (`metrics`, `run_id` of the same student trained without a teacher),
    `test` (of the run, its teacher and its control: `metrics` on rows that chose nothing), `chosen` (`rows`,
    `checkpoints` and, of a sweep, `configurations`), `compared` (sentences about control and teacher),
    `config` (settings that are not the defaults), `repository` (on the hub), `export` (the content of
    `raybrew.json`). What is not there is left out.
    """
    sections = [
        _metadata(summary),
        f"# {escape(summary.get('name') or 'student')}",
        _introduction(summary),
        usage(summary),
        _figures(summary),
        _formats(summary.get("export")),
        _lineage(summary),
        _settings(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary_of_task(summary: Mapping[str, Any], task: str) -> dict[str, Any]:
    """`summary` of a run as the card of the model of one task wants it; `task` is empty for an only one."""
    if not task:
        return dict(summary)
    own = {**summary, "name": f"{summary.get('name')}: {task}"}
    for key in ("best", "last", "teacher", "test"):
        own[key] = _metrics_of_task(summary.get(key), task)
    teacher = ((summary.get("teacher") or {}).get("members") or {}).get(task)
    tested = _metrics_of_task((summary.get("teacher") or {}).get("test"), task)
    if teacher is not None:
        own["teacher"] = {**teacher, "test": tested} if tested else teacher
    elif tested:
        own["teacher"] = {**own["teacher"], "test": tested}
    return {name: value for name, value in own.items() if name in summary or value is not None}


def _metrics_of_task(section: Mapping[str, Any] | None, task: str) -> Mapping[str, Any] | None:
    if not section or not section.get("metrics"):
        return section
    own = {name: value for name, value in section["metrics"].items() if name.startswith(f"{task}.")}
    return {**section, "metrics": {name.removeprefix(f"{task}."): value for name, value in own.items()}}


def _metadata(summary: Mapping[str, Any]) -> str:
    teacher = summary.get("teacher") or {}
    lines = ["---", "library_name: transformers"]
    if summary.get("license"):
        lines.append(f"license: {quote(summary['license'])}")
    spec = TASKS.get(summary.get("task") or "classification")
    pipeline = spec.pipeline if spec is not None else None
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    if _is_hub_name(teacher.get("model")):
        lines.append(f"base_model: {quote(teacher['model'])}")
    tags = ["raybrew", "knowledge-distillation"] if summary.get("verb", "distill") == "distill" else ["raybrew"]
    tags += [tag for tag in ("onnx",) if any(name.startswith(tag) for name in formats_of(summary))]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _introduction(summary: Mapping[str, Any]) -> str:
    student, teacher = summary.get("student") or {}, summary.get("teacher") or {}
    verb = summary.get("verb", "distill")
    text = {"finetune": "A model fine-tuned", "distill": "A student distilled"}.get(verb, "A model exported")
    if teacher.get("model"):
        text += f" from {escape(shown_name(teacher['model']))}"
    text += " with raybrew."
    facts = []
    if student.get("description"):
        facts.append(escape(student["description"]))
    if student.get("parameters"):
        facts.append(f"{student['parameters']:,} parameters")
    if student.get("megabytes"):
        facts.append(f"{student['megabytes']:.1f} MB")
    lines = [text, *([f"Size: {'; '.join(facts)}."] if facts else [])]
    if summary.get("labels"):
        lines.append(f"Labels, in the order of the outputs: {', '.join(map(escape, summary['labels']))}.")
    return "\n\n".join(lines)


def _figures(summary: Mapping[str, Any]) -> str:
    """Student, teacher and control side by side, first on the rows that chose nothing."""
    teacher, control, test = (summary.get(key) or {} for key in ("teacher", "control", "test"))
    parts = _side_by_side(
        "metric, data.test",
        test.get("metrics"),
        (teacher.get("test") or {}).get("metrics"),
        (control.get("test") or {}).get("metrics"),
    )
    if parts:
        counted = f"{test['rows']:,} rows" if test.get("rows") else "rows"
        parts.append(f"Measured on {counted} of data.test, held out, not used for choosing.")
    best = summary.get("best") or summary.get("last") or {}
    on_eval = _side_by_side(
        "metric, data.eval" if parts else "metric", best.get("metrics"), teacher.get("metrics"), control.get("metrics")
    )
    chosen = _chosen(summary)
    parts += [*on_eval, *([chosen] if on_eval and chosen else [])]
    parts += [escape(f"{text[0].upper()}{text[1:]}.") for text in summary.get("compared") or () if text]
    sizes = _sizes(summary)
    if sizes:
        parts.append(sizes)
    # An export times its own forms; trials of a sweep disturb each other's times.
    latency = summary.get("latency") or {}
    if latency.get("alone") and not summary.get("export"):
        parts.append(_latency(latency))
    return "\n\n".join(["## Figures", *parts]) if parts else ""


def _latency(latency: Mapping[str, Any]) -> str:
    """Milliseconds of the student, beside those of its teacher where both were timed in turn."""
    columns = {"student": latency["student"], **({"teacher": latency["teacher"]} if latency.get("teacher") else {})}
    batches = [name for name in latency["student"] if all(name in times for times in columns.values())]
    rows = [[escape(name.replace("_", " ")), *(f"{times[name]:.2f}" for times in columns.values())] for name in batches]
    threads = latency["threads"]
    conditions = f"{latency['tokens']} tokens, {latency['precision']}, {threads} CPU thread{'s' if threads > 1 else ''}"
    note = f"Milliseconds per example on {escape(latency['device'])}: {conditions}."
    return table(["latency", *columns], rows) + "\n\n" + note


def _side_by_side(title: str, student: Any, teacher: Any, control: Any) -> list[str]:
    """A table with a column for each of the three that is known; no table if none is."""
    named = {"student": student, "teacher": teacher, "same student without teacher": control}
    columns = {name: _metrics(values) for name, values in named.items() if _metrics(values)}
    names = list(dict.fromkeys(metric for values in columns.values() for metric in values))
    rows = [
        [escape(name), *(f"{values[name]:.4f}" if name in values else "" for values in columns.values())]
        for name in names
    ]
    return [table([title, *columns], rows)] if columns else []


def _chosen(summary: Mapping[str, Any]) -> str:
    """What the evaluation rows chose: values on them are those of the luckiest as well as of the best."""
    chosen = summary.get("chosen") or {}
    rows = chosen.get("rows") or (summary.get("rows") or {}).get("eval")
    if not rows:
        return ""
    counts = [(chosen.get(f"{noun}s") or 0, noun) for noun in ("configuration", "checkpoint")]
    best = " and ".join(f"best of {count:,} {noun}s" for count, noun in counts if count > 1)
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


def _formats(facts: Mapping[str, Any] | None) -> str:
    if not facts:
        return ""
    header, *rows = format_rows(facts)
    timed = next(iter(facts["formats"].values()))["latency_ms"]
    threads = timed["threads"]
    notes = [
        f"Milliseconds are per row of {timed['tokens']} tokens, on {threads} CPU thread{'s' if threads > 1 else ''} of "
        "the machine that exported, the formats in turn."
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


def _sizes(summary: Mapping[str, Any]) -> str:
    student, teacher = summary.get("student") or {}, summary.get("teacher") or {}
    ours, theirs = student.get("parameters"), teacher.get("parameters")
    if not ours or not theirs:
        return ""
    return f"The student has {100 * ours / theirs:.1f} % of the teacher's {theirs:,} parameters."


def _lineage(summary: Mapping[str, Any]) -> str:
    teacher, control, rows = (summary.get(key) or {} for key in ("teacher", "control", "rows"))
    facts = [
        ("teacher", shown_name(teacher.get("model"))),
        ("teacher store", teacher.get("fingerprint")),
        ("run", summary.get("run_id")),
        ("control run", control.get("run_id")),
        ("training rows", _number(rows.get("train"))),
        ("unlabelled rows", _number(rows.get("unlabeled"))),
    ]
    lines = [f"- {name}: {escape(value)}" for name, value in facts if value]
    versions = summary.get("versions") or {}
    if versions:
        shown = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"- made with: {escape(shown)}")
    return "\n".join(["## Where it comes from", "", *lines]) if lines else ""


def _settings(summary: Mapping[str, Any]) -> str:
    rows = [(key, summary[key]) for key in ("seed", "steps", "epochs") if summary.get(key) is not None]
    rows += list((summary.get("distill") or {}).items())
    parts = []
    if rows:
        parts.append(table(["setting", "value"], [[escape(name), escape(_plain(value))] for name, value in rows]))
    if summary.get("config"):
        import yaml

        config = yaml.safe_dump(_without_paths(summary["config"]), sort_keys=False, allow_unicode=True)
        parts += ["Settings that are not the defaults:", fenced(config.rstrip(), "yaml")]
    if summary.get("command"):
        parts.append(fenced(str(summary["command"]), "sh"))
    return "\n\n".join(["## How it was trained", *parts]) if parts else ""


def _metrics(values: Mapping[str, Any] | None) -> dict[str, float]:
    found = {name.removeprefix("eval/"): value for name, value in (values or {}).items()}
    return {name: float(v) for name, v in found.items() if isinstance(v, int | float) and name not in _COUNTS}


def _is_hub_name(model: Any) -> bool:
    return isinstance(model, str) and _HUB_NAME.fullmatch(model) is not None and not Path(model).exists()


def shown_name(model: Any) -> str:
    """A hub name, or the end of a folder's path: the rest tells about the author's machine, not about the model."""
    if not isinstance(model, str) or not model:
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


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value else ""
