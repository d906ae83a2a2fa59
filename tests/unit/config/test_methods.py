"""`distill.method`: what each row sets, what may stand beside it, and what it makes of a run's identity."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from transformers import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig
from typer.testing import CliRunner

from raybrew.catalog.methods import METHODS
from raybrew.config.distill import DistillConfig
from raybrew.config.experiment import Experiment
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.config.views import task_views
from raybrew.errors import ConfigError, LossError, ModelError
from raybrew.models.loading import ModelSource
from raybrew.pipeline import objective as objective_module
from raybrew.pipeline.objective import objective_of
from raybrew.pipeline.resolve import resolve
from raybrew.signals import LOGITS
from raybrew.sweeps.controls import Controls
from raybrew.sweeps.jobs import make_job


def experiment(distill: Mapping[str, Any], **sections: Any) -> Experiment:
    values = {
        "name": "x",
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "teacher": {"model": "a/b"},
        "student": {"shape": {"layers": 3}},
        "distill": dict(distill),
    }
    return build_experiment(values | sections, check_files=False)


def problem(distill: Mapping[str, Any], **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment(distill, **sections)
    return str(caught.value)


def test_names_are_those_of_the_table_and_are_listed() -> None:
    from raybrew.cli.main import app

    names, *_ = typing.get_args(DistillConfig.model_fields["method"].annotation)
    assert set(typing.get_args(names)) == set(METHODS)
    result = CliRunner().invoke(app, ["list", "methods", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row["summary"] for row in json.loads(result.stdout)}
    assert list(rows) == [*METHODS, "package.module:Name"]
    assert "Jiao et al., arXiv:1909.10351" in rows["tinybert"]
    assert "T6, MNLI accuracy, dev m/mm: 83.5 / 84.0" in rows["textbrewer"]
    assert "T6, MNLI accuracy, dev m: 84.2" in rows["minilm-v2"]


CONFIGS = {
    "bert": lambda layers, hidden: BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=2, intermediate_size=2 * hidden
    ),
    "roberta": lambda layers, hidden: RobertaConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=2, intermediate_size=2 * hidden
    ),
    "electra": lambda layers, hidden: ElectraConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=2, intermediate_size=2 * hidden
    ),
    "distilbert": lambda layers, hidden: DistilBertConfig(
        n_layers=layers, dim=hidden, n_heads=2, hidden_dim=2 * hidden
    ),
}

#: Terms of each stage for a student of 3 layers and a teacher of 12.
TERMS = {
    "kd": [["kd"]],
    "labels": [["label"]],
    "textbrewer": [
        [
            "kd",
            *(f"hidden_mse.{pair}" for pair in ("0-0", "1-4", "2-8", "3-12")),
            *(f"mmd.{pair}" for pair in ("0-0", "1-4", "2-8", "3-12")),
        ]
    ],
    "distilbert": [["kd", "label", "cos.3-12"]],
    "pkd-skip": [["kd", "label", "pkd.1-4", "pkd.2-8"]],
    "pkd-last": [["kd", "label", "pkd.1-10", "pkd.2-11"]],
    "tinybert": [
        [
            *(f"hidden_mse.{pair}" for pair in ("0-0", "1-4", "2-8", "3-12")),
            *(f"attention_mse.{pair}" for pair in ("1-4", "2-8", "3-12")),
        ],
        ["kd"],
    ],
    "theseus": [["label"], ["label"]],
    "emd": [["kd", "emd.hidden", "emd.embeddings", "emd.attention"]],
    "minilm": [["relation_kl_attention.3-12", "relation_kl_value.3-12"], ["kd"]],
    "minilm-v2": [["relation_kl_query.3-12", "relation_kl_key.3-12", "relation_kl_value.3-12"], ["kd"]],
}


def stages_of(
    monkeypatch: pytest.MonkeyPatch, method: str, student: tuple[int, int], teacher: tuple[int, int], family: str
) -> Any:
    make = CONFIGS[family]
    monkeypatch.setattr(objective_module, "load_config", lambda source: make(*teacher))
    return objective_of(
        resolve(experiment({"method": method})).tasks[0], make(*student), {"": ModelSource("teacher")}
    ).stages


@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("method", list(TERMS))
def test_rows_find_the_layers_of_any_family(monkeypatch: pytest.MonkeyPatch, method: str, family: str) -> None:
    stages = stages_of(monkeypatch, method, (3, 8), (12, 8), family)
    assert [[term.name for term in stage.terms] for stage in stages] == TERMS[method]
    # A stage asks for nothing that its terms do not read.
    for stage in stages:
        names = {term.name for term in stage.terms}
        assert (LOGITS in stage.teacher_request) == ("kd" in names)
        assert (LOGITS in stage.student_request) == bool(names & {"kd", "label"})


@pytest.mark.parametrize("method", list(TERMS))
@pytest.mark.parametrize("layers", [2, 6])
def test_narrow_students_get_projections_where_losses_need_them(
    monkeypatch: pytest.MonkeyPatch, method: str, layers: int
) -> None:
    if method == "theseus":
        with pytest.raises(ModelError, match="the student is 4 wide, the teacher 8"):
            stages_of(monkeypatch, method, (layers, 4), (12, 8), "bert")
        return
    same = stages_of(monkeypatch, method, (layers, 8), (12, 8), "bert")
    narrow = stages_of(monkeypatch, method, (layers, 4), (12, 8), "bert")
    assert [len(stage.terms) for stage in same] == [len(stage.terms) for stage in narrow]
    projected = {name for stage in narrow for name in stage.projections if name.startswith(("hidden", "cos", "pkd"))}
    needing = {term.name for stage in narrow for term in stage.terms if term.name.startswith(("hidden", "cos", "pkd"))}
    assert {name.replace(".", "_") for name in needing} == projected


def test_attention_of_other_heads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "load_config", lambda source: CONFIGS["bert"](12, 8))
    other = BertConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=4, intermediate_size=16)
    for method, words in (("tinybert", "the student has 4 attention heads, the teacher 2"), ("emd", "set it to 0")):
        with pytest.raises(LossError, match=words):
            objective_of(resolve(experiment({"method": method})).tasks[0], other, {"": ModelSource("teacher")})


def test_given_keys_win() -> None:
    found = experiment({"method": "pkd-skip", "temperature": 3.0, "hard_label_weight": 0.25}).distill
    assert (found.temperature, found.hard_label_weight, found.kd_weight) == (3.0, 0.25, 0.5)
    found = experiment({"method": "emd", "emd": {"attention": 0.0}}).distill
    assert found.emd is not None
    assert (found.emd.attention, found.emd.hidden) == (0.0, 1.0)
    own = [{"loss": "pkd", "layers": [[1, 6], [2, 12]], "weight": 2.0}]
    assert experiment({"method": "pkd-skip", "matches": own}).distill.matches[0].weight == 2.0
    two = experiment({"method": "tinybert", "temperature": 3.0, "hard_label_weight": 0.5}).distill.parts
    assert [(part.temperature, part.kd_weight, part.hard_label_weight) for part in two] == [(3, 0, 0), (3, 1, 0.5)]


def test_a_file_turned_into_its_labels_control_by_the_override_that_the_message_names() -> None:
    given = {"method": "labels", "matches": ["L3_hidden_mse"], "kd_weight": 1.0}
    message = problem(given)
    named = dict(re.findall(r"distill\.(\w+)=([^\s)]+)", message))
    assert set(named) == {"matches", "kd_weight"}
    found = experiment(given | {key: yaml.safe_load(value) for key, value in named.items()}).distill
    assert (found.matches, found.kd_weight, found.hard_label_weight) == ((), 0.0, 1.0)


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        (
            {"method": "tinybert", "emd": {}},
            "distill.emd: given, but method 'tinybert' has no such part; drop",
        ),
        ({"method": "kd", "matches": ["L3_hidden_mse"]}, "distill.matches: given, but method 'kd' has no such part"),
        ({"method": "labels", "kd_weight": 1.0}, "distill.kd_weight: given, but method 'labels' has no such part"),
        ({"method": "labels", "hard_label_weight": 0.0}, "distill.hard_label_weight: given as 0, but method 'labels'"),
        ({"method": "kd", "kd_weight": 0.0, "hard_label_weight": 1.0}, "distill.kd_weight: given as nothing"),
        ({"method": "textbrewer", "matches": []}, "distill.matches: given as nothing, but method 'textbrewer' is made"),
        ({"method": "minilm", "stages": []}, "distill.stages: given as nothing, but method 'minilm' is made of it"),
        (
            {"method": "pkd-skip", "matches": ["L3_hidden_mse"]},
            "distill.matches: has hidden_mse, but method 'pkd-skip' has pkd; drop distill.matches",
        ),
        (
            {"method": "tinybert", "stages": [{"share": 0.5, "kd_weight": 0.0, "matches": ["L3_hidden_mse"]}, {}]},
            "distill.stages: has hidden_mse, but method 'tinybert' has attention_mse, hidden_mse",
        ),
        ({"method": "theseus", "kd_weight": 0.5}, "distill.kd_weight: given, but method 'theseus' has no such part"),
        (
            {"method": "theseus", "stages": [{"share": 0.5}, {}]},
            "distill.stages: has nothing but logits, but method 'theseus' has theseus",
        ),
        ({"method": "tinbert"}, "did you mean 'tinybert'?"),
    ],
)
def test_what_makes_another_method_is_refused(distill: dict[str, Any], words: str) -> None:
    assert words in problem(distill)


def test_several_tasks_have_the_same_stages() -> None:
    part = {"data": {"train": "a/b"}, "teacher": {"model": "a/b"}}
    several = {"task": {"kind": "multi", "tasks": {"one": part, "two": part}}, "data": {}, "teacher": {}}
    own = {"loss": "hidden_mse", "teacher": "one"}
    first = {"share": 0.5, "matches": [own, {"loss": "cos"}]}
    found = task_views(experiment({"stages": [first, {}]}, **several))
    losses = {name: [match.loss for match in view.distill.parts[0].matches] for name, _, view in found}
    assert losses == {"one": ["hidden_mse", "cos"], "two": ["cos"]}
    staged = task_views(experiment({"method": "tinybert"}, **several))
    assert [len(view.experiment.distill.parts) for view in staged] == [2, 2]
    words = problem({"stages": [{"share": 0.5, "matches": [own | {"teacher": "three"}]}, {}]}, **several)
    assert "distill.stages.0.matches.0.teacher: given 'three'; allowed: one, two" in words
    words = problem({"method": "theseus"}, **several)
    assert "distill.stages.0.theseus: given with several tasks; it is for one task and one teacher" in words


def test_a_run_is_what_it_computes(tmp_path: Any) -> None:
    """The name is no part of it; a resolved file, and what a worker is sent, are the same run."""
    named = experiment({"method": "distilbert"})
    spelt = experiment({key: value for key, value in named.plain()["distill"].items() if key != "method"})
    assert named.run_id("distill") == spelt.run_id("distill")
    assert experiment({}).run_id("distill") == experiment({"method": "kd"}).run_id("distill")
    for method in METHODS:
        found = experiment({"method": method})
        (tmp_path / "config.yaml").write_text(found.to_yaml())
        again = load_experiment(tmp_path / "config.yaml", check_files=False)
        assert again == Experiment.model_validate(found.plain()) == found
        assert again.run_id("distill") == found.run_id("distill")
    assert len({experiment({"method": method}).run_id("distill") for method in METHODS}) == len(METHODS)


def test_old_identities_stay() -> None:
    """What is not set does not change the ids of runs made before methods and stages."""
    assert set(experiment({}).identity("distill")["distill"]) == {
        "temperature",
        "temperature_schedule",
        "kd_loss",
        "kd_weight",
        "hard_label_weight",
        "scale_by_temperature_squared",
        "probability_shift",
        "matches",
    }


def test_methods_in_one_sweep(tmp_path: Any) -> None:
    """A base's own keys stay, defaults give way to each method; `labels` is the control itself."""
    space = {"distill.method": list(METHODS)}
    base = experiment({"method": "tinybert", "temperature": 3.0}, sweep={"space": space})
    jobs = {name: make_job(base, {"distill.method": name}, 0, "group") for name in METHODS}
    for name, job in jobs.items():
        wanted = experiment({"method": name, "temperature": 3.0})
        assert job.experiment.distill == wanted.distill
        assert job.run == wanted.run_id("distill")
    # What a run keeps of it, and what travels with a job, is the same sweep.
    (tmp_path / "config.yaml").write_text(base.to_yaml())
    again = load_experiment(tmp_path / "config.yaml", check_files=False)
    assert again == base
    assert again.sweep_id() == base.sweep_id()
    for name, job in jobs.items():
        assert make_job(again, {"distill.method": name}, 0, "group").run == job.run
    (control,) = Controls(base, "group", lambda candidate, control: {}).jobs(jobs["tinybert"], 1)
    assert control.run == jobs["labels"].run
    words = problem({"matches": ["L3_hidden_mse"]}, sweep={"space": {"distill.method": ["textbrewer", "kd"]}})
    assert "impossible with distill.method=kd" in words


def test_a_run_too_short_for_its_stages() -> None:
    words = problem({"method": "tinybert"}, train={"max_steps": 1})
    assert "train.max_steps: given 1; distill.stages.1: stages of 1, 0 steps in a run of 1; each needs one" in words
    assert experiment({"method": "tinybert"}, train={"max_steps": 3}).train.max_steps == 3


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"share": 0.5}, {"share": 0.6}], "distill.stages: the shares add up to 1.1; allowed: 1"),
        ([{"share": 0.5}, {"share": 0.5}, {}], "the shares add up to 1 and leave nothing for the last one"),
        ([{}, {}], "distill.stages.0: needs share or steps; only the last stage takes what the others leave"),
        ([{"share": 0.5, "steps": 3}, {}], "distill.stages.0.steps: given beside share; allowed: one of them"),
        ([{"share": 0.5}, {"steps": 3}], "distill.stages.1.steps: given 3 for the last stage"),
        ([{"steps": 3}, {"share": 0.5}], "distill.stages.1.share: given for the last stage beside stages with steps"),
        ([{"share": 0.5, "name": "2"}, {}], "distill.stages.1.name: given '2', which another stage is called"),
        (
            [{"share": 0.5, "kd_weight": 0.0}, {}],
            "distill.stages.0: kd_weight, hard_label_weight and all",
        ),
        (
            [{"share": 0.5, "matches": [{"loss": "mmd", "feature": "hidden"}]}, {}],
            "distill.stages.0.matches.0.feature: given for mmd",
        ),
        ([{"share": 0.5, "kd_loss": {"kind": "bce"}}, {}], "distill.stages.0.kd_loss.kind: given 'bce'"),
    ],
)
def test_stages_that_do_not_divide_a_run(stages: list[Any], words: str) -> None:
    assert words in problem({"stages": stages})
