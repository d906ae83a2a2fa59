"""Models of every family on the pretend accelerator: trained, live teachers, captured, scored, as on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from commands import CPU, FAMILIES, Project, distil_on, refuse_waits, watch, weights_of, work_on
from machines import refuse_others
from pretend import DEVICE, Accelerator
from test_capture import LISTED, captured
from tiny_runs import gap

import raybrew
from raybrew.catalog.shapes import RecurrentShape
from raybrew.config import Experiment
from raybrew.models.attention import PROJECTED_MODELS
from raybrew.models.loading import ModelSource
from raybrew.models.shapes import FAMILIES as SHAPED
from raybrew.signals import parse_signal

#: Functions of transformers that make the host wait in a forward pass, by family, and why it is left to them.
WITHIN: dict[str, dict[str, str]] = {
    "deberta-v3": {
        "models/deberta_v2/modeling_deberta_v2.py:make_log_bucket_position": "a number is made a tensor of the host, "
        "then sent to the device, in each layer's pass"
    }
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("families"))


def experiment_of(project: Project, family: str) -> Experiment:
    """A live teacher of the family, and a student of its shape, or where it has none another of the same size."""
    shaped = FAMILIES[family][0] in SHAPED
    student = {"shape": {"layers": 2}} if shaped else {"model": project.teacher("classification", family, seed=1)}
    teacher = {"model": project.teacher("classification", family), "source": "live"}
    matches = [{"loss": "hidden_mse"}, {"loss": "pooled_mse"}, {"loss": "attention_mse", "layers": "final"}]
    return project.experiment(
        teacher=teacher, student=student, distill={"hard_label_weight": 0.5, "matches": matches if shaped else []}
    )


def test_every_family_that_students_are_built_of_is_here() -> None:
    assert set(SHAPED) <= {kind for kind, _, _ in FAMILIES.values()}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_train(project: Project, family: str) -> None:
    experiment = experiment_of(project, family)
    expected = weights_of(distil_on(CPU, experiment))
    watched = watch(experiment)
    largest, mean = gap(weights_of(watched.run), expected)
    assert largest < 1e-3
    assert mean < 1e-7
    refuse_waits(watched, within=WITHIN.get(family, {}))


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_recurrent_students_train(project: Project, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybrew.models.students.RECURRENT_SHAPES", {"BiGRU": RecurrentShape(16, "narrow")})
    experiment = project.experiment(task, student={"shape": "BiGRU"}, distill={"hard_label_weight": 0.5})
    expected = weights_of(distil_on(CPU, experiment))
    watched = watch(experiment)
    largest, mean = gap(weights_of(watched.run), expected)
    assert largest < 1e-3
    assert mean < 1e-7
    refuse_waits(watched)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_captured_and_scored(project: Project, family: str) -> None:
    names = ["logits", "hidden.0", "hidden.4", "attention.2", *(["pooled"] if family != "gpt2" else [])]
    if FAMILIES[family][0] in PROJECTED_MODELS:
        names += ["query.1", "key.2", "value.3"]
    experiment = experiment_of(project, family)
    found: list[Any] = []
    for device in (CPU, DEVICE):
        with Accelerator() as accelerator, pytest.MonkeyPatch.context() as patch:
            work_on(device, patch)
            source = ModelSource(str(experiment.teacher.model))
            stored = captured(source, device, "float32", "fp32", tuple(map(parse_signal, names)))
            within = WITHIN.get(family, {})
            refuse_others({wait.site for wait in accelerator.waits if wait.within not in within} - {"test"}, LISTED)
            found.append((stored, raybrew.evaluate(experiment, model=source.model).metrics))
    (expected, metrics), (stored, scored) = found
    assert stored.keys() == expected.keys()
    for name, values in stored.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4, rtol=1e-4, err_msg=name)
    assert scored == pytest.approx(metrics)
