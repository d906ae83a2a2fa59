"""Bad files, overrides and numbers: each kind ends in exit code 3 with the key, in a message that people read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from raybrew.cli.main import main
from raybrew.config import MatchConfig
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.errors import ConfigError, RunError
from raybrew.records.runs import load_run
from raybrew.records.sweeps import load_sweep
from tests.told import told

GOOD: dict[str, Any] = {"name": "good", "teacher": {"model": "owner/teacher"}, "student": {"shape": "T3"}}
TEXT = "name: good\nteacher: {model: owner/teacher}\nstudent: {shape: T3}\n"


def write(folder: Path, text: str | bytes, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides, check_files=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("~: 1\n", "line 4, column 1"),
        ("train: {null: 1}\n", "line 4, column 9"),
        ("train: {1: 2}\n", "line 4"),
        ("train: {yes: 2}\n", "line 4"),
        ("train: {[1]: 2}\n", "line 4"),
        ("train: !!set {epochs}\n", "the tag 'set' is not supported"),
        ("train: !!binary aGVsbG8=\n", "binary"),
        ("train: !!python/object:os.system x\n", "python/object"),
        ("train: {seed: !!int abc}\n", "'abc' is not a valid int"),
        ("train: {compile: !!bool maybe}\n", "'maybe' is not a valid bool"),
        (f"train: {{seed: {'9' * 5000}}}\n", "not a valid int"),
        (f"train: {'[' * 100_000}\n", "nested more than 32 deep"),
        (f"train: {'{a: ' * 40}1{'}' * 40}\n", "nested more than 32 deep"),
        ("train: &a {epochs: 1, x: *a}\n", "an alias holds itself"),
        ("train: {<<: 3}\n", "expected a mapping"),
        ("train: {epochs: 1, epochs: 2}\n", "'epochs' occurs twice"),
        ("extends: 1.5\n", "extends: given 1.5"),
        ("extends: {a: b}\n", "extends: given"),
        ("extends: [null]\n", "extends: given"),
        ("extends: ${name}\n", "no such experiment file"),
        ("data: {train: '${a.b}'}\n", "data.train: given '${a.b}'"),
        ("data: {train: '${'}\n", "data.train: given '${'"),
        ("data: {train: '${data.eval}', eval: '${data.train}'}\n", "data.train: given"),
        ("data: {train: '???'}\n", "data.train: required"),
        ('data: {train: "a\\0b"}\n', "data.train: given"),
        ("train: {learning_rate: .inf}\n", "train.learning_rate: given inf; allowed: a finite number"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate: given nan"),
        ("distill: {temperature: 1e999}\n", "distill.temperature: given inf"),
        ("sweep: {space: {distill.temperature: {uniform: [1, .inf]}}}\n", "given inf; allowed: a finite number"),
        ("distill: {method: [kd]}\n", "distill.method: given ['kd']"),
        (f"data: {{train: {'a/' * 3000}x}}\n", "data.train: given 6001 characters; allowed: at most 4096"),
        (f"store: {{storage_path: {'a' * 300}}}\n", "store.storage_path: given"),
        ("store: {storage_path: ~nobody-there/x}\n", "there is no such user"),
    ],
)
def test_files(text: str, where: str, tmp_path: Path) -> None:
    message = refused(write(tmp_path, TEXT + text))
    assert where in message
    assert len(message) < 2000


def test_wrong_types_under_what_is_extended(tmp_path: Path) -> None:
    """A file that puts a list where its base has a section, and the other way round."""
    write(tmp_path, TEXT + "train: {epochs: 2}\ndistill: {matches: []}\n", "base.yaml")
    assert "train: given [1]" in refused(write(tmp_path, "extends: base.yaml\ntrain: [1]\n"))
    assert "distill.matches: given {'a': 1}" in refused(
        write(tmp_path, "extends: base.yaml\ndistill: {matches: {a: 1}}\n")
    )


def test_files_that_extend_each_other_many_times_are_read_once(tmp_path: Path) -> None:
    """Two bases, each with two bases, ...: 2 ** 19 readings if each were read whenever it is named."""
    write(tmp_path, TEXT, "0.yaml")
    for number in range(1, 20):
        write(
            tmp_path, f"extends: [{number - 1}.yaml, {number - 1}.yaml]\ntrain: {{seed: {number}}}\n", f"{number}.yaml"
        )
    assert load_experiment(tmp_path / "19.yaml", check_files=False).train.seed == 19
    for number in range(20, 30):
        write(tmp_path, f"extends: {number - 1}.yaml\n", f"{number}.yaml")
    assert "extends: a chain of more than 20 files" in refused(tmp_path / "29.yaml")


def test_aliases_that_stand_for_millions_of_values_are_counted_before_they_are_made(tmp_path: Path) -> None:
    names = "abcdefghijklm"
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{one}: &{one} [{', '.join([f'*{before}'] * 10)}]" for before, one in itertools.pairwise(names)]
    assert "more than 200000 values" in refused(write(tmp_path, TEXT + "\n".join(lines)))
    interpolated = [
        f"{one}: [" + ", ".join([f"'${{{before}}}'"] * 10) + "]" for before, one in itertools.pairwise(names)
    ]
    assert "too many values" in refused(write(tmp_path, TEXT + "\n".join([lines[0].replace("&a ", ""), *interpolated])))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    assert "larger than 1 MiB" in refused(path)


def test_what_interpolations_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS_HERE", "rows.tsv")
    path = write(tmp_path, TEXT + "data: {train: '${oc.env:ROWS_HERE}', eval: '${data.train}'}\n")
    found = load_experiment(path, ["train.seed=${data.train_rows}", "data.train_rows=7"], check_files=False)
    assert (found.data.train, found.data.eval, found.train.seed) == ("rows.tsv", "rows.tsv", 7)
    message = refused(path, "data.eval=${x}", "data.test=${oc.env:NOT_SET_ANYWHERE}")
    assert "data.eval: given '${x}'" in message
    assert "data.test: given" in message


def test_overrides_reach_the_entries_of_lists(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "distill: {matches: [{loss: hidden_mse}, {loss: cos, layers: [[0, 0], [3, 12]]}]}\n")
    found = load_experiment(path, ["distill.matches.0.weight=0.5", "distill.matches[1].layers[0]=[1, 4]"], False)
    assert found.distill.matches == (
        MatchConfig(loss="hidden_mse", weight=0.5),
        MatchConfig(loss="cos", layers=((1, 4), (3, 12))),
    )
    found = load_experiment(path, ["distill.matches=[{loss: gram}]", "distill.matches.0.weight=2"], False)
    assert found.distill.matches == (MatchConfig(loss="gram", weight=2.0),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.matches.2.weight=1", "distill.matches.2.weight: the list has no entry '2'; its entries are 0 to 1"),
        ("distill.matches.-1.weight=1", "the list has no entry '-1'"),
        ("distill.matches.first.weight=1", "the list has no entry 'first'"),
        ("distill.matches.1.weight=1", "entry 1 of the list is 'L3_hidden_mse', which has no keys"),
        ("train.seed", "reads section.key=value, given 'train.seed'"),
        ("=1", "reads section.key=value"),
        ("--seed=1", "reads section.key=value"),
        ("train..seed=1", "not a key"),
        (f"{'.'.join('a' * 100)}=1", "not a key"),
        (f"{'a' * 3000}=1", "not a key"),
        ("train.seed=[", "train.seed: the value is not YAML"),
        (f"train.seed={'9' * 5000}", "train.seed: the value is not YAML"),
        (f"train.seed={'[' * 5000}", "nested more than 32 deep"),
        ("train.seed=!!set {a}", "the tag 'set' is not supported"),
        ("train={null: 1}", "a key must be text"),
        ("name.x=1", "name: given"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, message: str, tmp_path: Path) -> None:
    found = refused(write(tmp_path, TEXT + "distill: {matches: [{loss: hidden_mse}, L3_hidden_mse]}\n"), override)
    assert message in found
    assert len(found) < 2000


def test_all_overrides_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    found = refused(write(tmp_path, TEXT), "a", "train.seed=[", "x..y=1")
    assert "3 problems" in found


def test_dotted_keys_of_a_space_are_overridden_in_place(tmp_path: Path) -> None:
    space = "sweep: {space: {distill.temperature: {uniform: [1, 8]}}}\ndata: {train: a, eval: b}\n"
    found = load_experiment(write(tmp_path, TEXT + space), ["sweep.space.distill.temperature.uniform=[2, 4]"], False)
    assert found.sweep is not None
    assert found.sweep.space["distill.temperature"].values == (2, 4)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "threads", 10**8),
        ("train", "seed", 2**31),
        ("train", "seed", 2**70),
        ("train", "seed", -1),
        ("train", "workers", 10**9),
        ("train", "epochs", 10**12),
        ("train", "cpus_per_worker", 1e300),
        ("train", "learning_rate", float("inf")),
        ("train", "weight_decay", 1e300),
        ("distill", "temperature", 1e-30),
        ("distill", "temperature", 1e30),
        ("distill", "kd_weight", 1e300),
        ("student", "shape", {"layers": 10**9}),
        ("student", "shape", {"layers": 1, "hidden": 2**40}),
        ("store", "actors", [1, 10**9]),
        ("store", "rows_per_shard", 10**12),
        ("data", "augment", {"kind": "masking", "copies": 1, "seed": 2**40}),
    ],
)
def test_numbers_have_limits(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build_experiment({**GOOD, section: {**GOOD.get(section, {}), key: value}}, check_files=False)
    assert caught.value.problems[0].key.startswith(f"{section}.{key}")


def test_of_a_value_that_no_key_takes_only_that_is_said() -> None:
    sweep = {"space": {"distill.temperature": {"uniform": [1, float("inf")]}}}
    with pytest.raises(ConfigError) as caught:
        build_experiment({**GOOD, "data": {"train": "a", "eval": "b"}, "sweep": sweep}, check_files=False)
    assert told(caught.value) == ["sweep.space.distill.temperature.uniform.1: value"]


def test_a_folder_is_no_experiment_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder, not an experiment file") as caught:
        load_experiment(tmp_path)
    assert str(caught.value).count("a folder") == 1


def test_seeds_that_a_sweep_counts_up_to_have_the_same_limit() -> None:
    values = {**GOOD, "data": {"train": "a", "eval": "b"}, "train": {"seed": 2**31 - 2}}
    sweep = {"space": {"distill.temperature": [1, 2]}, "seeds": 3}
    with pytest.raises(ConfigError, match=r"train.seed: given 2147483646, .*3 seeds"):
        build_experiment({**values, "sweep": sweep}, check_files=False)


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), 1j, Path("x")])
def test_values_of_other_types_are_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: given a "):
        build_experiment({**GOOD, "data": {"train": value}}, check_files=False)


def test_values_that_hold_themselves_are_named() -> None:
    loop: dict[str, Any] = {}
    loop["train"] = loop
    with pytest.raises(ConfigError, match="nested more than 32 deep"):
        build_experiment({**GOOD, "train": loop}, check_files=False)


def test_messages_are_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = ", ".join(f"k{number}: {'x' * 500}" for number in range(1000))
    path = write(tmp_path, f"{TEXT}train: {{{many}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, check_files=False)
    assert "1000 problems" in str(caught.value)
    assert str(caught.value).endswith("and 900 further problems")
    assert max(map(len, str(caught.value).splitlines())) <= 1000
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    assert ended.value.code == 3
    assert len(capsys.readouterr().err) < 21_000


def test_huge_files_of_a_run_are_not_read(tmp_path: Path) -> None:
    """Sparse files: they are told of by their size."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "identity.json", "summary.json", "environment.json", "metrics.jsonl"):
        with (run / name).open("wb") as file:
            file.truncate(1 << 31)
    found = load_run(run)
    assert len(found.problems) == 5
    assert all("larger than" in problem for problem in found.problems)
    (run / "metrics.jsonl").rename(tmp_path / "ledger.jsonl")
    with pytest.raises(RunError, match="larger than 1024 MiB"):
        load_sweep(tmp_path)


def test_deeply_nested_files_of_a_run_are_problems_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{}", encoding="utf-8")
    (tmp_path / "summary.json").write_text("[" * 100_000, encoding="utf-8")
    assert any("summary.json cannot be read" in problem for problem in load_run(tmp_path).problems)
