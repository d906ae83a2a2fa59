"""What TextBrewer's documentation shows its users, as scripts of our own: each runs in both packages to one student."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from plain_models import CLASSES, LENGTH, VOCABULARY, PlainModel, batches, student, teacher
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    get_linear_schedule_with_warmup,
)

#: A script takes the package and a folder, and returns its student.
Script = Callable[[Any, Path], nn.Module]
SCRIPTS: list[Script] = []


def script(function: Script) -> Script:
    SCRIPTS.append(function)
    return function


@pytest.mark.parametrize("run", SCRIPTS, ids=lambda run: run.__name__)
def test_a_script_and_its_numbers(run: Script, textbrewer: ModuleType, tmp_path: Path) -> None:
    students = []
    for name in ("textbrewer", "raybrew"):
        torch.manual_seed(1)
        (tmp_path / name).mkdir()
        students.append(run(importlib.import_module(name), tmp_path / name))
    for mine, other in zip(students[1].parameters(), students[0].parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


class Tuples(nn.Module):
    """A model that returns (loss, logits, hidden states)."""

    def __init__(self, model: PlainModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Any, ...]:
        outputs = self.model(input_ids, attention_mask, labels)
        return outputs["loss"], outputs["logits"], outputs["hidden"]


def tuples(count: int = 4) -> list[tuple[Tensor, ...]]:
    return [tuple(batch.values()) for batch in batches(count)]


def training(tb: Any, folder: Path, **values: Any) -> Any:
    return tb.TrainingConfig(output_dir=str(folder / "out"), device="cpu", **values)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@script
def quickstart(tb: Any, folder: Path) -> nn.Module:
    teacher_model, student_model = Tuples(teacher()), Tuples(student(hidden=12))
    for model in (teacher_model, student_model):
        result, _ = tb.utils.display_parameters(model, max_level=3)
        assert "embeddings" in result

    def simple_adaptor(batch: Any, model_outputs: Any) -> dict[str, Any]:
        return {"logits": model_outputs[1], "hidden": model_outputs[2]}

    distill_config = tb.DistillationConfig(
        intermediate_matches=[
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
            {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
        ]
    )
    distiller = tb.GeneralDistiller(
        train_config=training(tb, folder),
        distill_config=distill_config,
        model_T=teacher_model,
        model_S=student_model,
        adaptor_T=simple_adaptor,
        adaptor_S=simple_adaptor,
    )
    optimizer = sgd(student_model)
    args = {"num_warmup_steps": 2, "num_training_steps": 8}
    with distiller:
        distiller.train(
            optimizer,
            tuples(),
            num_epochs=2,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args=args,
            callback=None,
        )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    return student_model


@script
def callback_and_postprocessor(tb: Any, folder: Path) -> nn.Module:
    seen: list[tuple[int, int]] = []

    def predict(model: nn.Module, eval_dataset: list[Any], step: int, args: Any) -> None:
        model.eval()
        with torch.no_grad():
            seen.extend((step, len(model(**batch)["logits"])) for batch in eval_dataset)
        model.train()

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": [outputs["logits"]], "losses": [outputs["loss"]]}

    names = ("input_ids", "attention_mask", "labels")
    pupil = student()
    config = training(tb, folder, ckpt_frequency=2, gradient_accumulation_steps=1, log_dir=None)
    distiller = tb.BasicDistiller(
        config, tb.DistillationConfig(8, hard_label_weight=1), teacher(), pupil, adaptor, adaptor
    )
    with distiller:
        distiller.train(
            sgd(pupil),
            tuples(),
            num_epochs=2,
            max_grad_norm=1.0,
            callback=functools.partial(predict, eval_dataset=batches(1), args=None),
            batch_postprocessor=lambda batch: dict(zip(names, batch, strict=True)),
            scale=2.0,
        )
    assert seen == [(step, 4) for step in (2, 4, 6, 8)]
    return pupil


class Both(Dataset[Any]):
    """Rows of teacher and student side by side, perhaps with what the teacher said of them."""

    def __init__(self, teacher_rows: Any, student_rows: Any, cache: list[Any] | None = None) -> None:
        self.teacher_rows, self.student_rows, self.cache = teacher_rows, student_rows, cache

    def __len__(self) -> int:
        return len(self.teacher_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"teacher": self.teacher_rows[index], "student": self.student_rows[index]}
        return row if self.cache is None else row | {"teacher_cache": self.cache[index]}


class Dense(nn.Module):
    """Takes two tensors of `width` columns, returns (logits, loss)."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.map = nn.Linear(2 * width, 3)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.map(torch.cat([first, second], dim=1))
        return logits, logits.square().mean()


@script
def different_batches_and_cached_values(tb: Any, folder: Path) -> nn.Module:
    wise, pupil = Dense(3, seed=1), Dense(2, seed=2)
    rows = [TensorDataset(*(torch.randn(32, width) for _ in range(2))) for width in (3, 2)]
    cache = [(torch.randn(3), torch.randn(1)[0]) for _ in range(32)]

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": (outputs[0],)}

    distiller = tb.GeneralDistiller(training(tb, folder), tb.DistillationConfig(), wise, pupil, adaptor, adaptor)
    with distiller:
        distiller.train(sgd(pupil), DataLoader(Both(*rows), batch_size=8, shuffle=True), num_epochs=2)
        wise.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
        distiller.train(sgd(pupil), DataLoader(Both(*rows, cache), batch_size=8, shuffle=True), num_epochs=2)
    return pupil


@script
def maps_and_schedulers_of_ones_own(tb: Any, folder: Path) -> nn.Module:
    presets = importlib.import_module(f"{tb.__name__}.presets")

    def my_l1(feature_S: Tensor, feature_T: Tensor, mask: Tensor | None = None) -> Tensor:
        return (feature_S - feature_T).abs().mean()

    def my_masked(feature_S: Tensor, feature_T: Tensor, power: int = 2, *, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        return ((feature_S - feature_T).abs().pow(power).mean(-1) * mask).sum() / mask.sum()

    presets.MATCH_LOSS_MAP["my_L1_loss"] = my_l1
    presets.WEIGHT_SCHEDULER["my_schedule"] = lambda progress: 1 - progress**2
    presets.register_new("match_Loss", "my_masked_loss", my_masked)
    presets.register_new("kd_loss", "my_kd", lambda logits_S, logits_T, t: ((logits_S - logits_T) / t).square().mean())
    presets.register_new("projection", "my_map", lambda dim_in, dim_out: nn.Linear(dim_in, dim_out, bias=False))
    presets.register_new("temperature_scheduler", "hotter", lambda logits_S, logits_T, base: base + 1)
    presets.register_new("weight_scheduler", "my_growth", lambda progress: 1 + progress)
    match = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "weight": 1, "proj": ["my_map", 8, 12]}
    config = tb.DistillationConfig(
        temperature_scheduler="hotter",
        kd_loss_type="my_kd",
        kd_loss_weight_scheduler="my_schedule",
        hard_label_weight=1,
        hard_label_weight_scheduler="my_growth",
        intermediate_matches=[match | {"loss": "my_L1_loss"}, match | {"loss": "my_masked_loss"}],
    )

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        more = {"losses": (outputs["loss"],), "inputs_mask": batch["attention_mask"]}
        return {"logits": (outputs["logits"],), "hidden": outputs["hidden"]} | more

    pupil = student()
    distiller = tb.GeneralDistiller(training(tb, folder), config, teacher(), pupil, adaptor, adaptor)
    try:
        with distiller:
            distiller.train(sgd(pupil), batches(4), num_epochs=2)
    finally:
        for name in ("KD_LOSS_MAP", "MATCH_LOSS_MAP", "PROJ_MAP", "TEMPERATURE_SCHEDULER", "WEIGHT_SCHEDULER"):
            functions = getattr(presets, name)
            functions = getattr(functions, "added", getattr(functions, "store", functions))
            for added in [key for key in functions if key.startswith("my_") or key == "hotter"]:
                del functions[added]
    return pupil


@script
def configurations_from_a_file(tb: Any, folder: Path) -> nn.Module:
    values = {
        "temperature": 8,
        "temperature_scheduler": ["flsw", 1, 2],
        "intermediate_matches": [
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1,
             "proj": ["linear", 8, 12]},
            {"layer_T": [0, 4], "layer_S": [0, 2], "feature": "hidden", "loss": "fsp", "weight": 1,
             "proj": ["linear", 8, 12, {"lr": 0.01}]},
            {"layer_T": [4, 4], "layer_S": [2, 2], "feature": "hidden", "loss": "nst", "weight": 1},
        ],
    }  # fmt: skip
    (folder / "distill.json").write_text(json.dumps(values))
    config = tb.DistillationConfig.from_json_file(folder / "distill.json")
    assert "temperature : 8" in str(config)
    assert config.intermediate_matches[1].layer_T in ([0, 4], (0, 4))
    train_config = tb.TrainingConfig.from_dict({"output_dir": str(folder / "out"), "device": "cpu", "ckpt_steps": 3})

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs["logits"], "hidden": outputs["hidden"], "inputs_mask": batch["attention_mask"]}

    pupil = student()
    distiller = tb.Distillers["General"](train_config, config, teacher(), pupil, adaptor, adaptor)
    with distiller:
        distiller.train(sgd(pupil), batches(4), num_steps=7)
    assert {path.name for path in (folder / "out").iterdir()} == {"gs3.pkl", "gs6.pkl", "gs7.pkl"}
    return pupil


@script
def several_tasks(tb: Any, folder: Path) -> nn.Module:
    """Of one task, since the two packages draw tasks otherwise."""

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": (outputs["tags"],), "logits_mask": (batch["attention_mask"],)}

    pupil = student()
    distiller = tb.MultiTaskDistiller(
        train_config=training(tb, folder, ckpt_steps=4),
        distill_config=tb.DistillationConfig(),
        model_T={"tags": teacher()},
        model_S=pupil,
        adaptor_T={"tags": adaptor},
        adaptor_S={"tags": adaptor},
    )
    with distiller:
        distiller.train(sgd(pupil), {"tags": batches(3)}, num_steps=8, tau=0.5, batch_postprocessors={"tags": dict})
    return pupil


@script
def training_a_teacher(tb: Any, folder: Path) -> nn.Module:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"losses": (outputs["loss"],)}

    model = teacher()
    trainer = tb.BasicTrainer(train_config=training(tb, folder), model=model, adaptor=adaptor)
    with trainer:
        trainer.train(sgd(model), scheduler_class=None, dataloader=batches(4), num_epochs=2, callback=None)
    return model


def bert(kind: Any, layers: int, seed: int, num_labels: int = CLASSES) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, num_labels=num_labels, **sizes)
    config.output_hidden_states = True
    return kind(config)


@script
def transformers_outputs(tb: Any, folder: Path) -> nn.Module:
    """The package's own example of hidden states, with dropout as models come."""
    wise, pupil = bert(BertForSequenceClassification, 4, 1), bert(BertForSequenceClassification, 2, 2)

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs.logits, "hidden": outputs.hidden_states, "losses": outputs.loss}

    matches = [
        {"layer_T": 2 * layer, "layer_S": layer, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for layer in range(3)
    ]
    config = tb.DistillationConfig(temperature=8, hard_label_weight=0.5, intermediate_matches=matches)
    distiller = tb.GeneralDistiller(training(tb, folder), config, wise, pupil, adaptor, adaptor)
    rows = [{name: value[index] for name, value in batch.items()} for batch in batches(3) for index in range(4)]
    with distiller:
        distiller.train(sgd(pupil), DataLoader(rows, batch_size=4, shuffle=True), num_epochs=2)  # type: ignore[arg-type]
    return pupil


@script
def spans_and_attentions_that_are_none(tb: Any, folder: Path) -> nn.Module:
    wise, pupil = bert(BertForQuestionAnswering, 4, 1, 2), bert(BertForQuestionAnswering, 2, 2, 2)

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        logits = (outputs.start_logits, outputs.end_logits)
        return {"logits": logits, "hidden": outputs.hidden_states, "attention": outputs.attentions}

    matches = [
        {"layer_T": [2 * layer] * 2, "layer_S": [layer] * 2, "feature": "hidden", "loss": "mmd", "weight": 1}
        for layer in range(3)
    ]
    config = tb.DistillationConfig(temperature=1, intermediate_matches=matches)
    distiller = tb.GeneralDistiller(training(tb, folder), config, wise, pupil, adaptor, adaptor)
    places = torch.arange(4) % LENGTH

    def postprocess(batch: Any) -> dict[str, Tensor]:
        return {"input_ids": batch[0], "attention_mask": batch[1], "start_positions": places, "end_positions": places}

    with distiller:
        distiller.train(sgd(pupil), tuples(), 2, batch_postprocessor=postprocess)
    return pupil
