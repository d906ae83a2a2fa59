"""Models as ONNX files: written by torch's dynamo exporter, checked against torch, run by onnxruntime."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.errors import EnvironmentProblem, ModelError
from raybrew.models.forward import MODEL_INPUTS
from raybrew.models.loading import max_tokens

__all__ = ["OPSET", "OnnxCheck", "OnnxModel", "check_onnx", "model_inputs", "quantize_onnx", "require", "write_onnx"]

#: Of ONNX's operators; the newest that torch writes without being asked.
OPSET = 20
#: Shapes (rows, tokens) in which outputs are compared with torch's, cut to what the model takes.
_SHAPES = ((1, 2), (1, 7), (3, 16), (5, 33), (8, 128))
#: Longest input that is compared, for models without a limit of their own.
_LONGEST = 512
#: Largest difference that is no error, relative to the largest output: both compute in float32.
_TOLERANCE = 1e-4
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: Lengths and row counts of the example that the exporter traces; no two equal, so that none is taken for another.
_TRACED = (3, 9)


@dataclasses.dataclass(frozen=True)
class OnnxCheck:
    """How far an ONNX file's outputs are from torch's."""

    max_difference: float
    """Largest absolute difference of any output."""
    largest_output: float
    shapes: tuple[tuple[int, int], ...]
    """Rows and tokens of the batches that were compared; all but the first row of each are padded."""


def require(packages: Sequence[str], extra: str) -> None:
    """EnvironmentProblem if one of the packages of an extra is not installed."""
    for package in packages:
        try:
            with _quiet():
                importlib.import_module(package)
        except ImportError as error:
            raise EnvironmentProblem(
                f"{package} cannot be imported ({error}); install it with: pip install 'raybrew[{extra}]'"
            ) from error


def model_inputs(model: PreTrainedModel, names: Sequence[str]) -> tuple[str, ...]:
    """Which of a tokenizer's input `names` the ONNX file of `model` takes, in order."""
    import inspect

    taken = inspect.signature(model.forward).parameters
    return tuple(name for name in MODEL_INPUTS if name == "attention_mask" or (name in taken and name in names))


def write_onnx(model: PreTrainedModel, inputs: Sequence[str], path: Path, opset: int = OPSET) -> None:
    """`model` as an ONNX file for any number of rows and tokens (int64), whatever of them is padding.

    Inputs are those named in `inputs`; the output is `logits`, or `start_logits` and `end_logits` of question
    answering. Weights beyond ONNX's 2 GB go to a file beside it. ModelError says why a model cannot be exported.
    """
    require(("onnx", "onnxscript"), "onnx")
    example = _batch(model, inputs, *_TRACED)
    # One token is a special case to torch, and a batch of one row as well: their dimensions would be constants.
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens", max=_most_tokens(model))
    was_training = model.training
    model.train(False)
    try:
        with _quiet():
            torch.onnx.export(
                _Outputs(model),
                (),
                str(path),
                kwargs=dict(example),
                input_names=list(inputs),
                output_names=list(_outputs_of(model, example)),
                dynamic_shapes={name: {0: rows, 1: tokens} for name in inputs},
                opset_version=opset,
                dynamo=True,
                external_data=_megabytes(model) > 1900,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common type
        raise ModelError(
            f"onnx: torch cannot export {type(model).__name__}: {_reason(error)}; formats hf and int8 need no export"
        ) from error
    finally:
        model.train(was_training)


def check_onnx(model: PreTrainedModel, inputs: Sequence[str], path: Path, tolerance: float = _TOLERANCE) -> OnnxCheck:
    """Outputs of the file and of `model` on rows of several sizes and lengths, padded ones among them.

    ModelError if any differs by more than `tolerance` times the largest output.
    """
    exported = OnnxModel(path)
    longest = min(_most_tokens(model) or _LONGEST, _LONGEST)
    shapes = tuple(dict.fromkeys((rows, min(tokens, longest)) for rows, tokens in (*_SHAPES, (2, longest))))
    difference = largest = 0.0
    was_training = model.training
    model.train(False)
    try:
        for seed, (rows, tokens) in enumerate(shapes):
            batch = _batch(model, inputs, rows, tokens, seed)
            real = batch["attention_mask"].bool()
            with torch.inference_mode():
                expected = model(**batch, return_dict=True)
            for name, value in exported(**batch).items():
                wanted = expected[name]
                if value.shape != wanted.shape:
                    raise ModelError(
                        f"onnx: {name} of {rows} x {tokens} tokens has the shape {tuple(value.shape)}, torch's has "
                        f"{tuple(wanted.shape)}; nothing was exported"
                    )
                # What a model says of padding is nobody's business: kernels differ in it.
                one_per_token = wanted.ndim > 1 and wanted.shape[1] == tokens and _judges_tokens(model)
                gap = (value - wanted).abs()[real] if one_per_token else (value - wanted).abs()
                if not torch.isfinite(gap).all():
                    raise ModelError(f"onnx: {name} of {rows} x {tokens} tokens is no number; nothing was exported")
                difference = max(difference, float(gap.max()))
                largest = max(largest, float(wanted.abs().max()))
    finally:
        model.train(was_training)
    limit = tolerance * largest + 1e-6
    if difference > limit:
        raise ModelError(
            f"onnx: outputs differ from torch's by up to {difference:.2g}, more than {limit:.2g} (outputs reach "
            f"{largest:.3g}); nothing was exported"
        )
    return OnnxCheck(difference, largest, shapes)


def quantize_onnx(path: Path, target: Path) -> None:
    """The ONNX file with int8 weights; activations are quantized as they come (onnxruntime's dynamic quantization).

    One scale per output channel, and one bit less than int8 has: processors without VNNI would overflow otherwise.
    """
    require(("onnx", "onnxruntime"), "onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(path, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


class OnnxModel(nn.Module):
    """An ONNX file of a student, called like the Hugging Face model that it was made from; runs on the CPU."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        require(("onnxruntime",), "onnx")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common type
            raise ModelError(f"{path} cannot be opened by onnxruntime: {str(error).splitlines()[0]}") from error
        self._inputs = tuple(each.name for each in self._session.get_inputs())
        self._outputs = tuple(each.name for each in self._session.get_outputs())

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """Outputs by name, of int64 tensors (rows, tokens). `token_type_ids` may be left out, as with the original;
        what the file does not take is not looked at."""
        ids = inputs["input_ids"]
        given = {name: inputs.get(name, torch.zeros_like(ids)).cpu().numpy() for name in self._inputs}
        found = self._session.run(list(self._outputs), given)
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, found, strict=True)}


class _Outputs(nn.Module):
    """A model whose outputs are plain tensors, as the exporter wants them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **kinds, return_dict=True)
        return tuple(found[name] for name in found if name in ("logits", "start_logits", "end_logits"))


def _outputs_of(model: PreTrainedModel, example: dict[str, Tensor]) -> tuple[str, ...]:
    with torch.inference_mode():
        found = model(**example, return_dict=True)
    return tuple(name for name in found if name in ("logits", "start_logits", "end_logits"))


def _reason(error: BaseException) -> str:
    """The first line of what went wrong at the bottom: the exporter wraps it in advice on reporting bugs to torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = _COLOURS.sub("", str(error))
    return next((line.strip() for line in plain.splitlines() if line.strip()), type(error).__name__)


def _judges_tokens(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith(("ForTokenClassification", "ForQuestionAnswering"))


def _batch(model: PreTrainedModel, inputs: Sequence[str], rows: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens; all rows but the first end in padding. Draws from a generator of its own."""
    random = torch.Generator().manual_seed(seed)
    config = model.config
    padding = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    # Position ids of RoBERTa are counted from tokens that are no padding, so padding must stand where the mask is 0.
    input_ids = torch.randint(0, config.vocab_size, (rows, tokens), generator=random)
    input_ids[input_ids == padding] = (padding + 1) % config.vocab_size
    mask = torch.ones_like(input_ids)
    for row in range(1, rows):
        mask[row, max(1, tokens - row) :] = 0
    batch = {"input_ids": input_ids.masked_fill(mask == 0, padding), "attention_mask": mask}
    if "token_type_ids" in inputs:
        kinds = max(1, int(getattr(config, "type_vocab_size", 1) or 1))
        kind = torch.arange(tokens).ge(tokens // 2).long().clamp(max=kinds - 1)
        batch["token_type_ids"] = (kind * mask).contiguous()
    return {name: batch[name] for name in inputs}


def _most_tokens(model: PreTrainedModel) -> int | None:
    own = max_tokens(model.config)
    if own is not None:
        return own
    found = getattr(model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _megabytes(model: nn.Module) -> float:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 10**6


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantizer tell of their own progress; their errors are raised all the same."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.utils._pytree", "onnxscript", "onnx_ir", "torchao", "root")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
