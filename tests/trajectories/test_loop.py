"""One trajectory: however a batch is cut, wherever the teacher's outputs come from, interrupted or not."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from raybrew.config import DistillConfig, KDLossConfig, MatchConfig, TrainConfig
from raybrew.data.loader import StepLoader
from raybrew.distillers.matches import resolve_matches
from raybrew.distillers.objective import Objective, build_objective
from raybrew.distillers.teachers import LiveTeacher, SignalsInBatch
from raybrew.errors import DivergenceError, Interrupted
from raybrew.models.forward import forward
from raybrew.training.context import Context, DistributedContext, LocalContext
from raybrew.training.encoded import EncodedProgram, Trainee, build_order, total_steps
from raybrew.training.loop import train
from raybrew.training.precision import Precision

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
    "hidden only": DistillConfig(kd_weight=0.0, matches=(MatchConfig(loss="hidden_mse", layers=((1, 2),)),)),
}


class Rows:
    """Encoded rows in memory: token ids of different lengths, some without a label."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        self.lengths = random.integers(2, 12, NUM_ROWS).astype(np.int32)
        self.tokens = [random.integers(1, VOCABULARY, length) for length in self.lengths]
        self.ids = np.arange(NUM_ROWS * 16, dtype=np.uint16).astype(np.uint8).reshape(NUM_ROWS, 16)
        self.ids[:, 0] = np.arange(NUM_ROWS)
        self.labels = random.integers(-1, CLASSES, NUM_ROWS).astype(np.int32)

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"labels": self.labels[rows].astype(np.int64)}

    def gather_padded(self, rows: np.ndarray, pad_token_id: int, length: int | None = None) -> dict[str, np.ndarray]:
        longest = length or max(len(self.tokens[row]) for row in rows)
        ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(self.tokens[row])] = self.tokens[row]
            mask[place, : len(self.tokens[row])] = 1
        return {"input_ids": ids, "attention_mask": mask}


def model(layers: int, hidden: int, seed: int, dropout: float = 0.0) -> BertForSequenceClassification:
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
    return BertForSequenceClassification(config)


def trainee(kind: str, dropout: float = 0.0) -> Trainee:
    config = OBJECTIVES[kind]
    matches = resolve_matches(config.matches, 2, 4)
    objective = build_objective(
        config,
        matches,
        {match.student: 8 if match.student.kind == "hidden" else 2 for match in matches},
        {match.teacher: 12 if match.teacher.kind == "hidden" else 2 for match in matches},
        seed=3,
    )
    return Trainee(model(2, 8, seed=1, dropout=dropout), objective)


@dataclasses.dataclass
class Recorder:
    """Hooks that keep everything in memory; `stop_after` asks the context to stop from within an evaluation."""

    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    states: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    kept: list[int] = dataclasses.field(default_factory=list)

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def evaluate(self, student: nn.Module) -> dict[str, float]:
        return {"accuracy": float(sum(p.detach().double().sum() for p in student.parameters()))}

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        self.kept.append(int(best["step"]))

    def save(self, step: int, state: dict[str, Any]) -> None:
        import copy

        self.states[step] = copy.deepcopy(state)


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
) -> tuple[dict[str, torch.Tensor], Recorder]:
    """Train and return the final weights and what was recorded."""
    context = context or LocalContext(torch.device("cpu"))
    subject = trainee(kind, dropout)
    teacher_model = model(4, 12, seed=2).eval()
    rows, recorder = Rows(), Recorder()
    objective = subject.objective
    order = build_order(rows.lengths, config)
    loader = StepLoader(
        rows,
        order,
        rank=context.rank,
        world_size=context.world_size,
        num_steps=total_steps(order, config),
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        start_step=start_step,
        pad_token_id=0,
        teacher=stored_signals(teacher_model, rows, objective) if stored else None,
    )
    teacher = SignalsInBatch() if stored else LiveTeacher(teacher_model, objective.teacher_request)
    precision = Precision(precision_name, context.device)
    program = EncodedProgram(subject, teacher, loader, config, "accuracy")
    train(program, context, precision, recorder, state)
    return {name: value.detach().clone() for name, value in subject.state_dict().items()}, recorder


def stored_signals(
    teacher: nn.Module, rows: Rows, objective: Objective
) -> Callable[[np.ndarray, int | None], dict[Any, torch.Tensor]]:
    """Signals computed row by row beforehand, as a store holds them, padded on request."""
    kept = []
    for row in range(NUM_ROWS):
        inputs = {name: torch.from_numpy(value) for name, value in rows.gather_padded(np.array([row]), 0).items()}
        with torch.no_grad():
            kept.append({s: value[0] for s, value in forward(teacher, inputs, objective.teacher_request).items()})

    def gather(wanted: np.ndarray, length: int | None) -> dict[Any, torch.Tensor]:
        return {
            signal: torch.stack([kept[row][signal] for row in wanted])
            if signal.kind == "logits"
            else padded([kept[row][signal] for row in wanted], signal.kind == "attention", length)
            for signal in objective.teacher_request
        }

    def padded(values: list[torch.Tensor], pairs: bool, length: int | None) -> torch.Tensor:
        longest = length or max(value.shape[1 if pairs else 0] for value in values)
        missing = [longest - value.shape[1 if pairs else 0] for value in values]
        sizes = [(0, rest, 0, rest) if pairs else (0, 0, 0, rest) for rest in missing]
        return torch.stack([nn.functional.pad(value, size) for value, size in zip(values, sizes, strict=True)])

    return gather


def gap(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Largest and mean absolute difference of all weights."""
    assert first.keys() == second.keys()
    differences = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert differences.numel() > 1000
    return float(differences.max()), float(differences.mean())


@pytest.fixture(scope="module", params=list(OBJECTIVES))
def straight(request: pytest.FixtureRequest) -> tuple[str, dict[str, torch.Tensor], Recorder]:
    weights, recorder = run(request.param, settings())
    return request.param, weights, recorder


def test_training_moves_the_weights(straight: Any) -> None:
    kind, weights, recorder = straight
    largest, _ = gap(weights, dict(trainee(kind).state_dict()))
    assert largest > 1e-2
    losses = [record["loss"] for record in recorder.records if record["kind"] == "train"]
    assert len(losses) == 9
    assert sum(losses[6:]) < sum(losses[:3])


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_accumulated_equals_whole_batches(straight: Any, micro_batch_size: int) -> None:
    kind, weights, _ = straight
    cut, _ = run(kind, settings(micro_batch_size=micro_batch_size))
    largest, mean = gap(weights, cut)
    assert largest < 2e-4
    assert mean < 2e-6


def test_stored_equals_live(straight: Any) -> None:
    kind, weights, _ = straight
    stored, _ = run(kind, settings(), stored=True)
    largest, mean = gap(weights, stored)
    assert largest < 2e-4
    assert mean < 2e-6


def test_resumed_is_bit_identical(straight: Any) -> None:
    """Stopped in the middle of an epoch and of a logging window, with dropout on."""
    kind, _, _ = straight
    config = settings(checkpoint_steps=1)
    weights, unbroken = run(kind, config, dropout=0.1)
    for step in (5, 9, 17):
        resumed, recorder = run(kind, config, state=unbroken.states[step], start_step=step, dropout=0.1)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        # A checkpoint comes after everything about its step was logged.
        wanted = [losses_only(record) for record in unbroken.records if record["step"] > step]
        assert [losses_only(record) for record in recorder.records] == wanted


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(straight: Any, precision: str) -> None:
    """Weights stay float32; the losses, computed in float32 from reduced outputs, stay close."""
    kind, weights, recorder = straight
    found, reduced = run(kind, settings(), precision_name=precision)
    assert all(found[name].dtype == weights[name].dtype for name in weights)
    assert gap(weights, found)[0] > 0  # something was computed in the reduced type
    ours = [record["loss"] for record in recorder.records if record["kind"] == "train"]
    theirs = [record["loss"] for record in reduced.records if record["kind"] == "train"]
    if precision == "bf16":
        assert theirs == pytest.approx(ours, rel=0.05, abs=0.02)
    else:  # the scaler of float16 skips the first steps, until its scale fits
        assert theirs[0] == pytest.approx(ours[0], rel=0.2)
        assert sum(theirs[6:]) < sum(theirs[:3])


def test_stop_saves_the_state_between_steps() -> None:
    context = LocalContext(torch.device("cpu"))
    context.stop.set()
    with pytest.raises(Interrupted, match="step 0 of 18") as caught:
        run("logits", settings(), context)
    assert caught.value.exit_code == 130


def test_an_evaluation_may_end_the_training() -> None:
    """Whoever is told of an evaluation may stop there; training goes on from the kept state to the same end."""
    told: list[tuple[int, float]] = []

    def after_the_second(metrics: dict[str, Any]) -> bool:
        told.append((metrics["step"], metrics["share"]))
        return len(told) == 2

    states: dict[int, dict[str, Any]] = {}
    keeping = LocalContext(torch.device("cpu"), on_evaluation=after_the_second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "save", lambda self, step, state: states.update({step: copy.deepcopy(state)}))
        with pytest.raises(Interrupted, match="stopped after step 12 of 18 by its launcher"):
            run("logits", settings(), keeping)
    assert told == [(6, 6 / 18), (12, 12 / 18)]
    resumed, _ = run("logits", settings(), state=states[12], start_step=12)
    weights, _ = run("logits", settings(), LocalContext(torch.device("cpu"), on_evaluation=lambda metrics: False))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_divergence_names_step_and_terms() -> None:
    with pytest.raises(DivergenceError, match=r"step \d+.*loss/kd"):
        run("logits", settings(learning_rate=1e30, max_grad_norm=None))


def losses_only(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what depends on the clock and the machine."""
    clock = ("time", "samples_per_second", "tokens_per_second", "memory_bytes")
    return {name: value for name, value in record.items() if name not in clock}


def _worker(rank: int, world_size: int, kind: str, config: TrainConfig, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        context = DistributedContext(torch.device("cpu"), Path(folder))
        weights, recorder = run(kind, config, context)
        if rank == 0:
            torch.save({"weights": weights, "records": recorder.records}, f"{folder}/result.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_two_workers_equal_one(straight: Any, tmp_path: Path, micro_batch_size: int | None) -> None:
    """45 rows in batches of 8 end on one of 5, so shares differ; micro-batches of 2 leave one worker an empty one."""
    kind, weights, recorder = straight
    config = settings(micro_batch_size=micro_batch_size)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_worker, args=(rank, 2, kind, config, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=100)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = torch.load(tmp_path / "result.pt", weights_only=True)
    largest, mean = gap(weights, found["weights"])
    assert largest < 2e-4
    assert mean < 2e-6
    ours = [record["loss"] for record in recorder.records if record["kind"] == "train"]
    theirs = [record["loss"] for record in found["records"] if record["kind"] == "train"]
    assert theirs == pytest.approx(ours, abs=1e-4)
