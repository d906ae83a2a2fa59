"""BasicTrainer, several teachers, several tasks, EMD."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    HIDDEN,
    batches,
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

from raybrew import (
    BasicTrainer,
    DistillationConfig,
    EMDDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
)
from raybrew.errors import ConfigError, LossError
from raybrew.losses.averaging import average_logits
from raybrew.training.streams import TaskOrder


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
        orders.append(seen[2:])  # after the first looks
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


def test_emd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[torch.Size] = []
    cpu = Tensor.cpu

    def counted(self: Tensor) -> Tensor:
        transfers.append(self.shape)
        return cpu(self)

    emd = {"layer_num_S": 3, "layer_num_T": 5, "feature": "hidden", "loss": "hidden_mse", "weight": 1.0}
    emd["proj"] = ["linear", 8, 12]
    pupil, data = student(), batches(4)

    def made(**changes: Any) -> EMDDistiller:
        config = DistillationConfig(temperature=8)
        return EMDDistiller(
            settings(tmp_path), config, teacher(), pupil, examples_adaptor, examples_adaptor, emd={**emd, **changes}
        )

    one = made()
    start = copy.deepcopy(one._emd.layers)
    with one:
        one.train(torch.optim.AdamW(pupil.parameters(), lr=1e-2), data, num_epochs=2)
    assert float(one._emd.layers.teacher_weights.sum()) == pytest.approx(1.0)
    assert float((one._emd.layers.teacher_weights - start.teacher_weights).abs().max()) > 1e-3
    assert not torch.equal(weights_of(one._emd.layers.projections), weights_of(start.projections))
    still = made(update_weights=False)
    still.train(sgd(pupil), data, num_epochs=1)
    assert torch.equal(still._emd.layers.teacher_weights, start.teacher_weights)
    monkeypatch.setattr(Tensor, "cpu", counted)
    reads = []
    for steps in (2, 6):  # the host asks the device once a step
        transfers.clear()
        made().train(sgd(pupil), data, num_steps=steps)
        reads.append(len(transfers))
    monkeypatch.undo()
    assert reads[1] - reads[0] == 4
    with pytest.raises(ConfigError, match=r"unknown key 'wieght'.*did you mean 'weight'"):
        made(wieght=1)
    with pytest.raises(LossError, match="emd: layer 5 does not exist"):
        made(layer_num_T=6).train(sgd(pupil), data, num_epochs=1)
