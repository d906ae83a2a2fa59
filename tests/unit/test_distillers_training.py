"""What `train` does with schedules, batches, checkpoints, logs, caches, and how it goes on after a stop."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    CLASSES,
    PlainModel,
    batches,
    examples_adaptor,
    logits_adaptor,
    spans_adaptor,
    student,
    tags_adaptor,
    teacher,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

import raybrew
from raybrew import (
    BasicDistiller,
    BasicTrainer,
    DistillationConfig,
    EMDDistiller,
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
    TrainingConfig,
)
from raybrew.errors import CheckpointError, ConfigError, DivergenceError, LossError
from raybrew.losses.averaging import average_logits
from raybrew.textbrewer.batches import TaskOrder
from raybrew.training.context import LocalContext

HIDDEN = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 12]}


def settings(folder: Path, **values: Any) -> TrainingConfig:
    return TrainingConfig(output_dir=folder / "out", **values)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def distiller(
    folder: Path,
    pupil: nn.Module,
    adaptor: Any = examples_adaptor,
    train: dict[str, Any] | None = None,
    seed: int = 0,
    **values: Any,
) -> GeneralDistiller:
    torch.manual_seed(seed)  # projections start from torch's global generator
    return GeneralDistiller(
        settings(folder, **(train or {})), DistillationConfig(**values), teacher(), pupil, adaptor, adaptor
    )


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


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


def test_accumulated_equals_whole_batches(tmp_path: Path) -> None:
    """Masked losses included, and with dropout off in the counting pass its random numbers are the same."""
    whole = batches(4, size=8)
    cut = [{name: value[part : part + 2] for name, value in batch.items()} for batch in whole for part in (0, 2, 4, 6)]
    found = []
    for data, count in ((whole, 1), (cut, 4)):
        pupil = student()
        matches = [HIDDEN, {**HIDDEN, "loss": "mmd", "layer_T": [4, 4], "layer_S": [2, 2], "proj": None}]
        one = distiller(
            tmp_path,
            pupil,
            train={"gradient_accumulation_steps": count},
            intermediate_matches=matches,
            hard_label_weight=1,
        )
        one.train(sgd(pupil), data, num_epochs=3, max_grad_norm=1.0)
        found.append(weights_of(pupil))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)


def test_counting_pass_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are counted beforehand and ones of known shape draw the same dropout."""
    counted: list[bool] = []
    forward = PlainModel.forward

    def spy(self: PlainModel, *args: Any, **kwargs: Any) -> Any:
        if self.dropout.p:
            counted.append(not torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(PlainModel, "forward", spy)
    found = []
    for adaptor in (logits_adaptor, lambda b, o: {**logits_adaptor(b, o), "labels": b["labels"]}):
        counted.clear()
        pupil = student(dropout=0.3)
        one = distiller(tmp_path, pupil, adaptor, train={"gradient_accumulation_steps": 2})
        torch.manual_seed(3)
        one.train(sgd(pupil), batches(6), num_epochs=1)
        found.append((weights_of(pupil), sum(counted)))
    assert torch.equal(found[0][0], found[1][0])
    # Two passes look at the first batch; then one counts the one shape there is, or all six.
    assert [count for _, count in found] == [3, 8]


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


def test_two_masked_logits_of_three_dimensions(tmp_path: Path) -> None:
    """Start and end logits under one mask: the sum of both means over unmasked positions."""
    batch, by_hand, pupil = batches(1)[0], student(), student()
    real = batch["attention_mask"].bool()
    assert not bool(real.all())
    with torch.no_grad():
        wanted = [logits[real] for logits in spans_adaptor(batch, teacher()(**batch))["logits"]]
    given = [logits[real] for logits in spans_adaptor(batch, by_hand(**batch))["logits"]]
    losses = [
        -((t / 2).softmax(-1) * (s / 2).log_softmax(-1)).sum(-1).mean() for s, t in zip(given, wanted, strict=True)
    ]
    (losses[0] + losses[1]).backward()
    sgd(by_hand).step()
    distiller(tmp_path, pupil, spans_adaptor, temperature=2).train(sgd(pupil), [batch], num_epochs=1)
    torch.testing.assert_close(weights_of(pupil), weights_of(by_hand))


def test_every_option_of_kd_trains(tmp_path: Path) -> None:
    """All losses by name, with masks and per-token temperatures."""
    for kind in ("ce", "mse", "bce", "kl", "reverse_kl", ["js", {"beta": 0.3}], "skew_kl", "skew_reverse_kl", "tv"):
        pupil = student()
        one = distiller(tmp_path, pupil, tags_adaptor, kd_loss_type=kind, temperature_scheduler=["cwsm", 0.5])
        before = weights_of(pupil)
        one.train(sgd(pupil), batches(2), num_epochs=1)
        assert not torch.equal(weights_of(pupil), before), kind


def test_losses_of_ones_own_see_unmasked_items(tmp_path: Path) -> None:
    """As TextBrewer's: functions that know no mask are given what is left of the logits."""
    shapes: list[tuple[int, ...]] = []

    def own_loss(given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        shapes.append(tuple(given.shape))
        return (given - wanted).abs().mean() / temperature

    raybrew.register_new("kd_loss", "own_of_test", own_loss)
    try:
        pupil, data = student(), batches(3)
        distiller(tmp_path, pupil, tags_adaptor, kd_loss_type="own_of_test").train(sgd(pupil), data, num_epochs=1)
        assert shapes[-1] == (int(data[-1]["attention_mask"].sum()), CLASSES)
    finally:
        del raybrew.KD_LOSS_MAP["own_of_test"]


def test_custom_matches_between_any_modules(tmp_path: Path) -> None:
    """By module and by name, with a loss of one's own, a trained map, and no hook left behind."""
    pupil, wise = student(), teacher()
    proj = nn.Linear(8, 12)
    masks: list[Any] = []

    def distance(mine: Tensor, other: Tensor, mask_S: Tensor, mask_T: Tensor) -> Tensor:
        masks.append((mask_S.shape, mask_T.shape))
        return (mine - other).square().mean()

    matches = [
        {"module_T": wise.pooler, "module_S": pupil.pooler, "weight": 2.0, "loss": distance, "proj_func": proj},
        raybrew.CustomMatch("mixes.3", "mixes.1", 1.0, "mmd"),
    ]
    one = GeneralDistiller(
        settings(tmp_path),
        DistillationConfig(kd_loss_weight=0),
        wise,
        pupil,
        examples_adaptor,
        examples_adaptor,
        matches,
    )
    hooks: list[int] = []
    before, map_before = weights_of(pupil.pooler), proj.weight.detach().clone()
    optimizer = sgd(pupil)
    one.train(
        optimizer, batches(2), num_epochs=2, callback=lambda model, step: hooks.append(len(model.pooler._forward_hooks))
    )
    assert hooks == [0, 0]
    assert not wise.pooler._forward_hooks
    assert masks
    assert not torch.equal(weights_of(pupil.pooler), before)
    assert not torch.equal(proj.weight, map_before)
    assert len(optimizer.param_groups) == 2

    # One step by hand: twice the gradient of the distance.
    pupil, proj = student(), nn.Linear(8, 12)
    batch = batches(1)[0]
    with torch.no_grad():
        wanted = wise.pooler(wise(**batch)["hidden"][-1][:, 0])
    (2.0 * (proj(pupil.pooler(pupil(**batch)["hidden"][-1][:, 0])) - wanted).square().mean()).backward()
    gradient = proj.weight.grad
    match = {"module_T": wise.pooler, "module_S": pupil.pooler, "weight": 2.0, "loss": distance, "proj_func": proj}
    start = proj.weight.detach().clone()
    one = GeneralDistiller(
        settings(tmp_path),
        DistillationConfig(kd_loss_weight=0),
        wise,
        pupil,
        examples_adaptor,
        examples_adaptor,
        [match],
    )
    one.train(sgd(pupil, lr=1.0), [batch], num_epochs=1)
    torch.testing.assert_close(start - proj.weight, gradient)


def test_custom_matches_name_what_is_wrong(tmp_path: Path) -> None:
    pupil, wise = student(), teacher()

    def made(**changes: Any) -> GeneralDistiller:
        match = {"module_T": wise.pooler, "module_S": pupil.pooler, "weight": 1.0, "loss": "hidden_mse"} | changes
        adaptors = (logits_adaptor, logits_adaptor)
        return GeneralDistiller(settings(tmp_path), DistillationConfig(), wise, pupil, *adaptors, [match])

    with pytest.raises(ConfigError, match="module_S, a Linear, is no part of its model"):
        made(module_S=wise.pooler)
    with pytest.raises(ConfigError, match="module_T 'poolr'"):
        made(module_T="poolr")
    with pytest.raises(ConfigError, match=r"weigth: unknown key.*did you mean 'weight'"):
        made(weigth=1)
    with pytest.raises(ConfigError, match="given 'hidden_mes'"):
        made(loss="hidden_mes")
    with pytest.raises(LossError, match=r"custom.0: student \(4, 8\) and teacher \(4, 12\)"):
        made().train(sgd(pupil), batches(1), num_epochs=1)
    pupil.unused = nn.Embedding(2, 2)
    with pytest.raises(LossError, match="module_S, a Embedding, did not run"):
        made(module_S=pupil.unused).train(sgd(pupil), batches(1), num_epochs=1)


def noted_call(calls: list[int], *_: Any) -> None:
    calls.append(1)


@pytest.mark.parametrize("kind", ["kd only", "matches", "two teachers"])
def test_cached_logits_run_the_teacher_once(tmp_path: Path, kind: str) -> None:
    """And train as if the teacher had run on the same batches in the same order."""
    runs = []
    for caching in (True, False):
        pupil, wise = student(), teacher()
        calls: list[int] = []
        wise.register_forward_hook(functools.partial(noted_call, calls))
        matches = [HIDDEN] if kind == "matches" else []
        config = DistillationConfig(intermediate_matches=matches, is_caching_logits=caching)
        torch.manual_seed(1)
        one: BasicDistiller
        if kind == "two teachers":
            one = MultiTeacherDistiller(
                settings(tmp_path), config, [wise, teacher(seed=4)], pupil, examples_adaptor, examples_adaptor
            )
        else:
            one = GeneralDistiller(settings(tmp_path), config, wise, pupil, examples_adaptor, examples_adaptor)
        data: Any = batches(5)
        if not caching:  # the order that the cache draws
            torch.manual_seed(7)
            data = [data, *([data[i] for i in torch.randperm(5).tolist()] for _ in range(2))]
            data = list(itertools.chain(*data))
        torch.manual_seed(7)
        one.train(sgd(pupil), data, num_epochs=3 if caching else 1)
        runs.append((weights_of(pupil), len(calls)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == 5 + 1  # each batch once, and the first look


def test_caching_needs_an_end(tmp_path: Path) -> None:
    pupil = student()
    one = distiller(tmp_path, pupil, is_caching_logits=True)
    with pytest.raises(ConfigError, match="is_caching_logits=True needs a dataloader with a length"):
        one.train(sgd(pupil), iter(batches(3)), num_steps=2)


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


class StoppedError(Exception):
    """What a test's callback raises instead of a power cut."""


def run_until(folder: Path, kind: str, seed: int, stop: int | None) -> tuple[list[Tensor], list[int]]:
    """Weights of student and projection, and the steps with a checkpoint; `stop` is the last one of these."""
    torch.manual_seed(seed)
    pupil = student(dropout=0.2)
    loader: DataLoader[Any] = DataLoader(batches(8, size=1), batch_size=None, shuffle=True)  # type: ignore[arg-type]
    num_micro = 2 if kind == "accumulated" else 1
    one = GeneralDistiller(
        settings(folder, resume=True, ckpt_frequency=2, ckpt_steps=3, gradient_accumulation_steps=num_micro),
        DistillationConfig(intermediate_matches=[HIDDEN], is_caching_logits=kind == "cached"),
        teacher(),
        pupil,
        examples_adaptor,
        examples_adaptor,
    )
    steps: list[int] = []

    def callback(model: nn.Module, step: int) -> None:
        steps.append(step)
        if step == stop:
            raise StoppedError

    lengths: dict[str, Any] = {"num_steps": 17} if kind == "steps" else {"num_epochs": 3}
    optimizer = torch.optim.SGD(pupil.parameters(), lr=0.05, momentum=0.9)
    with contextlib.nullcontext() if stop is None else pytest.raises(StoppedError):
        one.train(
            optimizer,
            loader,
            **lengths,
            callback=callback,
            scheduler_class=torch.optim.lr_scheduler.StepLR,
            scheduler_args={"step_size": 5},
        )
    assert one.projs[0] is not None
    return [weights_of(pupil), weights_of(one.projs[0])], steps


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        ("epochs", 12),
        ("epochs", 8),
        ("accumulated", 6),
        ("accumulated", 4),
        ("cached", 12),
        ("cached", 8),
        ("steps", 12),
    ],
)
def test_resume_is_exact(tmp_path: Path, kind: str, stop: int) -> None:
    """In the middle and at the end of an epoch, with dropout, momentum, a schedule and a shuffling DataLoader."""
    wanted, _ = run_until(tmp_path / "whole", kind, 11, None)
    run_until(tmp_path / "cut", kind, 11, stop)
    found, steps = run_until(tmp_path / "cut", kind, 99, None)
    assert steps[0] > stop
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))
    # A finished training has nothing left to do.
    again, steps = run_until(tmp_path / "cut", kind, 98, None)
    assert not steps
    assert torch.equal(again[0], wanted[0])
    other = distiller(tmp_path / "cut", student(), train={"resume": True})
    with pytest.raises(CheckpointError, match="state of a training with other settings"):
        other.train(sgd(other.model_S), batches(4), num_epochs=1)


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


def test_basic_trainer_learns_labels(tmp_path: Path) -> None:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"losses": [outputs["loss"]]}

    model, data = student(), batches(4)
    with torch.no_grad():
        before = sum(float(model(**batch)["loss"]) for batch in data)
    trainer = BasicTrainer(settings(tmp_path, gradient_accumulation_steps=2), model, adaptor)
    with trainer:
        trainer.train(torch.optim.AdamW(model.parameters(), lr=1e-2), data, num_epochs=20, max_grad_norm=1.0)
    with torch.no_grad():
        assert sum(float(model(**batch)["loss"]) for batch in data) < 0.5 * before
    assert "gs40.pkl" in written(tmp_path)
    with pytest.raises(LossError, match="no 'losses'"):
        BasicTrainer(settings(tmp_path), model, logits_adaptor).train(sgd(model), data, num_epochs=1)


def test_multi_teacher_weights_probabilities_and_matches(tmp_path: Path) -> None:
    batch = batches(1)[0]
    first, second = teacher(), teacher(seed=5)
    with torch.no_grad():
        logits = [model(**batch)["logits"] for model in (first, second)]

    def moved(wanted: Tensor | None, **options: Any) -> Tensor:
        """The student after one step, towards `wanted` logits or by a MultiTeacherDistiller."""
        pupil = student()
        if wanted is not None:
            loss = -((wanted / 4).softmax(-1) * (pupil(**batch)["logits"] / 4).log_softmax(-1)).sum(-1).mean()
            loss.backward()
            sgd(pupil).step()
        else:
            one = MultiTeacherDistiller(
                settings(tmp_path),
                DistillationConfig(),
                [first, second],
                pupil,
                logits_adaptor,
                logits_adaptor,
                **options,
            )
            one.train(sgd(pupil), [batch], num_epochs=1)
        return weights_of(pupil)

    def near(mine: Tensor, other: Tensor) -> bool:
        return bool(torch.allclose(mine, other, atol=1e-6))

    assert near(moved(None), moved((logits[0] + logits[1]) / 2))
    assert near(moved(None, weights=[3, 1]), moved(0.75 * logits[0] + 0.25 * logits[1]))
    mixed = 0.75 * (logits[0] / 4).softmax(-1) + 0.25 * (logits[1] / 4).softmax(-1)
    assert near(moved(None, weights=[3, 1], average="probabilities"), moved(4 * mixed.log()))
    assert near(4 * mixed.log(), average_logits(logits, [3, 1], average="probabilities", temperature=4.0))

    # The match is with the second teacher: only its layers are read.
    def layers(batch: Any, outputs: Any) -> dict[str, Any]:
        return examples_adaptor(batch, outputs)

    adaptors: list[Callable[..., Any]] = [logits_adaptor, layers]
    pupil = student()
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "teacher": 1}])
    MultiTeacherDistiller(settings(tmp_path), config, [first, second], pupil, adaptors, layers).train(
        sgd(pupil), [batch], num_epochs=1
    )
    config = DistillationConfig(intermediate_matches=[HIDDEN])
    with pytest.raises(LossError, match=r"hidden_mse.2-4: layer 4 does not exist: adaptor_T of teacher 0 returned 0"):
        MultiTeacherDistiller(settings(tmp_path), config, [first, second], pupil, adaptors, layers).train(
            sgd(pupil), [batch], num_epochs=1
        )
    for problem, arguments in {
        "adaptor_T: 1 adaptors for 2 teachers": ([first, second], [layers]),
        "takes a list of teachers": (first, layers),
    }.items():
        with pytest.raises(ConfigError, match=problem):
            MultiTeacherDistiller(
                settings(tmp_path), DistillationConfig(), *[arguments[0], pupil, arguments[1], layers]
            )
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "teacher": 2}])
    with pytest.raises(ConfigError, match=r"intermediate_matches.0.teacher: given 2; allowed: 0 to 1"):
        MultiTeacherDistiller(settings(tmp_path), config, [first, second], pupil, layers, layers)


def test_teachers_with_their_own_inputs(tmp_path: Path) -> None:
    pupil, data = student(), batches(2)
    given = [
        {"teacher": [batch, {**batch, "input_ids": batch["input_ids"].flip(0)}], "student": batch} for batch in data
    ]
    seen: list[Tensor] = []
    second = teacher(seed=5)
    second.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    one = MultiTeacherDistiller(
        settings(tmp_path), DistillationConfig(), [teacher(), second], pupil, logits_adaptor, logits_adaptor
    )
    one.train(sgd(pupil), given, num_epochs=1)
    assert torch.equal(seen[-1], data[1]["input_ids"].flip(0))


def test_multi_task_order_and_tasks(tmp_path: Path) -> None:
    data = {"many": batches(9), "few": batches(1, seed=3)}
    seen: list[str] = []

    def noted(task: str) -> Callable[..., Any]:
        def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
            seen.append(task)
            return logits_adaptor(batch, outputs) if task == "many" else tags_adaptor(batch, outputs)

        return adaptor

    def one(pupil: nn.Module) -> MultiTaskDistiller:
        teachers = {"many": teacher(), "few": teacher(seed=8)}
        quiet = {"many": logits_adaptor, "few": tags_adaptor}
        adaptors = {task: noted(task) for task in data}
        return MultiTaskDistiller(settings(tmp_path), DistillationConfig(), teachers, pupil, quiet, adaptors)

    orders = []
    for seed in (0, 0, 1):
        seen.clear()
        pupil = student()
        one(pupil).train(sgd(pupil), data, num_steps=20, seed=seed)
        orders.append(seen[4:])  # after the first looks
    assert orders[0] == orders[1] != orders[2]
    wanted = TaskOrder({"many": 9, "few": 1}, 1, 0)
    assert orders[0] == [wanted(index) for index in range(20)]
    shares = [TaskOrder({"many": 9, "few": 1}, tau, 0).shares.tolist() for tau in (1, 0.5, 0)]
    assert [share[0] for share in shares] == pytest.approx([0.9, 0.75, 0.5])
    assert TaskOrder({"a": None, "b": 4}, 1, 0).shares.tolist() == [0.5, 0.5]
    with pytest.raises(ConfigError, match=r"dataloaders: tasks \['many'\] are not those of model_T, \['few', 'many'\]"):
        one(student()).train(sgd(pupil), {"many": data["many"]}, num_steps=1)


def test_multi_task_shares_of_an_accumulated_step(tmp_path: Path) -> None:
    """Tasks weigh by micro-batches, whatever the sizes of these; inside a task every item weighs alike."""
    data = {"a": batches(1, size=2), "b": batches(1, size=6, seed=3)}
    order = TaskOrder({"a": 1, "b": 1}, 1, 5)
    drawn = [order(index) for index in range(4)]
    assert 0 < drawn.count("a") < 4
    wise = {"a": teacher(), "b": teacher(seed=8)}

    def loss_of(pupil: nn.Module, task: str) -> Tensor:
        batch = data[task][0]
        with torch.no_grad():
            wanted = (wise[task](**batch)["logits"] / 4).softmax(-1)
        return -(wanted * (pupil(**batch)["logits"] / 4).log_softmax(-1)).sum(-1).mean()

    pupil, by_hand = student(), student()
    (sum(loss_of(by_hand, task) for task in drawn) / 4).backward()  # type: ignore[union-attr]
    sgd(by_hand).step()
    adaptors = dict.fromkeys(data, logits_adaptor)
    config = settings(tmp_path, gradient_accumulation_steps=4)
    one = MultiTaskDistiller(config, DistillationConfig(), wise, pupil, adaptors, adaptors)
    one.train(sgd(pupil), data, num_steps=1, seed=5)
    torch.testing.assert_close(weights_of(pupil), weights_of(by_hand))


def test_emd(tmp_path: Path) -> None:
    emd = {"layer_num_S": 3, "layer_num_T": 5, "feature": "hidden", "loss": "hidden_mse", "weight": 1.0}
    emd["proj"] = ["linear", 8, 12]
    pupil, data = student(), batches(4)

    def made(**changes: Any) -> EMDDistiller:
        config = DistillationConfig(temperature=8)
        return EMDDistiller(
            settings(tmp_path), config, teacher(), pupil, examples_adaptor, examples_adaptor, emd={**emd, **changes}
        )

    one = made()
    start = copy.deepcopy(one._layers)
    with one:
        one.train(torch.optim.AdamW(pupil.parameters(), lr=1e-2), data, num_epochs=2)
    assert float(one._layers.teacher_weights.sum()) == pytest.approx(1.0)
    assert float((one._layers.teacher_weights - start.teacher_weights).abs().max()) > 1e-3
    assert not torch.equal(weights_of(one._layers.projections), weights_of(start.projections))
    still = made(update_weights=False)
    still.train(sgd(pupil), data, num_epochs=1)
    assert torch.equal(still._layers.teacher_weights, start.teacher_weights)
    with pytest.raises(ConfigError, match=r"unknown key 'wieght'.*did you mean 'weight'"):
        made(wieght=1)
    with pytest.raises(LossError, match="emd: layer 5 does not exist"):
        made(layer_num_T=6).train(sgd(pupil), data, num_epochs=1)


def test_nan_is_reported(tmp_path: Path) -> None:
    pupil = student()
    data = batches(4)
    with torch.no_grad():
        pupil.classifier.weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"before the first step: \{'kd': nan\}"):
        distiller(tmp_path, pupil, logits_adaptor).train(sgd(pupil), data, num_epochs=1)
    pupil = student()
    with pytest.raises(DivergenceError, match=r"no longer finite at step 4.*loss/kd"):
        distiller(tmp_path, pupil, logits_adaptor).train(sgd(pupil, lr=1e38), data, num_epochs=1)
    assert not (tmp_path / "out").exists()


def test_a_loss_without_weight_may_be_nan(tmp_path: Path) -> None:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs["logits"], "losses": outputs["loss"] * float("nan")}

    pupil = student()
    distiller(tmp_path, pupil, adaptor).train(sgd(pupil), batches(2), num_epochs=1)
    assert bool(weights_of(pupil).isfinite().all())


@pytest.mark.parametrize(
    ("problem", "values", "adaptor"),
    [
        ("adaptor_T: unknown key 'logit'; allowed: .*did you mean 'logits'", {}, lambda b, o: {"logit": o["logits"]}),
        ("adaptor_T: expected a dict, the adaptor returned Tensor", {}, lambda b, o: o["logits"]),
        ("adaptor_T: 'hidden' must be a tensor or a list", {}, lambda b, o: {"hidden": [1]}),
        ("2 logits and 3 logits_mask", {}, lambda b, o: {"logits": [o["tags"]] * 2, "logits_mask": [b["labels"]] * 3}),
        (
            r"logits_mask \(4,\) does not fit logits \(4, 7, 3\)",
            {},
            lambda b, o: {"logits": o["tags"], "logits_mask": b["labels"]},
        ),
        ("hidden_mse.2-9: layer 9 does not exist: adaptor_T returned 5 hidden layers, 0 to 4", {"layer_T": 9}, None),
        ("hidden_mse.3-4: layer 3 does not exist: adaptor_S returned 3 hidden layers, 0 to 2", {"layer_S": 3}, None),
        ("hidden_mse.2-4: layer 4 .*add the key 'hidden'", {}, logits_adaptor),
        (
            r"hidden_mse.2-4: proj \['linear', 9, 12\] does not fit student \(4, 7, 8\) and teacher \(4, 7, 12\)",
            {"proj": ["linear", 9, 12]},
            None,
        ),
        (r"hidden_mse.2-4: proj \['linear', 8, 13\] does not fit", {"proj": ["linear", 8, 13]}, None),
        (r"hidden_mse.2-4: hidden_mse: student \(4, 7, 8\) and teacher \(4, 7, 12\)", {"proj": None}, None),
        ("given 'cosine'", {"loss": "cosine"}, None),
        ("given 'affine'.*PROJ|proj: given 'affine'", {"proj": ["affine", 8, 12]}, None),
    ],
)
def test_problems_are_found_before_the_first_step(
    tmp_path: Path, problem: str, values: dict[str, Any], adaptor: Any
) -> None:
    pupil = student()
    before = weights_of(pupil)
    with pytest.raises((LossError, ConfigError), match=problem):
        distiller(tmp_path, pupil, adaptor or examples_adaptor, intermediate_matches=[{**HIDDEN, **values}]).train(
            sgd(pupil), batches(2), num_epochs=1
        )
    assert torch.equal(weights_of(pupil), before)
    assert list(tmp_path.iterdir()) == []


def test_different_classes_are_named_with_both_shapes(tmp_path: Path) -> None:
    pupil = student()
    pupil.classifier = nn.Linear(8, CLASSES + 2)
    with pytest.raises(LossError, match=r"kd: student logits \(4, 5\) and teacher logits \(4, 3\) differ in classes"):
        distiller(tmp_path, pupil, logits_adaptor).train(sgd(pupil), batches(1), num_epochs=1)
    with pytest.raises(LossError, match="as many logits as each other; they returned: adaptor_S 1, adaptor_T 2"):
        GeneralDistiller(
            settings(tmp_path), DistillationConfig(), teacher(), student(), spans_adaptor, logits_adaptor
        ).train(sgd(pupil), batches(1), num_epochs=1)
    with pytest.raises(LossError, match="probability_shift needs labels for each of the 1 logits"):
        distiller(tmp_path, student(), logits_adaptor, probability_shift=True).train(
            sgd(pupil), batches(1), num_epochs=1
        )
    with pytest.raises(LossError, match="nothing to train on"):
        distiller(tmp_path, student(), logits_adaptor, kd_loss_weight=0).train(sgd(pupil), batches(1), num_epochs=1)
    with pytest.raises(ConfigError, match="BasicDistiller takes none; use GeneralDistiller"):
        BasicDistiller(
            settings(tmp_path),
            DistillationConfig(intermediate_matches=[HIDDEN]),
            teacher(),
            pupil,
            logits_adaptor,
            logits_adaptor,
        )


def test_layers_count_from_the_end_as_lists_do(tmp_path: Path) -> None:
    found = []
    for layer_T, layer_S in ((4, 2), (-1, -1)):
        pupil = student()
        one = distiller(tmp_path, pupil, intermediate_matches=[{**HIDDEN, "layer_T": layer_T, "layer_S": layer_S}])
        one.train(sgd(pupil), batches(2), num_epochs=1)
        found.append(weights_of(pupil))
    assert torch.equal(*found)


def test_temperature_squared_is_an_option(tmp_path: Path) -> None:
    """Off: the gradient falls with T^2. On: it stays of one order."""
    norms = []
    for temperature, scaled in ((1, False), (8, False), (8, True)):
        pupil = student()
        start = weights_of(pupil)
        one = distiller(tmp_path, pupil, logits_adaptor, temperature=temperature, scale_by_temperature_squared=scaled)
        one.train(sgd(pupil, lr=1.0), batches(1), num_epochs=1)
        norms.append(float((weights_of(pupil) - start).norm()))
    assert norms[2] == pytest.approx(64 * norms[1], rel=1e-3)
    assert norms[0] / norms[1] > 15
    assert 0.3 < norms[0] / norms[2] < 3


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
    monkeypatch.setattr("raybrew.textbrewer.run._context", lambda config, device: context)
    pupil, wise, adaptor = student(), teacher(), every_head if all_used else logits_adaptor
    one = GeneralDistiller(settings(tmp_path), DistillationConfig(), wise, pupil, adaptor, adaptor)
    one.train(sgd(pupil), batches(2), num_epochs=1)
    ((module, find_unused),) = context.wrapped
    assert find_unused is not all_used
    inside = set(module.modules())
    assert pupil in inside
    assert not inside & set(wise.modules())


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
