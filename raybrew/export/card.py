"""Model cards: what a student is, where it comes from, how good it is and how to use it.

All names, labels and commands are user text: quoted for YAML, escaped for Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["model_card"]

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
    `versions` (name -> version) and `control` (`metrics`, `run_id` of the same student trained without a teacher).
    What is not there is left out.
    """
    sections = [
        _metadata(summary),
        f"# {_escape(summary.get('name') or 'student')}",
        _introduction(summary),
        _usage(summary.get("task") or "classification", (summary.get("student") or {}).get("architecture") or ""),
        _figures(summary),
        _lineage(summary),
        _settings(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


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
    tags = ["raybrew"] if summary.get("verb") == "finetune" else ["raybrew", "knowledge-distillation"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _introduction(summary: Mapping[str, Any]) -> str:
    student, teacher = summary.get("student") or {}, summary.get("teacher") or {}
    text = "A model fine-tuned" if summary.get("verb") == "finetune" else "A student distilled"
    if teacher.get("model"):
        text += f" from {_escape(_shown_name(teacher['model']))}"
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


def _usage(task: str, architecture: str) -> str:
    code = _USAGE[task]
    if architecture.startswith("BiGRU"):
        code = f"{_OWN_ARCHITECTURE}\n{code}"
    parts = ["## How to use", _fenced(code, "python")]
    return "\n\n".join([*parts, _PAIRS] if _PIPELINES[task] == "text-classification" else parts)


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
    latency = dict(summary.get("latency_ms") or {})
    length = latency.pop("tokens", None)
    if latency:
        cells = [[_escape(name.replace("_", " ")), f"{value:.2f}"] for name, value in latency.items()]
        title = f"latency, {length} tokens" if length else "latency"
        parts.append(_table([title, "ms per example"], cells))
    return "\n\n".join(["## Figures", *parts]) if parts else ""


def _sizes(summary: Mapping[str, Any]) -> str:
    student, teacher = summary.get("student") or {}, summary.get("teacher") or {}
    ours, theirs = student.get("parameters"), teacher.get("parameters")
    if not ours or not theirs:
        return ""
    return f"The student has {100 * ours / theirs:.1f} % of the teacher's {theirs:,} parameters."


def _lineage(summary: Mapping[str, Any]) -> str:
    teacher, control, rows = (summary.get(key) or {} for key in ("teacher", "control", "rows"))
    facts = [
        ("teacher", _shown_name(teacher.get("model"))),
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
    if summary.get("command"):
        parts.append(_fenced(str(summary["command"]), "sh"))
    return "\n\n".join(["## How it was trained", *parts]) if parts else ""


def _metrics(values: Mapping[str, Any] | None) -> dict[str, float]:
    found = {name.removeprefix("eval/"): value for name, value in (values or {}).items()}
    return {name: float(v) for name, v in found.items() if isinstance(v, int | float) and name not in _COUNTS}


def _is_hub_name(model: Any) -> bool:
    return isinstance(model, str) and _HUB_NAME.fullmatch(model) is not None and not Path(model).exists()


def _shown_name(model: Any) -> str:
    """A hub name, or the end of a folder's path: the rest tells about the author's machine, not about the model."""
    if not isinstance(model, str) or not model:
        return ""
    if _is_hub_name(model):
        return model
    path = Path(model)
    # Run folders all keep their model under the same name.
    return f"{path.parent.name}/{path.name}" if path.name == "student" else path.name or model


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
