"""Two gloo processes follow the trajectory of one: DDP, FSDP, accumulation, other numbers of workers on resuming.

One pair of processes runs all trainings, as starting them takes longer than what they do.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import OBJECTIVES, Measuring, Recorder, Rows, gap, run, settings, trainee

from raybrew.errors import DivergenceError
from raybrew.tasks.heads import ClassHead, ItemHead
from raybrew.training import evaluation
from raybrew.training.context import Context, DistributedContext, LocalContext
from raybrew.training.optim import Precision

RESUMED_AT = 9


@dataclasses.dataclass(frozen=True)
class Case:
    """One training of two workers."""

    kind: str
    parallel: str = "ddp"
    micro_batch_size: int | None = None
    batch_tokens: int | None = None
    resumed: bool = False  #: from the state that one worker left

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self)).replace(" ", "_")

    def settings(self, alone: bool = False) -> Any:
        parallel = "ddp" if alone else self.parallel
        return settings(
            parallel=parallel,
            micro_batch_size=self.micro_batch_size,
            batch_tokens=self.batch_tokens,
            checkpoint_steps=RESUMED_AT,
        )


# 45 rows in batches of 8 end on one of 5, so shares differ; micro-batches of 2 leave one worker an empty one.
CASES = [
    *(Case(kind, micro_batch_size=size) for kind in OBJECTIVES for size in (None, 2)),
    *(Case(kind, "fsdp") for kind in OBJECTIVES),
    Case("hidden", "fsdp", micro_batch_size=2),
    *(Case("theseus", micro_batch_size=size) for size in (None, 2)),
    Case("hidden", batch_tokens=48),
    *(Case("hidden", parallel, resumed=True) for parallel in ("ddp", "fsdp")),
]


class Evaluating(Measuring):
    """Evaluates by all workers together, in an odd number of batches."""

    def __init__(self, context: Context, kind: str) -> None:
        super().__init__(kind=kind, context=context)
        self.rows = Rows(kind == "tagging")
        self.head = ItemHead() if kind == "tagging" else ClassHead()

    def evaluate(self, trainee: Any) -> evaluation.Evaluation:
        with pytest.MonkeyPatch.context() as patch:
            for limit in ("_BATCH_TOKENS", "_COMPARED_TOKENS"):
                patch.setattr(evaluation, limit, 60)
            every = np.arange(len(self.rows.lengths))
            assert len(list(evaluation._batches(self.rows.lengths, every, 60))) % 2 == 1
            found = super().evaluate(trainee)
            precision = Precision("fp32", self.context.device)
            logits = evaluation.compute_logits(trainee.student, self.rows, 0, self.context, precision, self.head)
        alone = float(np.abs(np.concatenate([np.atleast_2d(row) for row in logits])).mean())
        assert found.metrics["accuracy"] == pytest.approx(alone, rel=1e-5), "one pass for both gives the same logits"
        return found


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        context = DistributedContext(torch.device("cpu"), Path(folder))
        for case in CASES:
            state = torch.load(f"{folder}/{case.kind}.pt", weights_only=True) if case.resumed else None
            start = RESUMED_AT if case.resumed else 0
            recorder = Evaluating(context, case.kind)
            weights, _ = run(case.kind, case.settings(), context, state, start, recorder=recorder)
            if rank == 0:
                found = {"weights": weights, "records": recorder.records, "state": recorder.states.get(RESUMED_AT)}
                torch.save(found, f"{folder}/{case.name}.pt")
        for name, check in (("overflow", overflow), ("divergence", divergence)):
            torch.save([check(rank, parallel, context) for parallel in ("ddp", "fsdp")], f"{folder}/{name}-{rank}.pt")
        torch.distributed.barrier()
        # All is on the disk. gloo's threads may abort a process that takes its groups down while the other one still
        # has its connections open, which says nothing of what is tested here.
        os._exit(0)
    finally:
        torch.distributed.destroy_process_group()


def overflow(rank: int, parallel: str, context: DistributedContext) -> dict[str, Any]:
    """float16 losses: in step 4 one weight's gradient overflows in worker 1 alone."""
    now, weights_seen = [0], []

    def change(program: Any) -> None:
        start = program.start_step

        def start_step(step: int, number: int) -> None:
            now[0] = step
            start(step, number)

        program.start_step = start_step
        weight = program.trainee.student.classifier.weight
        weights_seen.append(weight)
        if parallel == "ddp":  # before gradients are averaged
            weight.register_hook(lambda grad: grad * float("inf") if now[0] == 4 and rank == 1 else grad)

    scales: list[float] = []
    update, unscale = torch.amp.GradScaler.update, torch.amp.GradScaler.unscale_

    def watch(self: Any, *given: Any) -> None:
        update(self, *given)
        scales.append(self.get_scale())

    def spoil(self: Any, optimizer: Any) -> None:
        if parallel == "fsdp" and now[0] == 4 and rank == 1:  # in the part of the gradient that this worker has
            weights_seen[0].grad.to_local().view(-1)[0] = float("inf")
        unscale(self, optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Precision, "__init__", _small_scale)
        patch.setattr(torch.amp.GradScaler, "update", watch)
        patch.setattr(torch.amp.GradScaler, "unscale_", spoil)
        config = settings(max_steps=6, parallel=parallel)
        weights, _ = run("logits", config, context, precision_name="fp16", change=change)
    return {"scales": scales, "finite": all(bool(torch.isfinite(value).all()) for value in weights.values())}


def _small_scale(self: Precision, name: str, device: torch.device) -> None:
    self.name, self.device = name, device
    self.scaler = torch.amp.GradScaler(device.type, init_scale=16.0, enabled=name == "fp16")


def divergence(rank: int, parallel: str, context: DistributedContext) -> dict[str, Any]:
    """A NaN in the teacher's outputs of worker 1 alone."""

    def change(program: Any) -> None:
        targets, start, now = program.targets, program.start_step, [0]

        def start_step(step: int, number: int) -> None:
            now[0] = step
            start(step, number)

        def poisoned(micro: Any) -> Any:
            factor = float("nan") if now[0] == 4 and context.rank == 1 else 1.0
            return {signal: value * factor for signal, value in targets(micro).items()}

        program.targets, program.start_step = poisoned, start_step

    try:
        run("logits", settings(parallel=parallel), context, change=change, recorder=Recorder())
    except DivergenceError as error:
        return {"step": error.step, "ids": list(error.example_ids), "message": str(error)}
    return {}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two workers made of each case."""
    folder = tmp_path_factory.mktemp("two")
    for kind in {case.kind for case in CASES if case.resumed}:
        _, recorder = run(kind, Case(kind).settings())
        torch.save(recorder.states[RESUMED_AT], folder / f"{kind}.pt")
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=worker, args=(rank, str(folder))) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=280)
    assert [process.exitcode for process in workers] == [0, 0]
    return folder


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_workers_equal_one(together: Path, case: Case) -> None:
    recorder = Evaluating(LocalContext(torch.device("cpu")), case.kind)
    weights, _ = run(case.kind, case.settings(alone=True), recorder=recorder)
    found = torch.load(together / f"{case.name}.pt", weights_only=True)
    largest, mean = gap(weights, found["weights"])
    assert largest < 2e-4
    assert mean < 2e-6
    start = RESUMED_AT if case.resumed else 0
    ours, theirs = (
        [record["loss"] for record in records if record["kind"] == "train" and record["step"] > start]
        for records in (recorder.records, found["records"])
    )
    assert theirs
    assert theirs == pytest.approx(ours, abs=1e-4)
    values = [
        [r["eval/accuracy"] for r in records if r["kind"] == "eval"] for records in (recorder.records, found["records"])
    ]
    assert values[1][-1] == pytest.approx(values[0][-1], abs=1e-2)
    # What two workers add up is what one finds for the very weights that they came to.
    subject = trainee(case.kind)
    subject.load_state_dict(found["weights"])
    subject.objective.enter(len(subject.objective.stages) - 1)
    alone = recorder.evaluate(subject).losses
    assert len(alone) == 1 + len(subject.objective.terms)
    last = found["records"][-1]
    assert last["kind"] == "eval"
    assert {name: last[f"eval/{name}"] for name in alone} == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_worker_goes_on_from_what_two_left(together: Path, parallel: str) -> None:
    case = Case("hidden", parallel)
    found = torch.load(together / f"{case.name}.pt", weights_only=True)
    weights, _ = run("hidden", case.settings(alone=True), state=found["state"], start_step=RESUMED_AT)
    largest, mean = gap(weights, found["weights"])
    assert largest < 2e-4
    assert mean < 2e-6


@pytest.mark.parametrize("index", [0, 1], ids=["ddp", "fsdp"])
def test_all_workers_skip_a_step_that_overflows_in_one(together: Path, index: int) -> None:
    ranks = [torch.load(together / f"overflow-{rank}.pt", weights_only=True)[index] for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["scales"] == [16.0] * 4 + [8.0] * 2
    assert ranks[0]["finite"]


@pytest.mark.parametrize("index", [0, 1], ids=["ddp", "fsdp"])
def test_all_workers_tell_of_a_loss_that_is_no_number_in_one(together: Path, index: int) -> None:
    ranks = [torch.load(together / f"divergence-{rank}.pt", weights_only=True)[index] for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["step"] == 5
    assert len(ranks[0]["ids"]) == 8
    assert "loss/kd nan" in ranks[0]["message"]
