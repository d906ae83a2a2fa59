"""A secret in the wrong place is refused and never repeated; what raybrew reads again is never altered."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raybrew
from raybrew.cli.main import main
from raybrew.config import DistillConfig, Experiment, TeacherConfig, TrackingConfig
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.errors import ConfigError, DataError, StoreError
from raybrew.exports.hub import check_push
from raybrew.jobs.handle import JobHandle
from raybrew.records.ledger import Ledger
from raybrew.records.runs import load_run
from raybrew.records.summary import RunSummary, write_summary
from raybrew.records.sweeps import load_sweep
from raybrew.runs.train_run import command_line
from raybrew.secrets import scrub, secret_in
from raybrew.tracking.wandb import WandbTracker
from raybrew.training.run_folder import RunFolder
from unit.sweep_helpers import base, conductor_of, drive

GOOD: dict[str, Any] = {"name": "good", "teacher": {"model": "owner/teacher"}, "student": {"shape": "T3"}}
PRIVATE = "very-private-value"
#: What is a secret -> the part of it that must not be seen again.
SECRETS = {
    "s3://AKEY:SEC/RET+x@bucket/prefix": "SEC/RET",
    "s3://AKEY:1234/56@bucket/prefix": "1234/56",
    "https://user:pass/word@host/x": "pass/word",
    "https://sometoken@host/x": "sometoken",
    "https://host/x?X-Amz-Signature=abcdef": "abcdef",
    f"hf_{'a1' * 17}": "a1a1",
    "AKIAIOSFODNN7EXAMPLE": "AKIAIOSF",
    f"runs/{PRIVATE}/x": PRIVATE,
}
#: Dotted key -> whether it stands in a list.
PLACES = {
    "name": False,
    "data.train": False,
    "data.cache": False,
    "teacher.model": False,
    "teacher.revision": False,
    "student.model": False,
    "store.path": False,
    "store.storage_path": False,
    "task.labels": True,
    "tracking.wandb.tags": True,
    "tracking.wandb.project": False,
    "sweep.warm_start": False,
    "train.seed": False,
    "unknown": False,
    "tracking.wandb.api_key": False,
}


@pytest.fixture(autouse=True)
def private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", PRIVATE)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("key", PLACES)
def test_a_secret_anywhere_in_an_experiment_is_refused_and_not_repeated(key: str, secret: str, tmp_path: Path) -> None:
    value = f"[a, '{secret}']" if PLACES[key] else f"'{secret}'"
    path = tmp_path / "e.yaml"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, [f"{key}={value}"], check_files=True)
    assert SECRETS[secret] not in str(caught.value)
    assert SECRETS[secret] not in "".join(map(str, caught.value.problems))
    assert any(key in problem.key and problem.code == "secret" for problem in caught.value.problems)


def test_a_secret_that_an_interpolation_brings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(json.dumps({**GOOD, "data": {"train": "rows-${oc.env:SOME_API_KEY}.tsv"}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="the value of the environment variable SOME_API_KEY") as caught:
        load_experiment(path, check_files=False)
    assert PRIVATE not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"'{PRIVATE}': 1\n",
        f"'{PRIVATE}': 1\n'{PRIVATE}': 2\n",
        f"train: {{'{PRIVATE}': 1}}\n",
        f"train: !!int {PRIVATE}\n",
        f"extends: {PRIVATE}.yaml\n",
    ],
)
def test_keys_tags_and_names_of_files_are_not_repeated_either(text: str, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, check_files=False)
    assert PRIVATE not in str(caught.value)


def test_a_secret_in_an_experiment_made_in_python_is_not_stored(tmp_path: Path) -> None:
    experiment = build_experiment({**GOOD, "store": {"storage_path": str(tmp_path)}}, check_files=False)
    teacher = TeacherConfig(model="https://user:word@host/model")
    with pytest.raises(ValueError, match="kd_weight") as caught:
        DistillConfig.model_validate({"kd_weight": "https://a:word@b"})
    assert "word" not in str(caught.value)
    run = RunFolder.of(experiment.model_copy(update={"teacher": teacher}), "distill")
    with pytest.raises(ConfigError, match=r"teacher\.model: holds what looks like a secret"):
        run.prepare(experiment.model_copy(update={"teacher": teacher}), "distill", {}, "command")
    assert not run.path.exists()


@pytest.mark.parametrize("variable", ["SSH_KEY_DIR", "KEYCLOAK_HOME", "TOKENIZER_DIR", "MONKEY_HOME", "MY_TOKEN"])
def test_a_sweep_goes_on_from_what_it_wrote_whatever_variables_hold_its_paths(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    data = {"train": str(tmp_path / "train.tsv"), "eval": str(tmp_path / "eval.tsv")}
    experiment = base(tmp_path, {"space": {"distill.temperature": [1, 2], "data.train": [data["train"]]}}, data=data)
    outcomes: list[float | None] = [0.5, None]
    done = drive(conductor_of(experiment), lambda job: outcomes.pop(0))
    assert len(done) == 1
    again = conductor_of(experiment).next()
    assert again is not None
    assert again.experiment.data.train == data["train"]
    record = load_sweep(tmp_path / "reviews" / "sweep-x")
    assert record.experiment["data"] | data == record.experiment["data"]
    assert {trial.values.get("data.train", data["train"]) for trial in record.trials} == {data["train"]}


def test_a_run_is_read_again_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are secrets on the machine that reads, and were none where the run was made."""
    values = {**GOOD, "data": {"train": "corpus-of-2024/a.tsv"}, "store": {"storage_path": str(tmp_path)}}
    experiment = build_experiment(values, check_files=False)
    run = RunFolder.of(experiment, "distill")
    run.prepare(experiment, "distill", {}, f"raybrew distill --api-key abc {PRIVATE}")
    write_summary(run.path, RunSummary.read({"verb": "distill", "note": "corpus-of-2024/a.tsv"}))
    monkeypatch.setenv("ANOTHER_SECRET", "corpus-of-2024")
    record = load_run(run.path)
    assert record.config["data"]["train"] == "corpus-of-2024/a.tsv"
    assert record.facts.raw["note"] == "corpus-of-2024/a.tsv"
    assert record.identity["identity"]["data"]["train"] == "corpus-of-2024/a.tsv"
    for text in (record.config_text, *(path.read_text(encoding="utf-8") for path in run.path.iterdir() if path.suffix)):
        assert PRIVATE not in text
    assert "abc" not in (run.path / "environment.json").read_text(encoding="utf-8")


def test_words_of_a_ledger_lose_their_secrets_and_values_lose_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write("end", run="a", status="failed", error=f"refused {PRIVATE}", values={"data.train": f"{PRIVATE}/a.tsv"})
    (line,) = ledger.records()
    assert line["error"] == "refused ***"
    assert line["values"] == {"data.train": f"{PRIVATE}/a.tsv"}


def test_the_command_is_noted_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = "it's secret"
    monkeypatch.setenv("QUOTED_TOKEN", quoted)
    monkeypatch.setattr(sys, "argv", ["/bin/raybrew", "distill", "--api-key", "abc", f"data.train={PRIVATE}", quoted])
    assert command_line() == "raybrew distill --api-key *** 'data.train=***' '***'"


def test_mirrors_have_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made in Python, so that nothing was refused before."""
    config = TrackingConfig.model_validate({"wandb": {"mode": "offline", "tags": [PRIVATE, "plain"]}}).wandb
    assert config is not None
    sent: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **options: sent.update(options))
    tracker = WandbTracker(config, experiment=PRIVATE, job_type="distill")
    tracker._init("offline", {"run_id": "r"}, tmp_path)
    assert sent["tags"] == ["***", "plain"]
    assert PRIVATE not in repr(sent)


def test_urls_in_other_arguments_are_not_repeated() -> None:
    from raybrew.data.readers.sources import resolve_source
    from raybrew.storage.open import open_storage

    for url in ("s3://AKEY:SEC/RET@bucket/x", "s3://AKEY@bucket/x"):
        with pytest.raises(DataError) as caught:
            resolve_source(url, "auto", "train")
        assert "AKEY" not in str(caught.value)
        with pytest.raises(StoreError) as refused:
            open_storage(url)
        assert "AKEY" not in str(refused.value)


def test_the_experiments_of_the_project_hold_nothing_that_would_be_scrubbed(repo_root: Path) -> None:
    for path in sorted((repo_root / "experiments").rglob("*.yaml"))[::4]:
        plain = load_experiment(path, check_files=False).plain()
        assert scrub(plain) == plain


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("WANDB_API_KEY", "0123456789", True),
        ("AWS_SECRET_ACCESS_KEY", "/starts/as/a/path/x", True),
        ("GITHUBTOKEN", "0123456789ab", True),
        ("SOME_TOKEN", "aB3dE5gH7jK9", True),
        ("SOME_KEY", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", True),
        ("SOME_KEY", "qwertyuiopasdfghjklz", True),
        ("SOME_API_KEY", "three-plain-words", True),
        ("SOME_PASSWORD", "correct horse battery staple", True),
        ("SOME_PASSWORD", "/not/there/at/all", True),
        ("DB_PASSWORD", "0123456789", True),
        ("MY_TOKEN", "/home/someone/corpora/v2", False),
        ("MY_TOKEN", "C:\\Users\\Someone", False),
        ("MY_TOKEN", "reviews-of-2024", False),
        ("MY_KEY", "distilbert-base-uncased", False),
        ("MAX_TOKENS", "100000000", False),
        ("TOKEN_RATE", "0.000000125", False),
        ("USE_SECRETS", "disabled", False),
        ("DB_PASSWORD", "postgres", False),
        ("SSH_KEY_DIR", "0123456789", False),
        ("RAY_AUTH_TOKEN_PATH", "0123456789", False),
        ("KEYCLOAK_HOME", "0123456789", False),
        ("TOKENIZERS_PARALLELISM", "0123456789", False),
        ("KEYBOARD_LAYOUT", "0123456789", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", __file__, False),
    ],
)
def test_which_variables_hold_secrets(name: str, value: str, is_secret: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert (secret_in(f"before {value} after") is not None) == is_secret
    assert (scrub(f"before {value} after") == "before *** after") == is_secret


def test_an_experiment_of_the_class_itself_is_checked_as_one_of_a_file() -> None:
    with pytest.raises(ConfigError, match="holds what looks like a secret"):
        Experiment(name="x", teacher=PRIVATE)


def test_the_name_of_a_run_is_no_secret(tmp_path: Path) -> None:
    experiment = build_experiment({**GOOD, "store": {"storage_path": str(tmp_path)}}, check_files=False)
    for name in (PRIVATE, f"../{PRIVATE}"):
        with pytest.raises(ConfigError, match="--run-id") as caught:
            RunFolder.of(experiment, "distill", name)
        assert PRIVATE not in str(caught.value)


@pytest.mark.parametrize("verb", ["finetune", "distill", "evaluate", "predict"])
def test_the_name_of_a_run_is_checked_before_anything_is_read(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, str(tmp_path / "not-there.yaml"), "--run-id", PRIVATE])
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "--run-id: holds what looks like a secret" in said
    assert "SOME_API_KEY" in said
    assert PRIVATE not in said


def test_the_name_of_a_run_is_checked_from_python_before_models_load(tmp_path: Path) -> None:
    experiment = build_experiment({**GOOD, "store": {"storage_path": str(tmp_path)}}, check_files=False)
    with pytest.raises(ConfigError, match="--run-id"):
        raybrew.distill(experiment, run_id=PRIVATE)


def test_the_name_of_a_repository_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--push") as caught:
        check_push(f"owner/{PRIVATE}")
    assert PRIVATE not in str(caught.value)


def test_the_address_of_a_cluster_is_shown_without_its_password() -> None:
    client = SimpleNamespace(address="http://user:word@head:8265")
    assert JobHandle("job", client).address == "http://***@head:8265"  # type: ignore[arg-type]


def test_usage_errors_do_not_repeat_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([PRIVATE], ["distill", f"--{PRIVATE}"], ["show", "--depth", PRIVATE]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "Usage" in said
        assert PRIVATE not in said
