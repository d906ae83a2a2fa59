"""The part of a model card that shows how its model is used, in each of its formats."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from raybrew.catalog.shapes import RECURRENT_SHAPES
from raybrew.config.kinds import task_spec
from raybrew.exports.facts import CardFacts
from raybrew.exports.markdown import fenced

__all__ = ["usage"]

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
#: What the hub calls a task -> code that runs its models.
_USAGE: Mapping[str, str] = MappingProxyType(
    {
        "text-classification": _CLASSIFY,
        "token-classification": _TAG,
        "question-answering": _ANSWER,
        "fill-mask": _FILL,
    }
)
_PAIRS = 'A pair of texts is one dictionary: `classify({"text": "one", "text_pair": "two"})`.'


def usage(facts: CardFacts) -> str:
    """A section of Markdown."""
    task, formats = task_spec(facts.task), facts.formats
    code = _USAGE[task.pipeline].replace("{options}", ", top_k=None" if task.outputs == "labels" else "")
    blocks = []
    if not formats or "hf" in formats:
        ours = (facts.run.student.architecture or "").startswith(tuple(RECURRENT_SHAPES))
        blocks.append(fenced(f"{_OWN_ARCHITECTURE}\n{code}" if ours else code, "python"))
        if task.pipeline == "text-classification":
            blocks.append(_PAIRS)
    onnx = formats.get("onnx") or formats.get("onnx-int8")
    if onnx:
        blocks.append(fenced(_ONNX.format(file=onnx["file"], inputs=tuple(onnx["inputs"])), "python"))
    int8 = next((name for name in ("int8", "int8-weights") if name in formats), None)
    if int8:
        blocks.append(fenced(_INT8.format(auto_class=task.auto_class, folder=int8), "python"))
    if formats and task.row:
        first = next(iter(formats))
        code = (
            "import raybrew\n\n"
            f'student = raybrew.load_student("path/to/this/folder", "{first}")\n'
            f"print(student.predict([{task.row}]))"
        )
        blocks += ["With raybrew, for every format, long texts included:", fenced(code, "python")]
    text = "\n\n".join(["## How to use", *blocks])
    return text.replace("path/to/this/folder", facts.repository) if facts.repository else text
