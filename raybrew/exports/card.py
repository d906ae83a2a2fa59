"""Model cards: what a student is, where it comes from, how good it is and how to use it.

All names, labels and commands are user text: quoted for YAML, escaped for Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raybrew.exports.formats import FORMATS

__all__ = ["format_rows", "model_card", "shown_name", "summary_of_task"]

#: Kind of task -> a row of it.
_ROW: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("classification", "multilabel", "regression"), '{"text": "A first text."}'),
        "tagging": '{"tokens": ["A", "first", "text"]}',
        "qa": '{"question": "Who wrote it?", "context": "It was written by Ann."}',
    }
)
#: Kind of task -> what the hub calls it.
_PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        "classification": "text-classification",
        "multilabel": "text-classification",
        "regression": "text-classification",
        "tagging": "token-classification",
        "qa": "question-answering",
        "masked_lm": "fill-mask",
    }
)
_CLASSIFY = """\
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/folder")
print(classify(["A first text.", "A second one."]{options}))"""
_TAG = """\
from transformers import pipeline

tag = pipeline("token-classification", model="path/to/this/folder", aggregation_strategy="first")
print(tag("Some text."))"""
_ANSWER = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

model = AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
question, context = "Who wrote it?", "It was written by Ann."
inputs = tokenizer(question, context, return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""
_ONNX = """\
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
session = onnxruntime.InferenceSession("path/to/this/folder/{file}")
inputs = tokenizer(["A first text.", "A second one."], padding=True, return_tensors="np")
print(session.run(None, {{name: inputs[name] for name in {inputs}}}))"""
_INT8 = """\
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder/{folder}")  # needs torchao"""
_AUTO_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "classification": "AutoModelForSequenceClassification",
        "multilabel": "AutoModelForSequenceClassification",
        "regression": "AutoModelForSequenceClassification",
        "tagging": "AutoModelForTokenClassification",
        "qa": "AutoModelForQuestionAnswering",
    }
)
#: Where transformers does not have the architecture.
_OWN_ARCHITECTURE = """\
# transformers does not have this architecture, raybrew does. Without raybrew, pass trust_remote_code=True below
# instead, which runs bigru.py of this folder.
import raybrew.models.bigru
"""
_FILL = """\
from transformers import pipeline

fill = pipeline("fill-mask", model="path/to/this/folder")
print(fill(f"Some {fill.tokenizer.mask_token}."))"""
#: Kind of task -> code that runs its models.
_USAGE: Mapping[str, str] = MappingProxyType(
    {
        "classification": _CLASSIFY.format(options=""),
        "multilabel": _CLASSIFY.format(options=", top_k=None"),
        "regression": _CLASSIFY.format(options=""),
        "tagging": _TAG,
        "qa": _ANSWER,
        "masked_lm": _FILL,
    }
)
_PAIRS = 'A pair of texts is one dictionary: `classify({"text": "one", "text_pair": "two"})`.'
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
#: What YAML does not take literally inside double quotes.
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: What has a meaning inside a line; text is never put at the start of one, where more would.
_MARKDOWN = re.compile(r"([\\`*_\[\]#!|~$:@^]|(?<=www)\.)", re.IGNORECASE)
#: Metrics that are counts, not qualities.
_COUNTS = ("rows",)


def model_card(summary: Mapping[str, Any]) -> str:
    """A Hugging Face model card in Markdown with YAML metadata.

    `summary` is a run's summary.json. Read if there: `name`, `run_id`, `verb`, `seed`, `student`, `teacher`, `best`,
    `steps`, `epochs`, `rows`, `latency_ms`, `distill`, and further `task` (kind), `labels`, `license`, `command`,
    `versions` (name -> version), `control` (`metrics`, `run_id` of the same student trained without a teacher),
    `config` (settings that are not the defaults), `repository` (on the hub), `export` (the content of
    `raybrew.json`). What is not there is left out.
    """
    sections = [
        _metadata(summary),
        f"# {_escape(summary.get('name') or 'student')}",
        _introduction(summary),
        _usage(summary),
        _figures(summary),
        _formats(summary.get("export")),
        _lineage(summary),
        _settings(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary_of_task(summary: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """`summary` of a run as the card of the model of one task wants it."""
    if task is None:
        return dict(summary)
    own = {**summary, "name": f"{summary.get('name')}: {task}"}
    for key in ("best", "last", "teacher"):
        section = summary.get(key)
        if section and section.get("metrics"):
            metrics = {
                name.removeprefix(f"{task}."): value
                for name, value in section["metrics"].items()
                if name.startswith(f"{task}.")
            }
            own[key] = {**section, "metrics": metrics}
    teacher = ((summary.get("teacher") or {}).get("members") or {}).get(task)
    if teacher is not None:
        own["teacher"] = teacher
    return own


def _metadata(summary: Mapping[str, Any]) -> str:
    teacher = summary.get("teacher") or {}
    lines = ["---", "library_name: transformers"]
    if summary.get("license"):
        lines.append(f"license: {_quote(summary['license'])}")
    pipeline = _PIPELINES.get(summary.get("task") or "classification")
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    if _is_hub_name(teacher.get("model")):
        lines.append(f"base_model: {_quote(teacher['model'])}")
    tags = ["raybrew", "knowledge-distillation"] if summary.get("verb", "distill") == "distill" else ["raybrew"]
    tags += [tag for tag in ("onnx",) if any(name.startswith(tag) for name in _formats_of(summary))]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _introduction(summary: Mapping[str, Any]) -> str:
    student, teacher = summary.get("student") or {}, summary.get("teacher") or {}
    verb = summary.get("verb", "distill")
    text = {"finetune": "A model fine-tuned", "distill": "A student distilled"}.get(verb, "A model exported")
    if teacher.get("model"):
        text += f" from {_escape(shown_name(teacher['model']))}"
    text += " with raybrew."
    facts = []
    if student.get("description"):
        facts.append(_escape(student["description"]))
    if student.get("parameters"):
        facts.append(f"{student['parameters']:,} parameters")
    if student.get("megabytes"):
        facts.append(f"{student['megabytes']:.1f} MB")
    lines = [text, *([f"Size: {'; '.join(facts)}."] if facts else [])]
    if summary.get("labels"):
        lines.append(f"Labels, in the order of the outputs: {', '.join(map(_escape, summary['labels']))}.")
    return "\n\n".join(lines)


def _usage(summary: Mapping[str, Any]) -> str:
    task, formats = summary.get("task") or "classification", _formats_of(summary)
    blocks = []
    if not formats or "hf" in formats:
        bigru = ((summary.get("student") or {}).get("architecture") or "").startswith("BiGRU")
        blocks.append(_fenced(f"{_OWN_ARCHITECTURE}\n{_USAGE[task]}" if bigru else _USAGE[task], "python"))
        if _PIPELINES[task] == "text-classification":
            blocks.append(_PAIRS)
    onnx = formats.get("onnx") or formats.get("onnx-int8")
    if onnx:
        blocks.append(_fenced(_ONNX.format(file=onnx["file"], inputs=tuple(onnx["inputs"])), "python"))
    int8 = next((name for name in ("int8", "int8-weights") if name in formats), None)
    if int8:
        blocks.append(_fenced(_INT8.format(auto_class=_AUTO_CLASSES[task], folder=int8), "python"))
    if formats and task in _ROW:
        first = next(iter(formats))
        code = (
            "import raybrew\n\n"
            f'student = raybrew.load_student("path/to/this/folder", "{first}")\n'
            f"print(student.predict([{_ROW[task]}]))"
        )
        blocks += ["With raybrew, for every format, long texts included:", _fenced(code, "python")]
    text = "\n\n".join(["## How to use", *blocks])
    return text.replace("path/to/this/folder", summary["repository"]) if summary.get("repository") else text


def _figures(summary: Mapping[str, Any]) -> str:
    """Student, teacher and control side by side; columns only for what is known."""
    columns = {"student": _metrics((summary.get("best") or summary.get("last") or {}).get("metrics"))}
    columns["teacher"] = _metrics((summary.get("teacher") or {}).get("metrics"))
    columns["same student without teacher"] = _metrics((summary.get("control") or {}).get("metrics"))
    columns = {name: values for name, values in columns.items() if values}
    parts = []
    if columns:
        names = list(dict.fromkeys(metric for values in columns.values() for metric in values))
        rows = [
            [_escape(name), *(f"{values[name]:.4f}" if name in values else "" for values in columns.values())]
            for name in names
        ]
        parts.append(_table(["metric", *columns], rows))
        evaluated = (summary.get("rows") or {}).get("eval")
        if evaluated:
            parts.append(f"Measured on {evaluated:,} evaluation rows, on which the best checkpoint was chosen too.")
    sizes = _sizes(summary)
    if sizes:
        parts.append(sizes)
    # An export has measured all its forms again, on one machine.
    latency = {} if summary.get("export") else dict(summary.get("latency_ms") or {})
    length = latency.pop("tokens", None)
    if latency:
        cells = [[_escape(name.replace("_", " ")), f"{value:.2f}"] for name, value in latency.items()]
        title = f"latency, {length} tokens" if length else "latency"
        parts.append(_table([title, "ms per example"], cells))
    return "\n\n".join(["## Figures", *parts]) if parts else ""


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
    table = _table([_escape(cell) for cell in header], [[_escape(cell) for cell in row] for row in rows])
    return "\n\n".join(["## Formats", table, " ".join(notes)])


def _formats_of(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    formats: Mapping[str, Any] = (summary.get("export") or {}).get("formats") or {}
    return formats


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
    lines = [f"- {name}: {_escape(value)}" for name, value in facts if value]
    versions = summary.get("versions") or {}
    if versions:
        shown = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"- made with: {_escape(shown)}")
    return "\n".join(["## Where it comes from", "", *lines]) if lines else ""


def _settings(summary: Mapping[str, Any]) -> str:
    rows = [(key, summary[key]) for key in ("seed", "steps", "epochs") if summary.get(key) is not None]
    rows += list((summary.get("distill") or {}).items())
    parts = []
    if rows:
        parts.append(_table(["setting", "value"], [[_escape(name), _escape(_plain(value))] for name, value in rows]))
    if summary.get("config"):
        import yaml

        config = yaml.safe_dump(_without_paths(summary["config"]), sort_keys=False, allow_unicode=True)
        parts += ["Settings that are not the defaults:", _fenced(config.rstrip(), "yaml")]
    if summary.get("command"):
        parts.append(_fenced(str(summary["command"]), "sh"))
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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quote(value: Any) -> str:
    """A YAML double-quoted scalar: JSON's, with what YAML would not print escaped too."""
    text = json.dumps(_clean(value), ensure_ascii=False)
    return _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(value: Any) -> str:
    """Inline Markdown that shows `value` as it is, on one line."""
    text = " ".join(_clean(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _fenced(code: str, language: str) -> str:
    """A code block that nothing inside can close."""
    code = _clean(code)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _clean(value: Any) -> str:
    return _LONE_SURROGATE.sub("\ufffd", str(value))
