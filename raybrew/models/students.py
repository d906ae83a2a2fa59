"""Building a student: a Hugging Face model as it is, or a shape after the teacher's architecture."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from raybrew.catalog.initialisations import AUTO_INIT, initialisation
from raybrew.catalog.shapes import RECURRENT_SHAPES, RecurrentShape
from raybrew.catalog.target import load_target
from raybrew.config.kinds import task_spec
from raybrew.config.outside import is_outside, load_outside
from raybrew.config.student import ShapeConfig, StudentConfig
from raybrew.errors import ConfigError, EnvironmentProblem, ModelError, first_line
from raybrew.models.bigru import BiGRUConfig
from raybrew.models.cache import ModelCache
from raybrew.models.initialise import share_embeddings
from raybrew.models.loading import ModelSource, auto_class, load_config, load_model
from raybrew.models.shapes import FAMILIES, dims_of, pick_layers, resolve_shape, size_names, sizes_text
from raybrew.models.vocabulary import Vocabulary, keep_embeddings, open_vocabulary, trimmed_config

__all__ = ["Student", "build_student", "empty_model", "empty_student", "new_model", "random_model", "student_config"]

#: Families whose layers cannot be shaped, and why.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "albert": "all its layers share one set of weights, so a shape has no layers to leave out or to start from",
        BiGRUConfig.model_type: "it has no layers of transformers",
    }
)


class Student(NamedTuple):
    """A model ready to train, its tokenizer, and one line on what it is and how it starts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    description: str


def build_student(
    config: StudentConfig,
    teacher: ModelSource | None,
    task_kind: str,
    labels: tuple[str, ...],
    seed: int,
    vocabulary: Path | None = None,
    *,
    models: ModelCache | None = None,
) -> Student:
    """The student of `config`, in float32 on the CPU, with one output per label.

    `student.model` is loaded with its own tokenizer; a head of another size is made anew. A shape takes the teacher's
    architecture, vocabulary and tokenizer. New weights depend on `seed` alone, and torch's global generators are left
    as they were. `vocabulary` is the folder of a trimmed one (`raybrew.models.vocabulary`), whose rows of the word
    embeddings are taken. `models` may hold the teacher already. ConfigError and ModelError name what does not fit.
    """
    models = models or ModelCache()
    trimmed = None if vocabulary is None else open_vocabulary(vocabulary)
    built = _whole_student(config, teacher, task_kind, labels, seed, trimmed, models)
    if trimmed is None:
        return built
    embeddings: nn.Embedding = built.model.get_input_embeddings()  # type: ignore[assignment]
    saved = (trimmed.size_before - len(trimmed.kept)) * embeddings.embedding_dim
    words = f"vocabulary of {len(trimmed.kept):,} out of {trimmed.size_before:,} pieces: {saved:,} parameters saved"
    tokenizer = models.own_tokenizer(ModelSource(str(trimmed.folder)))
    return Student(built.model, tokenizer, f"{built.description}, {words}")


def _whole_student(
    config: StudentConfig,
    teacher: ModelSource | None,
    task_kind: str,
    labels: tuple[str, ...],
    seed: int,
    trimmed: Vocabulary | None,
    models: ModelCache,
) -> Student:
    """`build_student` with the tokenizer as it was."""

    def trim(model: PreTrainedModel) -> PreTrainedModel:
        if trimmed is not None:
            keep_embeddings(model, trimmed.kept)
        return model

    if config.model is not None:
        source = _own_source(config)
        with _seeded(seed):
            model = trim(load_model(source, task_kind, labels))
        words = f"{config.model} ({sizes_text(model.config)}), its own weights"
        return Student(model, models.own_tokenizer(source), words)
    source = _teacher_source(config, teacher)

    def origin() -> PreTrainedModel:
        """The teacher, or a copy where it may be changed: others in this process read it."""
        whole = models.model(source, task_kind, needs_head=False, seed=seed)
        return whole if trimmed is None and not is_outside(config.init) else trim(copy.deepcopy(whole))

    teacher_config = load_config(source)
    if trimmed is not None:
        teacher_config = trimmed_config(teacher_config, trimmed.kept)
    recurrent = _recurrent(config)
    if recurrent is not None:
        with _seeded(seed):
            model = _build(_recurrent_config(teacher_config, recurrent, labels), task_kind, False)
        start = f"random weights, seed {seed}"
        if not config.starts_random:
            start = share_embeddings(model, origin())
        return Student(model, models.own_tokenizer(source), f"{config.shape}: {sizes_text(model.config)}, {start}")
    shape, layers = _resolve(config, teacher_config)
    shaped = student_config(teacher_config, shape, labels, layers)
    with _seeded(seed):
        model = _build(shaped, task_kind, source.trust_remote_code)
    _check_runs(model, shape)
    if layers is None:
        start = f"random weights, seed {seed}"
    else:
        start = str(_init_function(config.init)(model, origin(), layers))
    name = f"{config.shape}: " if isinstance(config.shape, str) else ""
    return Student(model, models.own_tokenizer(source), f"{name}{sizes_text(shaped)}, {start}")


def empty_student(
    config: StudentConfig,
    teacher: ModelSource | None,
    task_kind: str,
    labels: tuple[str, ...],
    vocabulary: Path | None = None,
) -> PreTrainedModel:
    """The student of `config` without memory for its weights (device `meta`): for counting, reads configs only."""
    if config.model is not None:
        source = _own_source(config)
        shaped = _with_labels(load_config(source), labels)
    else:
        source = _teacher_source(config, teacher)
        teacher_config = load_config(source)
        recurrent = _recurrent(config)
        if recurrent is not None:
            shaped = _recurrent_config(teacher_config, recurrent, labels)
        else:
            shape, layers = _resolve(config, teacher_config)
            shaped = student_config(teacher_config, shape, labels, layers)
    if vocabulary is not None:
        shaped = trimmed_config(shaped, open_vocabulary(vocabulary).kept)
    with torch.device("meta"):
        return _build(shaped, task_kind, source.trust_remote_code)


def new_model(source: ModelSource, task_kind: str, labels: tuple[str, ...], seed: int) -> PreTrainedModel:
    """A model as the config of `source` describes it, with random weights that depend on `seed` alone."""
    config = _with_labels(load_config(source), labels)
    with _seeded(seed):
        return _build(config, task_kind, source.trust_remote_code)


def empty_model(config: PretrainedConfig, task_kind: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config, on device `meta`: its modules and shapes without memory for weights."""
    with torch.device("meta"):
        return _build(copy.deepcopy(config), task_kind, trust_remote_code)


def random_model(config: PretrainedConfig, head: Any, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config with random weights on the CPU, without a trace in torch's generators: for measuring.

    `head` is the kind of a task, or an Auto class of transformers for models without a head of ours.
    """
    config = copy.deepcopy(config)
    with _seeded(0):
        if isinstance(head, str):
            return _build(config, head, trust_remote_code)
        try:
            model: PreTrainedModel = head.from_config(config, dtype=torch.float32)
        except Exception as error:
            raise ModelError(f"no model can be built from this config of {config.model_type!r}: {error}") from error
    return model


def student_config(
    teacher: PretrainedConfig, shape: ShapeConfig, labels: tuple[str, ...], layers: tuple[int, ...] | None = None
) -> PretrainedConfig:
    """A copy of the teacher's config with the sizes of `shape` (all four given) and these labels.

    `layers` are the teacher layers that the student starts from, counted from 1: in families that mix kinds of layers
    (ModernBERT: local and global attention) each student layer is of the kind of its origin, or of the teacher's first
    ones. The width of ELECTRA's embeddings stays the teacher's. ModelError for a family that cannot be shaped.
    """
    family = teacher.model_type
    _check_shapes(family)
    dims = dims_of(teacher)
    config = _with_labels(teacher, labels)
    wanted = (shape.layers, shape.hidden, shape.heads, shape.feed_forward)
    try:
        for name, value in zip(size_names(family), wanted, strict=True):
            setattr(config, name, value)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _unfit(teacher, first_line(error)) from error
    # Set from the hidden width when a DeBERTa config is made, but kept as a value of its own.
    if getattr(teacher, "pooler_hidden_size", None) == dims.hidden:
        config.pooler_hidden_size = shape.hidden
    kinds = getattr(teacher, "layer_types", None)
    if kinds:
        origins = layers or tuple(place % dims.layers + 1 for place in range(shape.layers))
        config.layer_types = [kinds[layer - 1] for layer in origins]
    return config


def _resolve(config: StudentConfig, teacher: PretrainedConfig) -> tuple[ShapeConfig, tuple[int, ...] | None]:
    """The shape in numbers, and the teacher layers that it starts from (None: random)."""
    if config.shape is None:
        raise _nothing_given()
    _check_shapes(teacher.model_type)
    dims = dims_of(teacher)
    shape = resolve_shape(config.shape, dims)
    name = AUTO_INIT[shape.hidden == dims.hidden] if config.init == "auto" else config.init
    random = initialisation(name).is_random
    return shape, None if random else pick_layers(config.init_layers, shape.layers, dims.layers)


def _init_function(name: str) -> Callable[[PreTrainedModel, PreTrainedModel, tuple[int, ...]], object]:
    """What sets a student's weights from its teacher's: f(student, teacher, layers), which says what it did."""
    found: Any = load_outside(name, "student.init") if is_outside(name) else load_target(initialisation(name).target)
    return found  # type: ignore[no-any-return]


def _check_shapes(family: str) -> None:
    if family in _REFUSED:
        raise ModelError(
            f"student.shape: a {family.upper()} teacher cannot be shaped: {_REFUSED[family]}; name a student with "
            f"student.model, or take a teacher of {', '.join(FAMILIES)}"
        )


def _recurrent(config: StudentConfig) -> RecurrentShape | None:
    """The shape without attention that is named, if it is one."""
    return RECURRENT_SHAPES.get(config.shape) if isinstance(config.shape, str) else None


def _recurrent_config(teacher: PretrainedConfig, shape: RecurrentShape, labels: tuple[str, ...]) -> BiGRUConfig:
    """With the teacher's vocabulary and the width of its word embeddings."""
    width = getattr(teacher, "embedding_size", None) or dims_of(teacher).hidden
    config = BiGRUConfig(teacher.vocab_size, width, shape.hidden, pad_token_id=teacher.pad_token_id)
    named: BiGRUConfig = _with_labels(config, labels)  # type: ignore[assignment]
    return named


def _own_source(config: StudentConfig) -> ModelSource:
    if config.model is None:
        raise _nothing_given()
    return ModelSource(config.model, config.revision, config.trust_remote_code)


def _teacher_source(config: StudentConfig, teacher: ModelSource | None) -> ModelSource:
    if config.shape is None:
        raise _nothing_given()
    if teacher is None:
        words = "needs teacher.model, whose architecture and vocabulary it takes"
        raise ConfigError.of("student.shape", words, "required")
    return teacher


def _nothing_given() -> ConfigError:
    words = "neither model nor shape is given; name a model, or a shape (`raybrew list shapes`)"
    return ConfigError.of("student", words, "required")


def _with_labels(config: PretrainedConfig, labels: tuple[str, ...]) -> PretrainedConfig:
    config = copy.deepcopy(config)
    if not labels:  # its outputs are the vocabulary
        return config
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    return config


def _build(config: PretrainedConfig, task_kind: str, trust_remote_code: bool) -> PreTrainedModel:
    config.problem_type = task_spec(task_kind).problem_type
    if torch.get_default_device().type != "meta":
        _check_room(config)
    try:
        model: PreTrainedModel = auto_class(task_kind).from_config(
            config, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        # Families check their configs by themselves, with any kind of exception.
        raise _unfit(config, first_line(error)) from error
    model.train(False)
    return model


def _check_room(config: PretrainedConfig) -> None:
    """EnvironmentProblem if the layers' weights alone exceed the memory: the system would end the process."""
    if config.model_type in _REFUSED:
        return  # its layers are not `layers` times as large as one
    try:
        layers, hidden, _, feed_forward = dims_of(config)
    except ModelError:
        return
    needed = 4 * layers * (4 * hidden * hidden + 2 * hidden * feed_forward)
    there = psutil.virtual_memory().total
    if needed > there:
        raise EnvironmentProblem(
            f"the weights of {sizes_text(config)} take about {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB of memory; make student.shape smaller"
        )


def _check_runs(model: PreTrainedModel, shape: ShapeConfig) -> None:
    """ModelError if the shape does not work: some sizes fail in the forward pass only, and four tokens tell."""
    tokens = torch.ones((1, 4), dtype=torch.long)
    try:
        with torch.inference_mode():
            outputs = model(input_ids=tokens, attention_mask=tokens, output_hidden_states=True, return_dict=True)
        layers, hidden = len(outputs.hidden_states) - 1, outputs.hidden_states[-1].shape[-1]
    except Exception as error:
        raise _unfit(model.config, first_line(error)) from error
    if (layers, hidden) != (shape.layers, shape.hidden):
        raise _unfit(model.config, f"it came out with {layers} layers of width {hidden}")


def _unfit(config: PretrainedConfig, why: str) -> ModelError:
    """Blames the numbers in a family that shapes are tested with, the family itself otherwise."""
    family = config.model_type
    if family in FAMILIES:
        return ModelError(f"student.shape: no student can be built as {sizes_text(config)}: {why}")
    return ModelError(
        f"student.shape: a teacher of family {family!r} cannot be shaped through the usual config names ({why}); name "
        f"a student with student.model, or take a teacher of {', '.join(FAMILIES)}"
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws inside depend on `seed` and leave no trace outside."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs as well, which the fork does not restore.
        torch.default_generator.manual_seed(seed)
        yield
