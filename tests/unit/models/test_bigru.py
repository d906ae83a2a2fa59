"""The BiGRU student: its arithmetic beside torch's own bidirectional GRU, and its way from a shape to a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import rows_of, save_family_teacher, without_latency
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

import raybrew
from raybrew.catalog.shapes import RECURRENT_SHAPES
from raybrew.config import StudentConfig
from raybrew.config.loading import build_experiment
from raybrew.errors import ConfigError, ModelError
from raybrew.models import inspection
from raybrew.models.bigru import BiGRUConfig, BiGRUForSequenceClassification, BiGRUModel
from raybrew.models.inspection import count_flops, count_parameters
from raybrew.models.loading import ModelSource, load_model
from raybrew.models.shapes import sizes_text
from raybrew.models.students import build_student, empty_student
from unit.models.test_families import LABELS, experiment_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


def small(**more: Any) -> BiGRUConfig:
    return BiGRUConfig(vocab_size=30, embedding_size=8, hidden_size=6, num_labels=3, **more)


def in_torch(model: BiGRUModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and pooled output of rows without padding, by `nn.GRU` with two directions."""
    reference = nn.GRU(8, 6, batch_first=True, bidirectional=True)
    own = {
        f"{name}{end}": tensor
        for part, end in ((model.ahead, ""), (model.behind, "_reverse"))
        for name, tensor in part.named_parameters()
    }
    reference.load_state_dict(own)
    outputs, last = reference(model.embeddings(tokens))
    return torch.tanh(model.join(outputs)), torch.tanh(model.join(torch.cat([last[0], last[1]], dim=-1)))


@pytest.mark.parametrize("padding", ["right", "left", "both"])
def test_rows_come_out_as_torchs_own_gru_gives_them_alone(padding: str) -> None:
    torch.manual_seed(0)
    model = BiGRUModel(small()).eval()
    rows = [torch.randint(1, 30, (count,)) for count in (5, 1, 7, 3)]
    tokens, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.long)
    starts = {"right": [0] * 4, "left": [9 - len(row) for row in rows], "both": [2, 3, 1, 4]}[padding]
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[place, start : start + len(row)], mask[place, start : start + len(row)] = row, 1
    found = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        hidden, pooled = in_torch(model, row[None])
        torch.testing.assert_close(found.last_hidden_state[place, start : start + len(row)], hidden[0])
        torch.testing.assert_close(found.pooler_output[place], pooled[0])
    assert len(found.hidden_states) == 2
    torch.testing.assert_close(found.hidden_states[0], model.embeddings(tokens))
    gradient = torch.autograd.grad(found.pooler_output.sum() + found.last_hidden_state[mask == 1].sum(),
                                   model.embeddings.weight)[0]  # fmt: skip
    assert (gradient[0] == 0).all(), "padding has no part in it"
    assert (gradient[tokens[mask == 1]] != 0).any(dim=1).all()


def test_its_numbers_are_the_published_ones_and_follow_from_its_sizes(tmp_path: Path) -> None:
    BertConfig(vocab_size=28996).save_pretrained(tmp_path)
    student = StudentConfig(shape="BiGRU")
    model = empty_student(student, ModelSource(str(tmp_path)), "tagging", tuple("abcdefghi"))
    assert count_parameters(model) == pytest.approx(31e6, rel=0.02)
    width = RECURRENT_SHAPES["BiGRU"].hidden
    recurrent = 2 * (3 * width * (768 + width) + 2 * 3 * width)
    assert count_parameters(model) == 28996 * 768 + recurrent + width * 2 * width + width + 9 * width + 9
    assert sizes_text(model.config) == "raybrew-bigru, 1 bidirectional GRU x 768"
    tiny = BiGRUForSequenceClassification(small())
    per_row = 2 * (12 * 6 + 6 * 3)  # what the classifier reads is joined once more
    recurrent_flops = 2 * 2 * 18 * (8 + 6)
    assert count_flops(tiny, 10) == (10, recurrent_flops + 2 * 12 * 6 + per_row / 10, 0.0)
    # On a GPU one kernel computes the whole layer: its formula is given the shapes that it has here.
    of_kernel = inspection._UNKNOWN_TO_TORCH[torch.ops.aten._cudnn_rnn]
    directions = [module for module in tiny.modules() if isinstance(module, torch.nn.GRU)]
    shapes = [[tuple(weight.shape) for weight in each.parameters()] for each in directions]
    assert sum(of_kernel((1, 10, 8), each) for each in shapes) == 10 * recurrent_flops


@pytest.mark.parametrize("task", ["classification", "tagging", "qa"])
def test_a_bigru_from_a_store_to_a_folder(task: str, tmp_path: Path) -> None:
    experiment = experiment_of(
        tmp_path,
        "electra",  # whose embeddings have a width of their own
        task,
        student={"shape": "BiGRU"},
        distill={"temperature": 2.0, "matches": [{"loss": "hidden_mse", "layers": "final"}]},
    )
    run = raybrew.distill(experiment)
    assert "BiGRU" in run.summary["student"]["description"]
    assert "started from the teacher's word embeddings" in (run.path / "metrics.jsonl").read_text()
    assert raybrew.evaluate(experiment).metrics == pytest.approx(run.metrics)
    rows = raybrew.predict(experiment, rows_of(task, tmp_path / "new.jsonl", 3))
    assert len(rows) == 3
    student = load_model(ModelSource(str(run.student)), task)
    assert student.config.embedding_size == 16
    assert raybrew.inspect(experiment, latency=False)["student"].facts["parameters"] == count_parameters(student)
    card = (run.student / "README.md").read_text()
    assert "import raybrew.models.bigru" in card


def test_its_folder_loads_without_raybrew(tmp_path: Path) -> None:
    model = BiGRUForSequenceClassification(small()).eval()
    model.save_pretrained(tmp_path / "student")
    tokens = torch.tensor([[3, 4, 5]])
    code = (
        "import sys, torch\n"
        "sys.modules['raybrew'] = None\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(model(input_ids=torch.tensor([[3, 4, 5]])).logits.flatten().tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "student")],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert json.loads(found.stdout.splitlines()[-1]) == pytest.approx(model(input_ids=tokens).logits[0].tolist())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert type(again) is BiGRUForSequenceClassification


def test_embeddings_come_from_the_teacher_unless_random(tmp_path: Path) -> None:
    teacher = ModelSource(save_family_teacher("bert", tmp_path, "classification", LABELS["classification"]))
    theirs = load_model(teacher, "classification").get_input_embeddings().weight
    for init, equal in (("auto", True), ("teacher", True), ("random", False)):
        config = StudentConfig(shape="BiGRU", init=init)
        one, again, other = (
            build_student(config, teacher, "classification", ("no", "yes"), seed).model for seed in (1, 1, 2)
        )
        assert torch.equal(one.get_input_embeddings().weight, theirs) == equal
        weights = [model.bigru.ahead.weight_hh_l0 for model in (one, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"distill": {"matches": ["L3_attention_mse"]}}, r"distill\.matches\.0: attention_mse compares attention"),
        ({"distill": {"matches": [{"loss": "relation_kl"}]}}, "relation_kl compares qkv, but BiGRU has no attention"),
        ({"distill": {"emd": {"hidden": 1.0, "attention": 1.0}}}, r"distill\.emd\.attention: given, but BiGRU"),
        ({"task": {"kind": "masked_lm"}}, r"student\.shape: given 'BiGRU', which has no masked-LM head"),
        ({"student": {"shape": "BiGRU", "init": "truncate"}}, r"student\.init: given for BiGRU"),
        ({"student": {"shape": "BiGRU", "init_layers": "last"}}, r"student\.init_layers: given for BiGRU"),
    ],
)
def test_what_it_does_not_have_is_refused_by_validate(section: dict[str, Any], words: str) -> None:
    values = {"name": "x", "teacher": {"model": "a/teacher"}, "student": {"shape": "BiGRU"}, **section}
    with pytest.raises(ConfigError, match=words):
        build_experiment(values)


def test_a_bigru_folder_has_no_attention_either_and_is_no_teacher_of_shapes(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "bert", "classification", student={"shape": "BiGRU"}, distill={})
    folder = raybrew.distill(experiment).student
    values = experiment.plain() | {"name": "again", "student": {"model": str(folder)}}
    with pytest.raises(ConfigError, match=r"attention_mse\.1-4 cannot be, as the student has no attention"):
        raybrew.distill(
            build_experiment(values | {"distill": {"matches": [{"loss": "attention_mse", "layers": [[1, 4]]}]}})
        )
    assert raybrew.distill(build_experiment(values)).metrics
    values |= {"teacher": {"model": str(folder)}, "student": {"shape": {"layers": 1}}}
    with pytest.raises(ModelError, match="RAYBREW-BIGRU teacher cannot be shaped: it has no layers"):
        raybrew.distill(build_experiment(values))
