"""What `train` does with schedules, batches of every form, modes, checkpoints and logs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    HIDDEN,
    batches,
    distiller,
    examples_adaptor,
    logits_adaptor,
    settings,
    sgd,
    student,
    tags_adaptor,
    teacher,
    weights_of,
    written,
)
from torch import Tensor, nn

import raybrew
from raybrew import (
    BasicDistiller,
    DistillationConfig,
    GeneralDistiller,
    TrainingConfig,
)
from raybrew.errors import ConfigError, LossError
from raybrew.training.context import LocalContext


def test_the_script_of_old(tmp_path: Path) -> None:
    """Only the import's name differs from a TextBrewer script."""
    train_config = TrainingConfig(output_dir=str(tmp_path))
    distill_config = DistillationConfig(
        temperature=8,
        intermediate_matches=[
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
            {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
        ],
    )
    teacher_model, student_model = teacher(), student(hidden=12)
    text, tree = raybrew.utils.display_parameters(student_model, max_level=3)
    assert "embeddings" in text
    assert tree
    optimizer = torch.optim.AdamW(student_model.parameters(), lr=1e-2)
    one = GeneralDistiller(
        train_config=train_config,
        distill_config=distill_config,
        model_T=teacher_model,
        model_S=student_model,
        adaptor_T=examples_adaptor,
        adaptor_S=examples_adaptor,
    )
    seen: list[int] = []
    with one:
        one.train(
            optimizer,
            batches(4),
            num_epochs=2,
            scheduler_class=torch.optim.lr_scheduler.LinearLR,
            scheduler_args={"start_factor": 1.0, "end_factor": 0.0, "total_iters": 8},
            callback=lambda model, step: seen.append(step),
        )
    assert seen == [4, 8]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    saved = torch.load(tmp_path / "gs8.pkl", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in student_model.state_dict().items())


@pytest.mark.parametrize(
    ("train", "num_epochs", "num_steps", "steps"),
    [
        ({}, 2, None, [6, 12]),
        ({"ckpt_frequency": 2}, 2, None, [3, 6, 9, 12]),
        ({"ckpt_epoch_frequency": 2}, 3, None, [12, 18]),
        ({"gradient_accumulation_steps": 4}, 2, None, [1, 2]),
        ({"ckpt_steps": 4}, None, 10, [4, 8, 10]),
        ({}, 1, 5, [5]),  # num_steps wins, and without ckpt_steps only the last step is kept
    ],
)
def test_checkpoints(
    tmp_path: Path, train: dict[str, Any], num_epochs: int | None, num_steps: int | None, steps: list[int]
) -> None:
    pupil = student()
    outcome = distiller(tmp_path, pupil, logits_adaptor, train).train(
        sgd(pupil), batches(6), num_epochs=num_epochs, num_steps=num_steps
    )
    assert outcome.steps == steps[-1]
    assert written(tmp_path) == sorted(f"gs{step}.pkl" for step in steps)


def test_modes_are_set_and_restored(tmp_path: Path) -> None:
    pupil, wise = student(dropout=0.5), teacher()
    pupil.eval()
    pupil.pooler.train()
    wise.train()
    modes: list[tuple[bool, bool, bool]] = []

    def callback(model: nn.Module, step: int) -> None:
        modes.append((model is pupil, pupil.training, wise.training))
        model.eval()

    one = GeneralDistiller(settings(tmp_path), DistillationConfig(), wise, pupil, logits_adaptor, logits_adaptor)
    with one as entered:
        assert entered is one
        assert pupil.training
        assert not wise.training
        one.train(sgd(pupil), batches(2), num_epochs=2, callback=callback)
        assert pupil.training
        assert not wise.training
    assert modes == [(True, True, False)] * 2
    assert not pupil.training
    assert pupil.pooler.training
    assert wise.training
    # Without the context manager, `train` sets the modes itself.
    one.train(sgd(pupil), batches(2), num_epochs=1, callback=callback)
    assert modes[2] == (True, True, False)
    assert wise.training


def as_tuples(data: list[dict[str, Tensor]]) -> list[Any]:
    return [(batch["input_ids"], batch["attention_mask"], batch["labels"]) for batch in data]


def tuple_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    named = dict(zip(("input_ids", "attention_mask", "labels"), batch, strict=True))
    return examples_adaptor(named, outputs)


def test_batches_of_every_form_train_alike(tmp_path: Path) -> None:
    data = batches(4)
    wise = teacher()

    def trained(given: Any, adaptor: Any = examples_adaptor, **more: Any) -> Tensor:
        pupil = student()
        one = GeneralDistiller(
            settings(tmp_path), DistillationConfig(hard_label_weight=1), wise, pupil, adaptor, adaptor
        )
        one.train(sgd(pupil), given, num_epochs=2, **more)
        return weights_of(pupil)

    wanted = trained(data)
    assert torch.equal(trained(as_tuples(data), tuple_adaptor), wanted)
    assert torch.equal(trained([list(batch) for batch in as_tuples(data)], tuple_adaptor), wanted)
    assert torch.equal(trained([{"teacher": batch, "student": batch} for batch in data]), wanted)
    assert torch.equal(
        trained(as_tuples(data), batch_postprocessor=lambda b: dict(zip(data[0], b, strict=True))), wanted
    )
    with torch.no_grad():
        cached = [
            {"teacher": {}, "student": batch, "teacher_cache": {**wise(**batch), "loss": torch.zeros(())}}
            for batch in data
        ]

    def split_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return examples_adaptor(batch, outputs) if batch else logits_adaptor(batch, outputs)

    assert torch.equal(trained(cached, split_adaptor), wanted)
    assert not torch.equal(trained(data, scale=2.0), wanted)  # a further argument reaches the models


def test_different_inputs_for_teacher_and_student(tmp_path: Path) -> None:
    """Other lengths and paddings on both sides: unmasked positions are compared in order."""
    pupil, data = student(), []
    for batch in batches(3):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        wider = {"input_ids": nn.functional.pad(ids, (2, 1)), "attention_mask": nn.functional.pad(mask, (2, 1))}
        data.append({"teacher": wider, "student": {"input_ids": ids, "attention_mask": mask}})
    distiller(tmp_path, pupil, tags_adaptor).train(sgd(pupil), data, num_epochs=1)

    data[0]["teacher"]["attention_mask"][0, 2] = 0
    with pytest.raises(LossError, match=r"kd: logits_mask leaves \d+ positions to the student and \d+ to the teacher"):
        distiller(tmp_path, pupil, tags_adaptor).train(sgd(pupil), data, num_epochs=1)


def test_gradient_clipping_covers_projections(tmp_path: Path) -> None:
    pupil = student()
    one = distiller(tmp_path, pupil, intermediate_matches=[HIDDEN])
    proj = one.projs[0]
    assert proj is not None
    before = [weights_of(pupil), weights_of(proj)]
    one.train(sgd(pupil, lr=1.0), batches(1), num_epochs=1, max_grad_norm=1e-3)
    moved = torch.cat([weights_of(pupil) - before[0], weights_of(proj) - before[1]])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert float((weights_of(proj) - before[1]).norm()) > 1e-5


def test_projection_options_and_second_training(tmp_path: Path) -> None:
    pupil = student()
    one = distiller(tmp_path, pupil, intermediate_matches=[{**HIDDEN, "proj": ["relu", 8, 12, {"lr": 0.5}]}])
    optimizer = sgd(pupil)
    one.train(optimizer, batches(1), num_epochs=1)
    one.train(optimizer, batches(1), num_epochs=1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    bad = distiller(tmp_path, pupil, intermediate_matches=[{**HIDDEN, "proj": ["relu", 8, 12, {"learning": 1}]}])
    with pytest.raises(ConfigError, match="proj: learning is no option of SGD"):
        bad.train(sgd(pupil), batches(1), num_epochs=1)


def test_weight_schedules_multiply(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """5 with linear_decay goes from 5 to 5/4 in four steps, and the configuration stays as it is."""
    pupil = student()
    config = DistillationConfig(kd_loss_weight=5, kd_loss_weight_scheduler="linear_decay")
    one = BasicDistiller(settings(tmp_path, log_steps=1), config, teacher(), pupil, logits_adaptor, logits_adaptor)
    caplog.set_level("INFO", logger="raybrew")
    one.train(sgd(pupil, lr=0.0 + 1e-12), batches(1), num_epochs=4)
    losses = [float(r.getMessage().split()[-1]) for r in caplog.records if ": loss " in r.getMessage()]
    assert [loss / losses[0] for loss in losses] == pytest.approx([1, 0.75, 0.5, 0.25], rel=1e-4)
    assert config.kd_loss_weight == 5


def test_tensorboard_only_where_asked(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pupil = student()
    config = settings(tmp_path, log_dir=tmp_path / "logs", log_steps=2)
    values = DistillationConfig(hard_label_weight=1, intermediate_matches=[HIDDEN])
    one = GeneralDistiller(config, values, teacher(), pupil, examples_adaptor, examples_adaptor)
    assert not (tmp_path / "logs").exists()
    one.train(sgd(pupil), batches(5), num_epochs=1)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Scalars("scalar/total_loss")] == [2, 4, 5]
    wanted = {"total_loss", "unweighted_kd_loss", "unweighted_hard_label_loss", "unweighted_hidden_hidden_mse_2_4"}
    assert {f"scalar/{name}" for name in wanted} <= set(events.Tags()["scalars"])


def test_endless_dataloader_by_steps(tmp_path: Path) -> None:
    pupil = student()

    def endless() -> Iterator[dict[str, Tensor]]:
        for seed in itertools.count():
            yield batches(1, seed=seed)[0]

    assert distiller(tmp_path, pupil).train(sgd(pupil), endless(), num_steps=7).steps == 7
    with pytest.raises(ConfigError, match=r"num_epochs .* needs a dataloader with a length"):
        distiller(tmp_path, pupil).train(sgd(pupil), endless(), num_epochs=1)
    with pytest.raises(ConfigError, match="give num_epochs or num_steps"):
        distiller(tmp_path, pupil).train(sgd(pupil), batches(2))
    with pytest.raises(ConfigError, match="only 2 batches"):
        distiller(tmp_path, pupil, train={"gradient_accumulation_steps": 3}).train(sgd(pupil), batches(2), num_epochs=1)


def test_fp16_by_autocast(tmp_path: Path) -> None:
    types: list[torch.dtype] = []
    pupil = student()
    pupil.classifier.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    before = weights_of(pupil)
    one = distiller(tmp_path, pupil, logits_adaptor, {"fp16": True})
    one.train(sgd(pupil), batches(3), num_epochs=1)
    assert set(types) == {torch.float16}
    assert not torch.equal(weights_of(pupil), before)
    assert weights_of(pupil).dtype == torch.float32
    types.clear()
    distiller(tmp_path, pupil, logits_adaptor, {"fp16": True, "fp16_opt_level": "O0"}).train(
        sgd(pupil), batches(1), num_epochs=1
    )
    assert set(types) == {torch.float32}


def test_data_parallel_on_a_machine_without_gpus(tmp_path: Path) -> None:
    pupil = student()
    distiller(tmp_path, pupil, logits_adaptor, {"data_parallel": True}).train(sgd(pupil), batches(1), num_epochs=1)
    assert written(tmp_path) == ["gs1.pkl"]


def test_device_and_process_group_are_checked(tmp_path: Path) -> None:
    pupil = student()
    with pytest.raises(ConfigError, match="batches go to meta, but the student is on cpu"):
        distiller(tmp_path, pupil, train={"device": "meta"}).train(sgd(pupil), batches(1), num_epochs=1)
    with pytest.raises(ConfigError, match="device: given 'gpu'"):
        distiller(tmp_path, pupil, train={"device": "gpu"}).train(sgd(pupil), batches(1), num_epochs=1)
    with pytest.raises(ConfigError, match="init_process_group"):
        distiller(tmp_path, pupil, train={"local_rank": 0}).train(sgd(pupil), batches(1), num_epochs=1)


def test_scheduler_object_and_wrong_arguments(tmp_path: Path) -> None:
    pupil = student()
    optimizer = sgd(pupil)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
    distiller(tmp_path, pupil).train(optimizer, batches(4), num_epochs=1, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)
    with pytest.raises(ConfigError, match=r"scheduler_args: .*step_size"):
        distiller(tmp_path, pupil).train(
            optimizer, batches(1), num_epochs=1, scheduler_class=torch.optim.lr_scheduler.StepLR, scheduler_args={}
        )


def test_losses_stay_on_the_device_between_log_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty more steps read not one value more."""
    reads = [0]

    def counted(name: str) -> Any:
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            reads[0] += 1
            return original(self, *args, **kwargs)

        return read

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(Tensor, name, counted(name))
    found = []
    for steps in (10, 30):
        pupil = student()
        optimizer = sgd(pupil)
        one = distiller(tmp_path, pupil, train={"log_steps": 1000}, hard_label_weight=1, intermediate_matches=[HIDDEN])
        reads[0] = 0
        one.train(optimizer, batches(10), num_steps=steps)
        found.append(reads[0])
    assert found[0] > 0
    assert found[0] == found[1]


class TwoRanks(LocalContext):
    """Rank 0 of two processes, the other of which exists in name alone."""

    world_size = 2

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.wrapped: list[tuple[nn.Module, bool]] = []

    def wrap(self, module: nn.Module, find_unused: bool) -> nn.Module:
        self.wrapped.append((module, find_unused))
        return module


@pytest.mark.parametrize("all_used", [True, False])
def test_ddp_wraps_the_student_alone_and_searches_only_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_used: bool
) -> None:
    def every_head(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": [outputs["logits"], outputs["tags"], outputs["spans"]]}

    context = TwoRanks()
    monkeypatch.setattr("raybrew.textbrewer.run.LocalContext", lambda device: context)
    pupil, wise, adaptor = student(), teacher(), every_head if all_used else logits_adaptor
    one = GeneralDistiller(settings(tmp_path), DistillationConfig(), wise, pupil, adaptor, adaptor)
    one.train(sgd(pupil), batches(2), num_epochs=1)
    ((module, find_unused),) = context.wrapped
    assert find_unused is not all_used
    inside = set(module.modules())
    assert pupil in inside
    assert not inside & set(wise.modules())
