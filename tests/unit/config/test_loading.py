"""Experiment files: what is accepted, and that everything wrong with one is said at once and precisely."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybrew.config import Experiment, MatchConfig
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.config.template import experiment_template
from raybrew.errors import ConfigError
from tests.told import told

GOOD = """
name: good
data: {train: train.csv, eval: eval.csv}
teacher: {model: owner/teacher, finetune: {epochs: 2}}
student: {shape: T3}
distill: {temperature: 8, matches: [{loss: hidden_mse}, {loss: cos, layers: [[0, 0], [3, 12]]}]}
"""


def write(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str, files: bool = False) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(folder, text), overrides, check_files=files)
    assert caught.value.exit_code == 3
    return tuple(map(str, caught.value.problems))


def test_a_file_is_read_with_its_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    found = load_experiment(path, ["train.learning_rate=1e-3", "data.eval=null", "student.shape={layers: 2}"], False)
    assert found.train.learning_rate == 1e-3
    assert found.data.eval is None
    assert found.student.shape.layers == 2  # type: ignore[union-attr]
    assert found.distill.temperature == 8
    assert found.distill.matches[1] == MatchConfig(loss="cos", layers=((0, 0), (3, 12)))
    assert found.teacher.finetune is not None
    assert (found.teacher.finetune.epochs, found.teacher.finetune.learning_rate) == (2, 3e-5)


def test_what_is_dumped_reads_back_equal(tmp_path: Path) -> None:
    found = load_experiment(write(tmp_path, GOOD), check_files=False)
    assert load_experiment(write(tmp_path, found.to_yaml(), "again.yaml"), check_files=False) == found


def test_extends_reads_bases_first_and_finds_circles(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    child = write(tmp_path, "extends: base.yaml\nname: child\ntrain: {seed: 3}\n", "child.yaml")
    found = load_experiment(child, ["train.seed=4"], check_files=False)
    assert (found.name, found.student.shape, found.train.seed) == ("child", "T3", 4)
    write(tmp_path, "extends: child.yaml\nname: base\n", "base.yaml")
    with pytest.raises(ConfigError, match=r"circle: child.yaml -> base.yaml -> child.yaml"):
        load_experiment(child)


def test_all_problems_at_once_with_key_value_and_near_match(tmp_path: Path) -> None:
    text = """
name: two words
trian: {}
train: {epoch: 3, batch_size: "32", schedule: linaer, warmup: 1.5, micro_batch_size: 64}
student: {shape: {layers: 3, hiden: 3}, init_layers: 5}
distill: {matches: [{loss: hidden_msee}], kd_loss: {kind: klx}, temperature: -1}
data: {train: nowhere.csv, eval_rows: 3}
store: {actors: [3, 1], signals: [hiddn]}
"""
    found = problems(tmp_path, text, "train.seed=x", "data.columns.text=label", files=True)
    expected = [
        "name: given 'two words'",
        "trian: unknown section; .*did you mean 'train'",
        r"train.epoch: unknown key \(given 3\); .*did you mean 'epochs'",
        "train.batch_size: given '32'; allowed: a whole number",
        "train.schedule: given 'linaer'; allowed: linear, cosine, constant; did you mean 'linear'",
        "train.warmup: given 1.5; allowed: less than 1",
        "train.seed: given 'x'; allowed: a whole number",
        "student.shape.hiden: unknown key .*did you mean 'hidden'",
        "student.init_layers: given 5; allowed: even, first, last, stride, skip or a function of your own .* or a list",
        "distill.matches.0.loss: given 'hidden_msee'; .*did you mean 'hidden_mse'",
        "distill.kd_loss.kind: given 'klx'; .*did you mean 'kl'",
        "distill.temperature: given -1; allowed: at least 0.001",
        "data.train: given 'nowhere.csv'; no such file",
        "data.eval_rows: given 3, but data.eval names no source",
        "data.columns: given label, label",
        r"store.actors: given \[3, 1\]",
        "store.signals: unknown signal 'hiddn'",
    ]
    import re

    for pattern in expected:
        assert any(re.match(pattern, line) for line in found), f"{pattern} not among\n" + "\n".join(found)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.micro_batch_size=64", "train.micro_batch_size: value"),
        ("train.workers=64", "train.workers: value"),
        ("train={workers: 2, launcher: local}", "train.launcher: conflict"),
        ("train.workers=[1,64]", "train.workers: value"),
        ("train={workers: [1, 64], batch_tokens: 4096}", None),
        ("train.workers=[3,2]", "train.workers: value"),
        ("train.workers=0", "train.workers: value"),
        ("train={workers: [1, 2], launcher: local}", "train.launcher: conflict"),
        ("train={batch_tokens: 8, micro_batch_tokens: 9}", "train.micro_batch_tokens: value"),
        ("train={eval_steps: 8, eval_epochs: 9}", "train.eval_epochs: conflict"),
        ("train={checkpoint_steps: 8, checkpoint_epochs: 9}", "train.checkpoint_epochs: conflict"),
        ("train={compile: true, parallel: fsdp}", "train.compile: conflict"),
        ("train={precision: fp16, device: cpu}", "train.precision: conflict"),
        ("student.model=some/model", "student: conflict"),
        ("student.init_layers=[1,2]", None),
        ("student={shape: {layers: 2}, init_layers: [1]}", "student.init_layers: value"),
        ("student={shape: {layers: 2}, init_layers: [0, 1]}", "student.init_layers: value"),
        ("student={shape: {layers: 2, hidden: 10, heads: 3}}", "student.shape.heads: value"),
        ("teacher.model=null", "teacher.model: required"),
        ("distill={kd_weight: 0, matches: []}", "distill: empty"),
        ("distill={matches: [{loss: cos, layers: [[1]]}]}", "distill.matches.0.layers: value"),
        ("distill={matches: [{loss: cos, layers: []}]}", "distill.matches.0.layers: empty"),
        ("distill={matches: [{loss: attention_ce, layers: [[1, 2]]}]}", None),
        (
            "distill={matches: [{loss: attention_ce, layers: [[0, 2]]}]}",
            "distill.matches.0.layers: value",
        ),
        (
            "distill={matches: [{loss: attention_mse, projection: linear}]}",
            "distill.matches.0.projection: unused",
        ),
        ("distill.temperature_schedule={kind: flsw, beta: 1, gamma: 2}", None),
        ("distill.temperature_schedule={kind: cwsm, beta: 2}", None),
        (
            "distill.temperature_schedule={kind: cwsm, gamma: 2}",
            "distill.temperature_schedule.gamma: unused",
        ),
        (
            "distill.temperature_schedule={kind: flsv}",
            "distill.temperature_schedule.kind: unknown",
        ),
        ("distill.temperature_schedule={kind: flsw, beta: -1}", "distill.temperature_schedule.beta: value"),
        ("store.storage_path=s3://bucket/runs", "store.storage_path: value"),
        ("store.path=http://bucket/x", "store.path: value"),
        ("store.path=s3://", "store.path: value"),
        ("store.path=s3://key:word@bucket/x", "store.path: secret"),
        ("sweep={x: 1}", "sweep.x: unknown"),
        ("train.epochs=true", "train.epochs: value"),
        ("train.epochs=2.5", "train.epochs: value"),
        ("task.labels=[a]", "task.labels: value"),
        ("task.labels=[a,a]", "task.labels: value"),
    ],
)
def test_impossible_combinations(tmp_path: Path, override: str, problem: str | None) -> None:
    path = write(tmp_path, GOOD)
    if problem is None:
        load_experiment(path, [override], check_files=False)
        return
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, [override], check_files=False)
    assert problem in told(caught.value), caught.value


@pytest.mark.parametrize(
    ("matches", "key", "message"),
    [
        ("[L3_hiden_mse]", "0", "given 'L3_hiden_mse'; allowed: a section of keys, or a name such as L3_hidden_mse "),
        ("[L3_hiden_mse]", "0", "did you mean 'L3_hidden_mse'?"),
        ("[{preset: large_hidden_mse}]", "0", "or a name such as L3_hidden_mse"),
        ("[L3_hidden_mse, {preset: L3_hidden_smmd, loss: cos}]", "1", "allowed: loss: mmd, or no loss, beside preset"),
        ("[{preset: L3_hidden_smmd, layers: last}]", "0", "allowed: layers: even, or no layers, beside preset"),
        ("[{preset: L3_hidden_mse, weigth: 2}]", "0.weigth", "unknown key (given 2); allowed: loss, layers, weight"),
        ("[3]", "0", "given 3; allowed: a section of keys"),
    ],
)
def test_wrong_names_of_matches(tmp_path: Path, matches: str, key: str, message: str) -> None:
    (problem,) = problems(tmp_path, GOOD, f"distill.matches={matches}")
    assert problem.startswith(f"distill.matches.{key}: "), problem
    assert message in problem


def test_unlabelled_rows_need_a_teacher(tmp_path: Path) -> None:
    found = problems(
        tmp_path, GOOD, "data.unlabeled=more.csv", "distill={kd_weight: 0, hard_label_weight: 1, matches: []}"
    )
    assert found[0].startswith("data.unlabeled: given, but the student learns from labels only")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "the key 'name' occurs twice"),
        ("name: [", "line 2"),
        ("- a\n- b\n", "holds a list"),
        ("", "required"),
        ("name: ${nothing.here}\n", "nothing"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(tmp_path, text))


def test_a_model_that_can_be_no_hub_name_must_be_a_folder(tmp_path: Path) -> None:
    values = {"name": "n", "teacher": {"model": "path/or/hub-name"}, "student": {"shape": "T3"}}
    with pytest.raises(ConfigError, match=r"teacher.model: given 'path/or/hub-name'; no such folder"):
        build_experiment(values)
    for name in ("bert-base-cased", "google/electra-small", str(tmp_path)):
        assert build_experiment({**values, "teacher": {"model": name}}).teacher.model == name


def test_missing_files_name_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such experiment file"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="extended by"):
        load_experiment(write(tmp_path, "extends: none.yaml\nname: x\n"))
    with pytest.raises(ConfigError, match=r"reads section\.key=value, given 'train.seed'"):
        load_experiment(write(tmp_path, GOOD), ["train.seed"])


def test_the_template_is_valid_and_shows_every_key(tmp_path: Path) -> None:
    text = experiment_template("new.yaml")
    load_experiment(write(tmp_path, text), check_files=False)
    shown = {line.strip().removeprefix("# ").split(":")[0] for line in text.splitlines() if ":" in line}
    for name, section in Experiment.model_fields.items():
        assert name in shown
        for key in getattr(section.annotation, "model_fields", {}):
            assert key in shown, f"{name}.{key}"
    # Every default that is commented out can be uncommented as it stands.
    uncommented = [
        line.replace("# ", "", 1) if line.startswith("  # ") and _is_setting(line) else line
        for line in text.splitlines()
    ]
    load_experiment(write(tmp_path, "\n".join(uncommented), "all.yaml"), check_files=False)


def _is_setting(line: str) -> bool:
    key = line.removeprefix("  # ").split(":")[0]
    keys = {key for field in Experiment.model_fields.values() for key in getattr(field.annotation, "model_fields", {})}
    return key in keys


def test_run_ids_follow_what_decides_the_result(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)

    def ids(*overrides: str) -> tuple[str, str]:
        found = load_experiment(path, overrides, check_files=False)
        return found.run_id("finetune"), found.run_id("distill")

    base = ids()
    assert base[0].startswith("finetune-")
    assert ids("train.workers=2", "train.device=cpu", "tracking.tensorboard=true", "train.keep_checkpoints=5") == base
    assert ids("train.workers=[1,2]", "train.parallel=fsdp", "train.gradient_checkpointing=true") == base
    changed = ids("train.seed=1")
    assert changed[0] == base[0]
    assert changed[1] != base[1]
    assert ids("data.unlabeled=more.csv")[0] == base[0]
    assert ids("teacher.finetune.epochs=9")[0] != base[0]


def test_configs_are_frozen_and_built_from_plain_values() -> None:
    found = build_experiment({"name": "x", "distill": {"hard_label_weight": 1.0, "kd_weight": 0.0}}, check_files=False)
    with pytest.raises(ValueError, match="frozen"):
        found.train.seed = 2  # type: ignore[misc]
    with pytest.raises(ConfigError, match="mapping of sections"):
        build_experiment([1])


def test_a_cause_is_told_once() -> None:
    values = {
        "name": "x",
        "task": {"kind": "masked_lm"},
        "data": {"train": "a.txt"},
        "teacher": {"model": "b"},
        "student": {"shape": "BiGRU", "vocabulary": {}},
    }
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, check_files=False)
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["student.shape", "student.vocabulary"]
