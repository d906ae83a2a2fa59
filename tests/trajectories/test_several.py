"""Several teachers and several tasks follow one trajectory: stored or live, one worker or two, unbroken or resumed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Recorder, Rows, gap, losses_only, model, settings, stored_signals

from raybrew.config import DistillConfig, KDLossConfig, MatchConfig
from raybrew.data.loader import StepLoader
from raybrew.data.multi_task import MultiTaskLoader, TaskSchedule
from raybrew.distillers.ensemble import Average, Ensemble, EnsembleSignals, request_of_member
from raybrew.distillers.matches import resolve_matches
from raybrew.distillers.objective import Objective, build_objective, in_stages
from raybrew.distillers.teachers import LiveTeacher
from raybrew.models.composite import MultiTaskStudent
from raybrew.tasks.heads import ItemHead
from raybrew.training.context import Context, DistributedContext, LocalContext
from raybrew.training.encoded import EncodedProgram, Trainee, build_order, total_steps
from raybrew.training.loop import train
from raybrew.training.multi_task import MultiTaskProgram, MultiTaskTrainee
from raybrew.training.optim import Precision
from raybrew.training.parallel import full_state
from raybrew.training.stages import Stages

#: Members of different depth and width, and their weights.
MEMBERS = {"big": (4, 12, 2.0), "small": (3, 8, 1.0)}
DISTILL = DistillConfig(
    temperature=3.0,
    kd_loss=KDLossConfig(kind="kl"),
    hard_label_weight=0.1,
    matches=(
        MatchConfig(loss="hidden_mse", teacher="big"),
        MatchConfig(loss="cos", layers="last", teacher="small"),
    ),
)


def objective() -> Objective:
    matches = resolve_matches(DISTILL.matches, 2, {name: layers for name, (layers, _, _) in MEMBERS.items()})
    assert {match.teacher.teacher for match in matches} == set(MEMBERS)
    widths = {match.teacher: MEMBERS[str(match.teacher.teacher)][1] for match in matches}
    return build_objective(DISTILL, matches, {match.student: 8 for match in matches}, widths, seed=3)


def train_by_several(average: str, stored: set[str]) -> dict[str, torch.Tensor]:
    """Final weights of a student of both members, of which those in `stored` answer from what was kept."""
    config, rows, subject = settings(), Rows(), Trainee(model(2, 8, seed=1), objective())
    kept: dict[str, Any] = {}
    live: dict[str, Any] = {}
    for seed, (name, (layers, hidden, weight)) in enumerate(MEMBERS.items()):
        teacher = model(layers, hidden, seed=10 + seed).eval()
        teacher.classifier.weight.data.mul_(20)  # sure of itself, so that what is averaged matters
        asked = request_of_member(subject.objective.teacher_request, name, weight)
        if name in stored:
            kept[name] = stored_signals(teacher, rows, asked)
        else:
            live[name] = LiveTeacher(teacher, asked)
    weights = {name: weight for name, (_, _, weight) in MEMBERS.items()}
    rule = Average(weights, average, DISTILL.temperature)  # type: ignore[arg-type]
    order = build_order(rows.lengths, config)
    loader = StepLoader(
        rows,
        order,
        rank=0,
        world_size=1,
        num_steps=total_steps(order, config),
        pad_token_id=0,
        teacher=EnsembleSignals(kept) if kept else None,
    )
    context = LocalContext(torch.device("cpu"))
    program = EncodedProgram(subject, Ensemble(live, rule), loader, config, "accuracy")
    train(program, context, Precision("fp32", context.device), Recorder())
    return {name: value.detach().clone() for name, value in full_state(subject).items()}


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_several_teachers_stored_equal_live(average: str) -> None:
    start = {name: value.clone() for name, value in Trainee(model(2, 8, seed=1), objective()).state_dict().items()}
    live = train_by_several(average, set())
    assert gap(start, live)[0] > 1e-2  # it learnt something
    for stored in ({"big"}, set(MEMBERS)):
        largest, mean = gap(live, train_by_several(average, stored))
        assert largest < 2e-4
        assert mean < 2e-6


def test_averages_and_weights_matter() -> None:
    logits = train_by_several("logits", set())
    assert gap(logits, train_by_several("probabilities", set()))[0] > 1e-4


TASKS = ("rows", "words")


class _Fewer(Rows):
    """A smaller task."""

    def __init__(self, items: bool) -> None:
        super().__init__(items)
        self.lengths = self.lengths[:20]


def heads(dropout: float = 0.0) -> dict[str, Any]:
    """A model for each task, before they share their encoder."""
    return {
        name: model(2, 8, seed=1 + place, dropout=dropout, items=name == "words") for place, name in enumerate(TASKS)
    }


def train_several_tasks(
    config: Any,
    context: Context | None = None,
    state: Mapping[str, Any] | None = None,
    start: int = 0,
    dropout: float = 0.0,
    staged: bool = False,
) -> tuple[dict[str, torch.Tensor], Recorder]:
    """A student that classifies rows and tags words on one encoder, with a teacher for each; layers first if staged."""
    context = context or LocalContext(torch.device("cpu"))
    data: dict[str, Rows] = {"rows": Rows(), "words": _Fewer(items=True)}
    models = {
        name: model(2, 8, seed=1 + place, dropout=dropout, items=name == "words") for place, name in enumerate(TASKS)
    }
    objectives, teachers, orders = {}, {}, {}
    for place, name in enumerate(TASKS):
        matches = resolve_matches((MatchConfig(loss="hidden_mse"),), 2, 4)
        layers = {"kd_weight": 0.0, "hard_label_weight": 0.0}
        distill = DistillConfig(kd_loss=KDLossConfig(kind="kl"), hard_label_weight=0.3)
        stages: list[Objective] = []
        for part in [distill.model_copy(update=layers), distill] if staged else [distill]:
            stages.append(
                build_objective(
                    part,
                    matches,
                    {match.student: 8 for match in matches},
                    {match.teacher: 12 for match in matches},
                    seed=3,
                    head=ItemHead() if name == "words" else None,
                    earlier=dict(stages[0].projections.items()) if stages else None,
                )
            )
        objectives[name] = in_stages(stages)
        teacher = model(4, 12, seed=20 + place, items=name == "words").eval()
        teachers[name] = [LiveTeacher(teacher, stage.teacher_request) for stage in stages]
        orders[name] = build_order(data[name].lengths, config)
    schedule = TaskSchedule(orders, 0.5, config.seed)
    num_steps = total_steps(schedule, config)
    done = schedule.before(start)
    loaders = {
        name: StepLoader(
            data[name],
            orders[name],
            rank=context.rank,
            world_size=context.world_size,
            num_steps=num_steps,
            micro_batch_size=config.micro_batch_size,
            start_step=done[name],
            pad_token_id=0,
        )
        for name in TASKS
    }
    subject = MultiTaskTrainee(MultiTaskStudent(models), objectives, {"rows": 1.0, "words": 0.5})
    loader = MultiTaskLoader(loaders, schedule, num_steps, start)
    ends = (num_steps // 2, num_steps) if staged else (num_steps,)
    parts = Stages(ends, ("layers", "logits"), (None, None)) if staged else None
    program = MultiTaskProgram(subject, teachers, loader, config, "accuracy", parts)
    recorder = Recorder()
    train(program, context, Precision("fp32", context.device), recorder, state)
    return {name: value.detach().clone() for name, value in full_state(subject).items()}, recorder


@pytest.fixture(scope="module")
def straight() -> tuple[dict[str, torch.Tensor], Recorder]:
    return train_several_tasks(settings(epochs=4))


def test_every_task_learns_in_its_own_steps(straight: Any) -> None:
    """Each head moves, the encoder is shared, and lines name the tasks that had steps."""
    weights, recorder = straight
    fresh = MultiTaskStudent(
        {name: model(2, 8, seed=1 + place, items=name == "words") for place, name in enumerate(TASKS)}
    )
    start = fresh.state_dict()
    for name in TASKS:
        key = f"models.{name}.classifier.weight"
        assert float((weights[f"student.{key}"] - start[key]).abs().max()) > 1e-3
    shared = [key for key in weights if ".encoder." in key and ".rows." in key]
    assert shared
    assert all(torch.equal(weights[key], weights[key.replace(".rows.", ".words.")]) for key in shared)
    lines = [record for record in recorder.records if record["kind"] == "train"]
    named = [{key.split("/")[1].split(".")[0] for key in line if key.startswith("loss/")} for line in lines]
    assert all(names <= set(TASKS) and names for names in named)
    assert set().union(*named) == set(TASKS)
    assert any(len(names) == 1 for names in named)  # two steps of one task in a line of two steps


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_several_tasks_accumulated_equal_whole_batches(straight: Any, micro_batch_size: int) -> None:
    cut, _ = train_several_tasks(settings(epochs=4, micro_batch_size=micro_batch_size))
    largest, mean = gap(straight[0], cut)
    assert largest < 2e-4
    assert mean < 2e-6


def test_several_tasks_resume_bit_for_bit() -> None:
    """Stopped in the middle of an epoch, with dropout on."""
    config = settings(epochs=3, checkpoint_steps=1)
    weights, unbroken = train_several_tasks(config, dropout=0.1)
    for step in (5, 11, 17):
        resumed, recorder = train_several_tasks(config, state=unbroken.states[step], start=step, dropout=0.1)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        wanted = [losses_only(record) for record in unbroken.records if record["step"] > step]
        assert wanted
        assert [losses_only(record) for record in recorder.records] == wanted


def test_several_tasks_in_stages() -> None:
    """No head learns while layers alone are compared; stopped around the border, the run goes on bit for bit."""
    config = settings(epochs=3, checkpoint_steps=1)
    weights, unbroken = train_several_tasks(config, dropout=0.1, staged=True)
    border = max(unbroken.states) // 2
    early, later = (
        [record for record in unbroken.records if record["kind"] == "train" and record["stage"] == stage]
        for stage in ("layers", "logits")
    )
    assert early[-1]["step"] == border
    assert not any(key.endswith((".kd", ".label")) for record in early for key in record)
    assert {"loss/rows.kd", "loss/words.label", "loss/rows.hidden_mse.2-4"} <= {
        key for record in later for key in record
    }
    first, last = (unbroken.states[step]["trainee"] for step in (1, border))
    for name in TASKS:
        key = f"student.models.{name}.classifier.weight"
        assert torch.equal(first[key], last[key])
        assert not torch.equal(last[key], weights[key])
    moved = [key for key in first if "projections" in key and not torch.equal(last[key], weights[key])]
    assert len(moved) == sum("projections" in key for key in first) > 0
    for step in (border - 1, border, border + 2):
        resumed, recorder = train_several_tasks(
            config, state=unbroken.states[step], start=step, dropout=0.1, staged=True
        )
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        wanted = [losses_only(record) for record in unbroken.records if record["step"] > step]
        assert [losses_only(record) for record in recorder.records] == wanted


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        context = DistributedContext(torch.device("cpu"), Path(folder))
        for size in (None, 2):
            weights, recorder = train_several_tasks(settings(epochs=4, micro_batch_size=size), context)
            if rank == 0:
                torch.save({"weights": weights, "records": recorder.records}, f"{folder}/{size}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_several_tasks_on_two_workers_equal_one(straight: Any, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=100)
    assert [worker.exitcode for worker in workers] == [0, 0]
    weights, recorder = straight
    ours = [record["loss"] for record in recorder.records if record["kind"] == "train"]
    assert len(ours) > 10
    for size in (None, 2):
        found = torch.load(tmp_path / f"{size}.pt", weights_only=True)
        largest, mean = gap(weights, found["weights"])
        assert largest < 2e-4
        assert mean < 2e-6
        theirs = [record["loss"] for record in found["records"] if record["kind"] == "train"]
        assert theirs == pytest.approx(ours, abs=1e-4)
