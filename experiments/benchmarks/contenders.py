"""What the training benchmark compares: bare loops (floors), raybrew from the store and live, TextBrewer.

Each contender trains one epoch over the same rows from the same weights and returns its seconds; making models, batches
and the store is not timed. None evaluates or saves. Floors see raybrew's own batches, as tensors that are ready.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gzip
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybrew.config.loading import build_experiment
from raybrew.data.loader import MicroBatch
from raybrew.models.forward import forward
from raybrew.models.loading import ModelSource, load_model
from raybrew.pipeline.inputs import Inputs, TeacherInput
from raybrew.pipeline.objective import likely_objective
from raybrew.pipeline.reporter import QuietReporter
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.rows import read_rows
from raybrew.pipeline.teachers import capture_table
from raybrew.pipeline.units import encode
from raybrew.runs.program import Parts, RunSpec, build_parts, build_program
from raybrew.signals import LOGITS, Signal
from raybrew.training.context import LocalContext
from raybrew.training.encoded import EncodedProgram
from raybrew.training.evaluation import Evaluation
from raybrew.training.loop import train
from raybrew.training.optim import Precision
from raybrew.training.run_folder import RunFolder

__all__ = ["Bench", "Settings", "textbrewer_epoch"]

#: The student: 4 layers, 312 wide (TextBrewer's T4-tiny).
SHAPE = {"layers": 4, "hidden": 312, "heads": 12, "feed_forward": 1200}
TEMPERATURE = 4.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and on what."""

    data: Path
    teacher: Path  #: a Hugging Face folder; its head is made anew
    rows: int
    batch_size: int
    device: str
    precision: str
    compile: bool
    hidden: bool  #: match hidden states of all layers, not logits alone
    clip: float | None
    max_length: int = 128
    seed: int = 0


class Bench:
    """Models, rows and store of one setting, made in `folder`."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.context = LocalContext(torch.device(settings.device))
        self.device = self.context.device
        rows = _sample(settings.data, settings.rows, settings.seed)
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.source = ModelSource(str(_teacher(settings, folder / "teacher")))
        self.teacher = load_model(self.source, "classification").eval().to(self.device)
        depth, student_depth = self.teacher.config.num_hidden_layers, SHAPE["layers"]
        #: [student layer, teacher layer], 0 being the embeddings.
        self.pairs = (
            [[i, round(i * depth / student_depth)] for i in range(student_depth + 1)] if settings.hidden else []
        )
        matches = [{"loss": "hidden_mse", "layers": self.pairs, "projection": "linear"}] if settings.hidden else []
        self.experiment = build_experiment(
            {
                "name": "benchmark",
                "data": {"train": str(folder / "train.jsonl")},
                "task": {"max_length": settings.max_length},
                "teacher": {"model": self.source.model, "device": settings.device, "precision": settings.precision},
                "student": {"shape": SHAPE, "init": "random"},
                "distill": {"temperature": TEMPERATURE, "matches": matches},
                "train": {
                    "epochs": 1,
                    "batch_size": settings.batch_size,
                    "max_grad_norm": settings.clip,
                    "device": settings.device,
                    "precision": settings.precision,
                    "compile": settings.compile,
                    "seed": settings.seed,
                },
                "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
            }
        )
        self.resolved = resolve(self.experiment)
        (task,) = self.resolved.tasks
        loaded = read_rows(task, self.source, _silent)
        self.rows = encode(task, loaded.training, self.source)
        request = likely_objective(task, loaded.labels.names, self.source).teacher_union
        self.store = capture_table(task, task.teachers[0], loaded.training, request, loaded.labels, QuietReporter())
        self.inputs = Inputs(loaded.labels, self.rows, None, loaded.num_labelled, 0)
        parts, program = self._program(live=False)
        self.student, self.tokenizer = copy.deepcopy(program.trainee.student), parts.tokenizer
        self.request = program.trainee.objective.teacher_request
        self.student_request = program.trainee.objective.student_request
        self.num_steps = program.num_steps
        self.ready: list[MicroBatch] = []  # raybrew's batches as tensors on the device, teacher's outputs in float32
        for step in program.loader.steps():
            micro = step.micro_batches[0].to(self.device)
            teacher = {signal: value.float() for signal, value in micro.teacher.items()}
            self.ready.append(MicroBatch(micro.rows, micro.inputs, teacher))

    def _program(self, live: bool) -> tuple[Parts, EncodedProgram]:
        """What `raybrew distill` trains, with the student's first weights."""
        kept = {} if live else {"store": str(self.store.path), "fingerprint": self.store.fingerprint}
        teacher = TeacherInput(self.source, precision=self.settings.precision, **kept)
        inputs = dataclasses.replace(self.inputs, teachers=(teacher,))
        train_config = self.experiment.train
        run = RunFolder.of(self.experiment, "distill")
        spec = RunSpec(self.resolved, "distill", train_config, run, (inputs,), self.source, vocabulary=None)
        parts = build_parts(spec, self.context)
        return parts, build_program(spec, parts, 0, self.context)

    def amp(self) -> contextlib.AbstractContextManager[Any]:
        return Precision(self.settings.precision, self.device).autocast()

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def raybrew(self, live: bool, watch: Any = None) -> Callable[[], float]:
        """One epoch of raybrew's own loop; with `watch` its parts are timed."""
        _, program = self._program(live)
        precision = Precision(self.settings.precision, self.device)

        def epoch() -> float:
            with watch.attached(program) if watch is not None else contextlib.nullcontext():
                self.sync()
                started = time.perf_counter()
                train(program, self.context, precision, _NoHooks())
                self.sync()
                return time.perf_counter() - started

        return epoch

    def student_floor(self) -> Callable[[], float]:
        """Forward, loss, backward, fused AdamW over ready tensors; nothing else."""
        batches = self.ready
        student = copy.deepcopy(self.student).train()
        request = self.student_request
        torch.manual_seed(self.settings.seed)
        width = self.teacher.config.hidden_size
        maps = nn.ModuleList(nn.Linear(SHAPE["hidden"], width) for _ in self.pairs).to(self.device)
        parameters = [*student.parameters(), *maps.parameters()]
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)

        def epoch() -> float:
            self.sync()
            started = time.perf_counter()
            for batch in batches:
                with self.amp():
                    said = forward(student, batch.inputs, request)
                loss = _kd(said[LOGITS].float(), batch.teacher[LOGITS])
                if self.settings.hidden:
                    loss = loss + _hidden_mse(said, batch, maps, self.pairs)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.sync()
            return time.perf_counter() - started

        return epoch

    def teacher_floor(self) -> Callable[[], float]:
        """The teacher's forward pass in inference mode over ready tensors."""
        batches, request = self.ready, self.request

        def epoch() -> float:
            self.sync()
            started = time.perf_counter()
            with torch.inference_mode(), self.amp():
                for batch in batches:
                    forward(self.teacher, batch.inputs, request)
            self.sync()
            return time.perf_counter() - started

        return epoch

    def texts(self) -> list[dict[str, Any]]:
        """Token ids of each row, as a script of TextBrewer's user prepares them."""
        gathered = self.rows.gather(range(self.rows.num_rows))
        ids, lengths = gathered["input_ids"]
        ends = lengths.cumsum()
        return [{"input_ids": ids[end - n : end].tolist()} for end, n in zip(ends, lengths, strict=True)]


def textbrewer_epoch(bench: Bench, length: int | None, folder: Path) -> Callable[[], float]:
    """TextBrewer's GeneralDistiller over the same rows in random order, padded to the longest or to `length`."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    settings = bench.settings

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        arguments = {"padding": "longest"} if length is None else {"padding": "max_length", "max_length": length}
        batch: dict[str, Tensor] = bench.tokenizer.pad(rows, return_tensors="pt", **arguments)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        said: dict[str, Any] = {"logits": outputs.logits}
        if settings.hidden:
            said |= {"hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}
        return said

    matches = [
        {
            "layer_S": student,
            "layer_T": teacher,
            "feature": "hidden",
            "loss": "hidden_mse",
            "weight": 1,
            "proj": ["linear", SHAPE["hidden"], bench.teacher.config.hidden_size],
        }
        for student, teacher in bench.pairs
    ]
    student = copy.deepcopy(bench.student)
    teacher = copy.deepcopy(bench.teacher)
    loader = torch.utils.data.DataLoader(
        bench.texts(), batch_size=settings.batch_size, shuffle=True, collate_fn=collate
    )
    distiller = GeneralDistiller(
        TrainingConfig(
            output_dir=str(folder / "textbrewer"), log_dir=None, device=settings.device, ckpt_epoch_frequency=1000
        ),
        DistillationConfig(temperature=TEMPERATURE, intermediate_matches=matches),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.01)
    # Its step norm is 0 (no clipping) unless a script asks for it.
    arguments = {"output_hidden_states": settings.hidden}

    def epoch() -> float:
        with _without_writing():
            bench.sync()
            started = time.perf_counter()
            with distiller:
                distiller.train(
                    optimizer, loader, num_epochs=1, callback=None, max_grad_norm=settings.clip or -1.0, **arguments
                )
            bench.sync()
            return time.perf_counter() - started

    return epoch


@contextlib.contextmanager
def _without_writing() -> Iterator[None]:
    """TextBrewer saves the student at the end of training; nobody else in this benchmark saves."""
    save, torch.save = torch.save, lambda *_, **__: None
    try:
        yield
    finally:
        torch.save = save


class _NoHooks:
    def log(self, record: dict[str, Any]) -> None:
        return None

    def evaluate(self, trainee: Any) -> Evaluation:
        return Evaluation({}, {})

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        return None

    def save(self, step: int, state: dict[str, Any]) -> None:
        return None


def _kd(student: Tensor, teacher: Tensor) -> Tensor:
    wanted = functional.softmax(teacher / TEMPERATURE, dim=-1)
    return -(wanted * functional.log_softmax(student / TEMPERATURE, dim=-1)).sum(dim=-1).mean() * TEMPERATURE**2


def _hidden_mse(said: Any, batch: MicroBatch, maps: Any, pairs: Any) -> Tensor:
    mask = batch.inputs["attention_mask"].unsqueeze(-1)
    total = torch.zeros((), device=mask.device)
    for mapped, (student, teacher) in zip(maps, pairs, strict=True):
        gap = mapped(said[Signal("hidden", student)].float()) - batch.teacher[Signal("hidden", teacher)]
        total = total + (gap.square() * mask).sum() / (mask.sum() * gap.shape[-1])
    return total


def _sample(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [rows[index] for index in order]


def _teacher(settings: Settings, folder: Path) -> Path:
    """The teacher with a head of two classes: speed does not depend on what it has learnt."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    names = {0: "negative", 1: "positive"}
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.teacher, num_labels=2, id2label=names, label2id={name: number for number, name in names.items()}
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(settings.teacher).save_pretrained(folder)
    return folder


def _silent(message: str) -> None:
    return None
