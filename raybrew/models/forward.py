"""Running a model for exactly the signals that were asked for: what it returns, and what hooks catch on the way.

The pooled output of a classifier is the vector of a row that its last linear layer reads. For BERT that is the output
of the pooler, for RoBERTa and ELECTRA that of the head's dense layer after its activation, for DistilBERT that of the
pre-classifier. It is taken before the dropout that stands in front of the last layer: what a student is compared with
in training must not be full of zeros.

Attention masks are made without a look at their values while a model runs on an accelerator. transformers leaves the
mask out where a batch has no padding. To know that it reads the mask in every forward pass, for which the host waits
until the device has done everything before it. On a CPU the look is free and stays.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask

from raybrew.config.problems import near_match
from raybrew.errors import ModelError
from raybrew.models.attention import attention_signals
from raybrew.signals import LOGITS, POOLED, Signal

__all__ = [
    "MODEL_INPUTS",
    "checkpoint_layers",
    "compiled",
    "find_module",
    "forward",
    "module_outputs",
    "outputs_of",
    "pooled_output",
    "read_no_masks",
]

#: Batch keys that are passed to a Hugging Face model when present.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

#: Shapes that a model is compiled for; lengths of batches are rounded so that there are fewer up to 4096 tokens.
_MOST_SHAPES = 64


def forward(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    request: Collection[Signal],
    run: Callable[..., Any] | None = None,
) -> dict[Signal, Tensor]:
    """Outputs of `model` for the signals of `request`, in one forward pass.

    `run` stands in for calling the model, such as what `compiled` gives.

    `logits`: (batch, classes); or, for heads that judge tokens, those at the positions `items` (batch, items) of the
    inputs: (batch, items, classes), classes being start and end for question answering. `pooled`: (batch, dim).
    `hidden.i`: (batch, length, dim), 0 the embedding output, i that of layer i.
    From layer 1 on: `attention.i` (batch, heads, length, length), scores before the softmax, `attention_probs.i`,
    their softmax over the real tokens, and `query.i`, `key.i`, `value.i` (batch, length, dim).
    Outputs of modules, by name, are as they come. ModelError names a layer or module that the model does not have, and
    what it cannot give.
    """
    read_no_masks()
    layers = [signal for signal in request if signal.kind == "hidden"]
    items = inputs.get("items")
    with (
        _head_reads(model, items) as at_items,
        attention_signals(model, request, inputs.get("attention_mask")) as attention,
        pooled_output(model, request) as pooled,
        module_outputs(model, request) as tapped,
    ):
        outputs = (run or model)(
            **{name: inputs[name] for name in MODEL_INPUTS if name in inputs},
            output_hidden_states=bool(layers),
            return_dict=True,
            **_without_cache(type(model).forward),
        )
    result: dict[Signal, Tensor] = {}
    if LOGITS in request:
        result[LOGITS] = _logits(outputs, None if at_items else items)
    for signal in layers:
        if signal.layer is None or signal.layer >= len(outputs.hidden_states):
            raise ModelError(
                f"{signal} was asked for, but the model has layers 0 (embeddings) to {len(outputs.hidden_states) - 1}"
            )
        result[signal] = outputs.hidden_states[signal.layer]
    return result | attention | pooled | tapped


@functools.cache
def _without_cache(method: Callable[..., Any]) -> dict[str, bool]:
    """Decoders such as GPT-2 keep a copy of all keys and values for tokens to come, of which there are none here."""
    return {"use_cache": False} if "use_cache" in inspect.signature(method).parameters else {}


@contextlib.contextmanager
def _head_reads(model: nn.Module, items: Tensor | None) -> Iterator[list[bool]]:
    """Inside, the head of a language model is given the tokens at `items` (batch, items) alone, of all that it reads.

    Logits over a vocabulary are most of the work and memory of a small model, and few tokens are asked for. The list is
    not empty when that was done; it is not for models without such a head.
    """
    done: list[bool] = []
    base = _below_vocabulary(model)
    if items is None or base is None:
        yield done
        return
    places = items.unsqueeze(-1)

    def choose(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if done or not given or not isinstance(given[0], Tensor) or given[0].dim() != 3:
            return None
        done.append(True)
        states = given[0]
        return (states.gather(1, places.expand(-1, -1, states.shape[-1])), *given[1:])

    hooks = [child.register_forward_pre_hook(choose) for child in model.children() if child is not base]
    try:
        yield done
    finally:
        for hook in hooks:
            hook.remove()


def _below_vocabulary(model: nn.Module) -> nn.Module | None:
    """The part of a language model that its head reads; None for models without a head over a vocabulary."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model or model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        return None
    return model.base_model


def _logits(outputs: Mapping[str, Tensor], items: Tensor | None) -> Tensor:
    if "logits" in outputs:
        logits = outputs["logits"]
    else:
        logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    if items is None:
        return logits
    return logits.gather(1, items.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def compiled(model: nn.Module) -> Callable[..., Any]:
    """`model` as a compiled function, for each shape of its inputs anew; weights and state stay those of `model`.

    Of a language model that is all below its head, which is given few tokens, and another number in each batch.
    """
    # Beyond torch's own limit of 8 shapes it would run the others uncompiled, without a word.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_SHAPES)
    base = _below_vocabulary(model)
    forward_pass: Callable[..., Any] = model if base is None else base.forward

    def run(*args: Any, **inputs: Any) -> Any:
        return forward_pass(*args, **inputs)

    function: Callable[..., Any] = torch.compile(run, dynamic=False)
    if base is None:
        return function

    def with_head(**inputs: Any) -> Any:
        base.forward = function
        try:
            return model(**inputs)
        finally:
            del base.forward

    return with_head


def checkpoint_layers(model: nn.Module) -> None:
    """Make `model` compute its layers anew in the backward pass; ModelError if it cannot."""
    if not isinstance(model, PreTrainedModel) or not model.supports_gradient_checkpointing:
        raise ModelError(f"train.gradient_checkpointing: {type(model).__name__} cannot do it; set it to false")
    with warnings.catch_warnings():  # of its next name, which the oldest transformers that we support lack
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]


_SKIPS = ("allow_is_causal_skip", "allow_is_bidirectional_skip")


@functools.cache
def read_no_masks() -> None:
    """For all models of this process: masks on a device are used as they are. Outputs are the same up to rounding."""
    for name, make in (("sdpa", sdpa_mask), ("eager", eager_mask)):
        AttentionMaskInterface.register(name, _unread(make))


def _unread(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def mask(*args: Any, **options: Any) -> Any:
        given = options.get("attention_mask")
        if given is not None and given.device.type != "cpu":
            options |= dict.fromkeys(_SKIPS, False)
        return make(*args, **options)

    return mask


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of `model` with this name, such as `bert.pooler`; ModelError with a near match if there is none."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in modules:
        raise ModelError(f"{type(model).__name__} has no module {name!r}{near_match(name, list(modules))}")
    return modules[name]


@contextlib.contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of `modules` in the one forward pass that runs inside; the keys are their names in errors.

    The dict is filled, in the order of `modules`, when the block is left. Of a tuple the first item is taken, of a
    module that runs several times the last output; ModelError if that is no tensor, or the module did not run.
    """
    result: dict[str, Tensor] = {}
    seen: dict[str, Any] = {}

    def keeping(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = output

        return keep

    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(keeping(name)).remove)
        yield result
    for name in modules:
        value = seen.get(name)
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            what = "did not run" if name not in seen else f"returned {type(value).__name__}, not a tensor"
            raise ModelError(f"{name} {what} in the forward pass")
        result[name] = value


@contextlib.contextmanager
def module_outputs(model: nn.Module, request: Collection[Signal]) -> Iterator[dict[Signal, Tensor]]:
    """Collects the outputs of the modules that `request` names, as `outputs_of`."""
    names = {signal: f"{signal} of {type(model).__name__}" for signal in request if signal.module is not None}
    result: dict[Signal, Tensor] = {}
    with outputs_of({name: find_module(model, signal.module or "") for signal, name in names.items()}) as found:
        yield result
    result.update(zip(names, found.values(), strict=True))


@contextlib.contextmanager
def pooled_output(model: nn.Module, request: Collection[Signal]) -> Iterator[dict[Signal, Tensor]]:
    """Collects the pooled output, if `request` has it, in the one forward pass of `model` that runs inside.

    The dict is filled when the block is left: (batch, dim), with gradient where that is recorded. ModelError for models
    without a last layer that reads one vector per row.
    """
    result: dict[Signal, Tensor] = {}
    if POOLED not in request:
        yield result
        return
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    name = type(model).__name__
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == classes]
    if not heads:
        raise ModelError(f"pooled was asked for, but {name} has no linear layer that gives its classes")
    read: list[Tensor] = []
    dropped: list[tuple[Tensor, Tensor]] = []

    def keep_dropout(module: nn.Module, inputs: Any, output: Tensor) -> None:
        dropped[:] = [(inputs[0], output)]

    def keep_input(module: nn.Module, inputs: Any) -> None:
        given = inputs[0]
        # The last call counts: a layer further down may happen to have the width of the classes.
        read[:] = [dropped[0][0] if dropped and dropped[0][1] is given else given]

    with contextlib.ExitStack() as hooks:
        for head in heads:
            hooks.callback(head.register_forward_pre_hook(keep_input).remove)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                hooks.callback(module.register_forward_hook(keep_dropout).remove)
        yield result
    if len(read) != 1 or read[0].dim() != 2:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in read) or "nothing"
        raise ModelError(
            f"pooled was asked for, but the last layer of {name} reads {shapes} instead of one vector per row; a model "
            "for sequence classification has one"
        )
    result[POOLED] = read[0]
