"""BERT-EMD from an experiment file: stored as live, resumed bit for bit, two workers as one, EMDDistiller's numbers."""

from __future__ import annotations

import multiprocessing
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import EMD, Measuring, Recorder, gap, losses_only, run, settings, trainee

from raybrew import DistillationConfig, EMDDistiller, TrainingConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.terms import EMDConfig
from raybrew.distillers.emd import emd_terms
from raybrew.distillers.objective import build_objective
from raybrew.errors import DivergenceError, LossError
from raybrew.models.shapes import TeacherDims
from raybrew.signals import Signal
from raybrew.training import evaluation
from raybrew.training.context import DistributedContext

STUDENT, TEACHER = TeacherDims(2, 8, 2, 16), TeacherDims(4, 12, 2, 24)


@pytest.fixture(scope="module")
def straight() -> tuple[dict[str, torch.Tensor], Recorder]:
    return run("emd", settings(checkpoint_steps=1), dropout=0.1)


def layer_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.endswith(("student_weights", "teacher_weights"))}


def test_training_moves_student_projections_and_layer_weights(straight: Any) -> None:
    weights, recorder = straight
    before = trainee("emd").state_dict()
    moved = layer_weights(weights)
    assert len(moved) == 4
    assert all(float((value - before[name]).abs().max()) > 1e-3 for name, value in moved.items())
    assert all(float(value.sum()) == pytest.approx(1.0) for value in moved.values())
    projections = [name for name in before if ".projections." in name and name.endswith("weight")]
    assert len(projections) == 3
    assert all(not torch.equal(weights[name], before[name]) for name in projections)
    records = [record for record in recorder.records if record["kind"] == "train"]
    for term in ("emd.hidden", "emd.attention", "emd.embeddings"):
        assert records[-1][f"loss/{term}"] < 0.8 * records[0][f"loss/{term}"], term


def test_resumed_is_bit_identical(straight: Any) -> None:
    weights, unbroken = straight
    for step in (5, 9, 17):
        state = unbroken.states[step]
        resumed, recorder = run("emd", settings(checkpoint_steps=1), state=state, start_step=step, dropout=0.1)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        wanted = [losses_only(record) for record in unbroken.records if record["step"] > step]
        assert [losses_only(record) for record in recorder.records] == wanted


def test_stored_equals_live() -> None:
    live, _ = run("emd", settings())
    stored, _ = run("emd", settings(), stored=True)
    largest, mean = gap(live, stored)
    assert largest < 2e-4
    assert mean < 2e-6


@pytest.mark.parametrize(("update", "evaluating"), [(True, False), (True, True), (False, False)])
def test_only_training_moves_layer_weights(update: bool, evaluating: bool) -> None:
    terms, modules = emd_terms(EMDConfig(update_weights=update), STUDENT, TEACHER, torch.Generator())
    layers: Any = modules["emd_hidden"].train(not evaluating)
    generator = torch.Generator().manual_seed(0)
    student = {Signal("hidden", i): torch.randn(2, 3, 8, generator=generator) for i in range(3)}
    teacher = {Signal("hidden", i): torch.randn(2, 3, 12, generator=generator) for i in range(5)}
    terms[0].compute(student, teacher, {"attention_mask": torch.ones(2, 3), "logits_mask": torch.ones(2)})
    assert bool((layers.teacher_weights == 0.25).all()) is not (update and not evaluating)


def test_what_does_not_fit_is_told() -> None:
    def made(student: TeacherDims, **emd: Any) -> Any:
        return build_objective(DistillConfig(emd=EMDConfig(**emd)), dims=(student, TEACHER))

    with pytest.raises(LossError, match="student's layers are 8 wide, the teacher's 12; use projection: auto"):
        made(STUDENT, projection="none")
    with pytest.raises(LossError, match=r"distill.emd.attention: the student has 4 attention heads, the teacher 2"):
        made(STUDENT._replace(heads=4), attention=1.0)
    assert made(STUDENT._replace(heads=4)).teacher_request == {
        Signal("logits"),
        *(Signal("hidden", layer) for layer in range(5)),
    }


def test_a_cost_that_is_no_number_names_the_step() -> None:
    def change(program: Any) -> None:
        targets = program.targets

        def poisoned(micro: Any) -> Any:
            return {signal: value * float("nan") for signal, value in targets(micro).items()}

        program.targets = poisoned

    with pytest.raises(DivergenceError) as caught:
        run("emd", settings(), change=change)
    assert caught.value.step == 1
    assert caught.value.example_ids


def test_numbers_are_those_of_the_distiller(tmp_path: Path) -> None:
    """Distance, embeddings and layer weights over several batches, masks included."""
    given = {"layer_num_S": 3, "layer_num_T": 5, "feature": "hidden", "loss": "hidden_mse", "weight": 1.0}
    model = torch.nn.Linear(1, 1)
    config = TrainingConfig(output_dir=str(tmp_path / "out"), log_dir=None)
    one = EMDDistiller(
        config,
        DistillationConfig(),
        model,
        model,
        lambda batch, outputs: {},
        lambda batch, outputs: {},
        emd={**given, "proj": ["linear", 8, 12]},
    )
    (distance, embeddings), modules = emd_terms(EMDConfig(), STUDENT, TEACHER, torch.Generator().manual_seed(1))
    layers: Any = modules["emd_hidden"]
    emd: Any = one._emd
    layers.load_state_dict(emd.layers.state_dict())
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        mask = (torch.arange(6) < torch.tensor([[6], [2], [4]])).float()
        student = [torch.randn(3, 6, 8, generator=generator) for _ in range(3)]
        teacher = [torch.randn(3, 6, 12, generator=generator) * (1 + layer) for layer in range(5)]
        adapted = [
            types.SimpleNamespace(layers={("hidden", i): value for i, value in enumerate(values)}, inputs_mask=mask)
            for values in (student, teacher)
        ]
        signals = [{Signal("hidden", i): value for i, value in enumerate(values)} for values in (student, teacher)]
        batch = {"attention_mask": mask, "logits_mask": torch.ones(3)}
        for ours, theirs in ((distance, emd.distance), (embeddings, emd.embeddings)):
            wanted = theirs(adapted[0], [adapted[1]], None)
            found = ours.compute(signals[0], signals[1], batch)
            assert found.sum.item() == wanted.sum.item()
            assert float(found.count) == float(wanted.count) == 12.0
        assert torch.equal(layers.teacher_weights, emd.layers.teacher_weights)
        assert torch.equal(layers.student_weights, emd.layers.student_weights)
    assert float((layers.teacher_weights - 0.25).abs().max()) > 1e-2


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        context = DistributedContext(torch.device("cpu"), Path(folder))
        evaluation._COMPARED_TOKENS = 60  # an odd number of batches
        for parallel in ("ddp", "fsdp"):
            recorder = Measuring(kind="emd", context=context)
            weights, _ = run("emd", settings(parallel=parallel), context, recorder=recorder)
            torch.save(weights, f"{folder}/{parallel}-{rank}.pt")
            if rank == 0:
                torch.save(recorder.records[-1], f"{folder}/{parallel}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_workers_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow is that of all ranks' rows; layer weights are equal on both, bit for bit."""
    monkeypatch.setattr(evaluation, "_COMPARED_TOKENS", 60)
    assert EMD.emd is not None
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=150)
    assert [process.exitcode for process in workers] == [0, 0]
    alone, _ = run("emd", settings())
    for parallel in ("ddp", "fsdp"):
        first, second = (torch.load(tmp_path / f"{parallel}-{rank}.pt", weights_only=True) for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in layer_weights(first))
        largest, mean = gap(alone, first)
        assert largest < 2e-4
        assert mean < 2e-6
        # Each worker evaluates batches of its own, whose flows are those that one worker finds.
        subject = trainee("emd")
        subject.load_state_dict(first)
        losses = Measuring(kind="emd").evaluate(subject).losses
        last = torch.load(tmp_path / f"{parallel}.pt", weights_only=True)
        assert {name: last[f"eval/{name}"] for name in losses} == pytest.approx(losses, rel=1e-5)
