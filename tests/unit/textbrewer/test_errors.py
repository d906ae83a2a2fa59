"""What is wrong is named before the first step, with the match and both shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    CLASSES,
    HIDDEN,
    batches,
    distiller,
    examples_adaptor,
    logits_adaptor,
    settings,
    sgd,
    spans_adaptor,
    student,
    teacher,
    weights_of,
)
from torch import nn

from raybrew import (
    BasicDistiller,
    DistillationConfig,
    GeneralDistiller,
)
from raybrew.errors import ConfigError, DivergenceError, LossError


def test_nan_is_reported(tmp_path: Path) -> None:
    pupil = student()
    data = batches(4)
    with torch.no_grad():
        pupil.classifier.weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"before the first step: \{'kd': nan\}"):
        distiller(tmp_path, pupil, logits_adaptor).train(sgd(pupil), data, num_epochs=1)
    pupil = student()
    with pytest.raises(DivergenceError, match=r"no longer finite at step 2 .*loss/kd"):
        distiller(tmp_path, pupil, logits_adaptor).train(sgd(pupil, lr=1e38), data, num_epochs=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("problem", "values", "adaptor"),
    [
        ("hidden_mse.2-4: layer 4 .*add the key 'hidden'.*: hiden", {}, lambda b, o: {"hiden": o["hidden"]}),
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
