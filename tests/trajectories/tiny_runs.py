"""Small trainings in memory for tests of trajectories: rows, models, objectives, and what a training records."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from raybrew.config import DistillConfig, KDLossConfig, MatchConfig, TrainConfig
from raybrew.config.distill import StageConfig
from raybrew.config.terms import EMDConfig, TheseusConfig
from raybrew.data.loader import StepLoader
from raybrew.distillers.matches import resolve_matches
from raybrew.distillers.objective import Objective, build_objective, in_stages
from raybrew.distillers.teachers import LiveTeacher, SignalsInBatch
from raybrew.models.composite import Hybrid
from raybrew.models.forward import checkpoint_layers, compiled, forward
from raybrew.models.initialise import init_from_teacher
from raybrew.models.shapes import TeacherDims
from raybrew.signals import Signal
from raybrew.tasks.heads import ItemHead
from raybrew.training.context import Context, LocalContext
from raybrew.training.encoded import EncodedProgram, Trainee, build_order, total_steps
from raybrew.training.evaluation import Asked, Evaluation, losses_of, measure_rows
from raybrew.training.loop import train
from raybrew.training.optim import Precision
from raybrew.training.parallel import shard, whole
from raybrew.training.stages import Stages, Theseus

__all__ = [
    "CLASSES",
    "NUM_ROWS",
    "OBJECTIVES",
    "Measuring",
    "Recorder",
    "Rows",
    "gap",
    "losses_only",
    "model",
    "run",
    "settings",
    "stored_signals",
    "trainee",
]

NUM_ROWS, CLASSES, VOCABULARY = 45, 3, 50

OBJECTIVES = {
    "logits": DistillConfig(temperature=4.0, kd_loss=KDLossConfig(kind="kl"), hard_label_weight=0.1),
    "hidden": DistillConfig(
        temperature=2.0,
        matches=(MatchConfig(loss="hidden_mse"), MatchConfig(loss="mmd", layers="last"), MatchConfig(loss="pkd")),
    ),
    "attention": DistillConfig(
        kd_loss=KDLossConfig(kind="kl"),
        matches=(MatchConfig(loss="attention_mse"), MatchConfig(loss="attention_mse_sum", layers="last")),
    ),
    "tagging": DistillConfig(
        kd_loss=KDLossConfig(kind="kl"), hard_label_weight=0.5, matches=(MatchConfig(loss="hidden_mse"),)
    ),
    # The head learns nothing in the first stage, and its projections go on in the second.
    "stages": DistillConfig(
        kd_loss=KDLossConfig(kind="kl"),
        stages=(
            StageConfig(
                name="layers",
                share=0.5,
                kd_weight=0.0,
                matches=(MatchConfig(loss="hidden_mse"), MatchConfig(loss="mmd", layers="last")),
            ),
            StageConfig(name="logits", learning_rate=5e-3, matches=(MatchConfig(loss="hidden_mse", layers="final"),)),
        ),
    ),
    "hidden only": DistillConfig(kd_weight=0.0, matches=(MatchConfig(loss="hidden_mse", layers=((1, 2),)),)),
}

#: Its flow is that of a micro-batch, so a batch that is cut is another training.
EMD = DistillConfig(kd_loss=KDLossConfig(kind="kl"), emd=EMDConfig(hidden=1.0, attention=0.5))

#: The student's layers in the teacher, then the student alone.
THESEUS = DistillConfig(
    kd_weight=0.0,
    hard_label_weight=1.0,
    stages=(StageConfig(name="replacing", share=0.5, theseus=TheseusConfig()), StageConfig(name="alone")),
)


class Rows:
    """Encoded rows in memory: token ids of different lengths, some without a label.

    With `items` each row has labels at some of its tokens, the first of words, and the others are masked.
    """

    def __init__(self, items: bool = False) -> None:
        random = np.random.default_rng(7)
        self.lengths = random.integers(2, 12, NUM_ROWS).astype(np.int32)
        self.tokens = [random.integers(1, VOCABULARY, length) for length in self.lengths]
        self.ids = np.arange(NUM_ROWS * 16, dtype=np.uint16).astype(np.uint8).reshape(NUM_ROWS, 16)
        self.ids[:, 0] = np.arange(NUM_ROWS)
        self.labels = random.integers(-1, CLASSES, NUM_ROWS).astype(np.int32)

        chosen = [random.permutation(length)[: random.integers(1, length + 1)] for length in self.lengths]
        self.items = [np.sort(places) for places in chosen] if items else None
        self.item_labels = [random.integers(-1, CLASSES, len(places)) for places in chosen]

    def names(self, rows: np.ndarray) -> list[str]:
        return [each.tobytes().hex() for each in self.ids[rows]]

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        if self.items is None:
            return {"labels": self.labels[rows].astype(np.int64)}
        shape = (len(rows), max(len(self.items[row]) for row in rows))
        batch = {"items": np.zeros(shape, np.int64), "item_mask": np.zeros(shape, np.float32)}
        batch["labels"] = np.full(shape, -1, np.int64)
        for place, row in enumerate(rows):
            count = len(self.items[row])
            batch["items"][place, :count] = self.items[row]
            batch["item_mask"][place, :count] = 1
            batch["labels"][place, :count] = self.item_labels[row]
        return batch

    def gather_padded(self, rows: np.ndarray, pad_token_id: int, length: int | None = None) -> dict[str, np.ndarray]:
        longest = length or max(len(self.tokens[row]) for row in rows)
        ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(self.tokens[row])] = self.tokens[row]
            mask[place, : len(self.tokens[row])] = 1
        return {"input_ids": ids, "attention_mask": mask}


def model(layers: int, hidden: int, seed: int, dropout: float = 0.0, items: bool = False) -> Any:
    """An untrained BERT, for items one with a label per token."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa",
    )
    return (BertForTokenClassification if items else BertForSequenceClassification)(config)


def distill_of(kind: str) -> DistillConfig:
    return {"emd": EMD, "theseus": THESEUS, **OBJECTIVES}[kind]


def teacher_of(kind: str) -> Any:
    """Deeper and, where the student does not train inside it, wider."""
    return model(4, 8 if kind == "theseus" else 12, seed=2, items=kind == "tagging").eval()


def trainee(kind: str, dropout: float = 0.0, compile_student: bool = False) -> Trainee:
    config = distill_of(kind)
    stages: list[Objective] = []
    earlier: dict[str, nn.Module] = {}
    for part in config.parts:
        matches = resolve_matches(part.matches, 2, 4)
        stages.append(
            build_objective(
                part,
                matches,
                {match.student: 8 if match.student.kind == "hidden" else 2 for match in matches},
                {match.teacher: 12 if match.teacher.kind == "hidden" else 2 for match in matches},
                seed=3,
                head=ItemHead() if kind == "tagging" else None,
                dims=(TeacherDims(2, 8, 2, 16), TeacherDims(4, 12, 2, 24)),
                earlier=earlier,
            )
        )
        earlier |= dict(stages[-1].projections.items())
    objective = in_stages(stages)
    student = model(2, 8, seed=1, dropout=dropout, items=kind == "tagging")
    theseus = None
    if kind == "theseus":
        teacher = teacher_of(kind)
        init_from_teacher(student, teacher, (2, 4))
        theseus = Theseus(Hybrid(student, teacher), [part.theseus for part in config.parts], seed=5)
    return Trainee(student, objective, compiled(student) if compile_student else None, theseus)


@dataclasses.dataclass
class Recorder:
    """Hooks that keep everything in memory. The metric is a sum over weights, or what `metric` says of a step."""

    metric: Callable[[int], float] | None = None

    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    states: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    kept: list[int] = dataclasses.field(default_factory=list)

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def evaluate(self, trainee: Any) -> Evaluation:
        done = len([record for record in self.records if record["kind"] == "eval"])
        if self.metric is not None:
            accuracy = self.metric(done + 1)
        else:
            accuracy = float(sum(whole(p.detach()).double().sum() for p in trainee.student.parameters()))
        return Evaluation({"accuracy": accuracy}, {})

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        self.kept.append(int(best["step"]))

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.states[step] = copy.deepcopy(state)


@dataclasses.dataclass
class Measuring(Recorder):
    """Hooks that evaluate the losses of the present stage, and a metric of the logits, on rows of their own."""

    kind: str = "logits"
    context: Context = dataclasses.field(default_factory=lambda: LocalContext(torch.device("cpu")))
    stored: bool = False
    lacking: tuple[int, ...] = ()  #: rows of which the teacher says nothing

    def evaluate(self, trainee: Any) -> Evaluation:
        items = self.kind == "tagging"
        rows, teacher, objective = Rows(items), teacher_of(self.kind), trainee.objective
        request = objective.teacher_request
        has = np.ones(NUM_ROWS, np.bool_)
        has[list(self.lacking)] = False
        asked = Asked(
            has,
            stored_signals(teacher, rows, request) if self.stored else None,
            SignalsInBatch() if self.stored else LiveTeacher(teacher.to(self.context.device), request),
            trainee.measure,
        )
        objective.start_step(1.0)
        precision, head = Precision("fp32", self.context.device), objective.head
        logits, totals = measure_rows(
            trainee, trainee.student, rows, 0, self.context, precision, head=head, asked=asked
        )
        spread = float(np.abs(np.concatenate([np.atleast_2d(row) for row in logits])).mean())
        return Evaluation({"accuracy": spread}, losses_of(objective, totals, trainee.shares))


def settings(**changes: Any) -> TrainConfig:
    values = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "log_steps": 2, "seed": 5}
    return TrainConfig(**(values | changes))


def run(
    kind: str,
    config: TrainConfig,
    context: Context | None = None,
    state: Mapping[str, Any] | None = None,
    start_step: int = 0,
    stored: bool = False,
    dropout: float = 0.0,
    precision_name: str = "fp32",
    recorder: Recorder | None = None,
    change: Callable[[EncodedProgram], None] | None = None,
    judge: str = "accuracy",
) -> tuple[dict[str, torch.Tensor], Recorder]:
    """Train and return the final weights and what was recorded. `change` may do something to the program first.

    `judge` is what chooses the best student.
    """
    context = context or LocalContext(torch.device("cpu"))
    subject = trainee(kind, dropout, config.compile).to(context.device)
    items = kind == "tagging"
    teacher_model = teacher_of(kind)
    rows, recorder = Rows(items), recorder or Recorder()
    if config.gradient_checkpointing:
        checkpoint_layers(subject.student)
    if config.parallel == "fsdp":
        shard(subject, subject.student, context.device)
    objective = subject.objective
    order = build_order(rows.lengths, config)
    num_steps = total_steps(order, config)
    stages = Stages.of(distill_of(kind), num_steps)
    requests = [stage.teacher_request for stage in objective.stages]
    kept = [stored_signals(teacher_model, rows, request) for request in requests] if stored else None
    loader = StepLoader(
        rows,
        order,
        rank=context.rank,
        world_size=context.world_size,
        num_steps=num_steps,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        start_step=start_step,
        pad_token_id=0,
        teacher_at=None if kept is None else lambda step: kept[stages.at(step)],
    )
    teacher_model.to(context.device)
    if subject.theseus is not None:
        subject.theseus.hybrid.teacher.to(context.device)
    precision = Precision(precision_name, context.device)
    teachers = [
        SignalsInBatch() if stored else LiveTeacher(teacher_model, request, precision.autocast) for request in requests
    ]
    program = EncodedProgram(subject, teachers, loader, config, judge, stages)
    if change is not None:
        change(program)
    train(program, context, precision, recorder, state)
    # Of all ranks: `full_state` has what is divided on the first alone.
    return {name: whole(value.detach()).clone() for name, value in subject.state_dict().items()}, recorder


def stored_signals(
    teacher: nn.Module, rows: Rows, request: Collection[Signal]
) -> Callable[[np.ndarray, int | None], dict[Any, torch.Tensor]]:
    """Signals computed row by row beforehand, as a store holds them, padded on request."""
    kept = []
    for row in range(NUM_ROWS):
        one = np.array([row])
        arrays = rows.gather_padded(one, 0) | rows.targets(one)
        inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}
        with torch.no_grad():
            kept.append({s: value[0] for s, value in forward(teacher, inputs, request).items()})

    def gather(wanted: np.ndarray, length: int | None) -> dict[Any, torch.Tensor]:
        return {
            signal: torch.stack([kept[row][signal] for row in wanted])
            if signal.kind == "logits" and rows.items is None
            else padded([kept[row][signal] for row in wanted], signal.kind == "attention", length)
            for signal in request
        }

    def padded(values: list[torch.Tensor], pairs: bool, length: int | None) -> torch.Tensor:
        if length is None or values[0].shape[-1] == CLASSES:
            length = max(value.shape[1 if pairs else 0] for value in values)
        missing = [length - value.shape[1 if pairs else 0] for value in values]
        sizes = [(0, rest, 0, rest) if pairs else (0, 0, 0, rest) for rest in missing]
        return torch.stack([nn.functional.pad(value, size) for value, size in zip(values, sizes, strict=True)])

    return gather


def gap(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Largest and mean absolute difference of all weights."""
    assert first.keys() == second.keys()
    differences = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert differences.numel() > 1000
    return float(differences.max()), float(differences.mean())


def losses_only(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what depends on the clock and the machine."""
    clock = ("time", "samples_per_second", "tokens_per_second", "memory_bytes")
    return {name: value for name, value in record.items() if name not in clock}
