"""What a job takes along, what it refuses, how it is named; no cluster is asked."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

import raybrew
from raybrew.cli.main import main
from raybrew.cli.running import load_to_run
from raybrew.config.loading import load_experiment
from raybrew.errors import ClusterError, ConfigError, EnvironmentProblem
from raybrew.files import make_storage
from raybrew.jobs import package
from raybrew.jobs import submit as submitting
from raybrew.jobs.client import connect
from raybrew.jobs.handle import JobHandle, job_info
from raybrew.jobs.package import find_files, write_zip

EXPERIMENT = """
name: tiny
data: {train: data/train.jsonl, eval: data/train.jsonl}
teacher: {model: owner/teacher}
student: {shape: T3}
sweep: {space: {distill.temperature: [1, 4]}}
"""


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project to be submitted from."""
    write(tmp_path / "x.yaml", EXPERIMENT)
    write(tmp_path / "data" / "train.jsonl", '{"text": "a", "label": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Cluster:
    """The Jobs API of a cluster of one machine, as far as `submit` asks."""

    address = "http://head:8265"

    def __init__(self, here: bool = True) -> None:
        self.here = here
        self.found: list[Any] = []
        self.packed: dict[str, str] = {}

    def is_this_machine(self) -> bool:
        return self.here

    def jobs(self) -> list[Any]:
        return self.found

    def info(self, job: str) -> Any:
        return next(each for each in self.found if each.submission_id == job)

    def submit(self, **arguments: Any) -> str:
        with zipfile.ZipFile(arguments["runtime_env"]["working_dir"]) as archive:
            self.packed = {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}
        self.arguments = arguments
        self.found.append(details(arguments["submission_id"], "RUNNING", arguments["metadata"]))
        return str(arguments["submission_id"])


def details(job: str, status: str, metadata: dict[str, str] | None = None, **more: Any) -> Any:
    """As Ray describes a job."""
    values = {"message": None, "error_type": None, "driver_exit_code": None, "start_time": 1000, "end_time": None}
    values |= {"submission_id": job, "job_id": None, "entrypoint": "raybrew sweep x.yaml", **more}
    return types.SimpleNamespace(status=status, metadata=metadata or {}, **values)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(submitting, "connect", lambda address: found)
    return found


def test_ignored_files_stay(tmp_path: Path) -> None:
    for name in ("a.py", "data/rows.csv", "data/keep.csv", "data/more/rows.csv", "big/x.bin", "note.log", "runs/r/x"):
        write(tmp_path / name)
    for name in ("model/config.json", "model/.git/config", ".git/config", "venv/bin/x", "sub/__pycache__/a.pyc"):
        write(tmp_path / name)
    write(tmp_path / ".gitignore", "*.log\n/big/\n")
    write(tmp_path / "data" / ".rayignore", "*.csv\n!keep.csv\n")
    os.symlink(tmp_path, tmp_path / "sub" / "again")
    found = find_files(tmp_path, [tmp_path / "runs"])
    assert set(found.sizes) == {".gitignore", "a.py", "data/.rayignore", "data/keep.csv", "model/config.json"}
    assert found.has(tmp_path / "model")
    assert found.has(tmp_path / "data" / "keep.csv")
    assert not found.has(tmp_path / "data")
    assert not found.has(tmp_path.parent)


def test_gitignore_may_be_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.log")
    write(tmp_path / ".gitignore", "*.log\n")
    assert "a.log" not in find_files(tmp_path).sizes
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert "a.log" in find_files(tmp_path).sizes


def test_a_new_folder_of_runs_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old", "new/runs"):
        make_storage(tmp_path / name)
        (tmp_path / name / "model.safetensors").write_text("x")
    assert set(find_files(tmp_path).sizes) == {"old/model.safetensors"}, "a folder of the user's own is left as it is"


def test_the_same_content_is_the_same_package(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.py", "print(1)\n")
    files = find_files(tmp_path / "one")
    write_zip(files, tmp_path / "1.zip", {"x.yaml": "name: x\n"})
    os.utime(tmp_path / "one" / "a.py", (1, 1))
    write_zip(files, tmp_path / "2.zip", {"x.yaml": "name: x\n"})
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_too_large_names_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 2**20)
    (tmp_path / "big.bin").write_bytes(os.urandom(3 * 2**20))
    write(tmp_path / "small.py")
    with pytest.raises(EnvironmentProblem, match=r"at most 1 MiB.*\.rayignore.*largest: big\.bin \(3\.0 MiB\), small"):
        write_zip(find_files(tmp_path), tmp_path / "p.zip", {})


def test_what_is_sent(folder: Path, cluster: Cluster) -> None:
    write(folder / "runs" / "old", "large")
    lines: list[str] = []
    job = submitting.submit(
        "x.yaml", "sweep", overrides=["train.seed=7"], env={"WANDB_MODE": "offline"}, say=lines.append
    )
    assert set(cluster.packed) == {"x.yaml", "data/train.jsonl", ".raybrew/tiny.yaml"}
    assert cluster.arguments["entrypoint"] == f"{shlex.quote(sys.executable)} -m raybrew sweep .raybrew/tiny.yaml"
    assert cluster.arguments["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120", "WANDB_MODE": "offline"}
    # A job's own folder goes with it: the runs lie where they were to be.
    write(folder / "sent.yaml", cluster.packed[".raybrew/tiny.yaml"])
    sent = load_experiment("sent.yaml")
    assert sent.store.storage_path == str(folder / "runs")
    assert sent.train.seed == 7
    here = load_experiment("x.yaml", ["train.seed=7"])
    assert job.info().run_id == here.sweep_id() == sent.sweep_id()
    assert job.folder == folder / "runs" / "tiny" / here.sweep_id()
    assert any("2 files" in line and "http://head:8265" in line for line in lines)


def test_the_same_again_is_the_same_job_or_continues_its_run(folder: Path, cluster: Cluster) -> None:
    first = submitting.submit("x.yaml", "distill")
    again = submitting.submit(load_experiment("x.yaml"), "distill")
    assert (again.id, again.is_new) == (first.id, False)
    other = submitting.submit("x.yaml", "distill", overrides=["train.seed=1"])
    assert other.id != first.id
    cluster.found[0].status = "STOPPED"
    resumed = submitting.submit("x.yaml", "distill")
    assert resumed.is_new
    assert resumed.id.rsplit("-", 1) == [first.id.rsplit("-", 1)[0], "2"]
    assert resumed.info().run_id == first.info().run_id


def test_relative_places_are_refused_where_other_machines_are(folder: Path, cluster: Cluster) -> None:
    cluster.here = False
    with pytest.raises(ConfigError, match=r"store\.storage_path: given 'runs'.*lost with the job.*absolute path"):
        submitting.submit("x.yaml", "distill")
    submitting.submit("x.yaml", "distill", overrides=["store.storage_path=/shared/runs"])


def test_rows_from_python_travel_to_other_machines(folder: Path, cluster: Cluster) -> None:
    rows = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    experiment = raybrew.Experiment(
        name="tiny", data={"train": rows}, teacher="a/b", distill="kd", store={"storage_path": str(folder / "runs")}
    )
    table = Path(experiment.data.train)
    submitting.submit(experiment, "distill")
    assert f"train: {table}\n" in cluster.packed[".raybrew/tiny.yaml"], "on this machine they stay"
    cluster.here, cluster.found = False, []
    submitting.submit(experiment, "distill")
    write(folder / "sent" / "x.yaml", cluster.packed[".raybrew/tiny.yaml"])
    sent = load_experiment(folder / "sent" / "x.yaml", check_files=False)
    assert sent.data.train == f".raybrew/{table.name}"
    assert sent.data.train in cluster.packed
    assert sent.run_id("distill") == experiment.run_id("distill")


def test_rows_that_are_too_large_do_not_travel(folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.here, lines = False, []
    monkeypatch.setattr(submitting, "MAX_BYTES", 10)
    rows = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    experiment = raybrew.Experiment(
        name="tiny", data={"train": rows, "cache": str(folder / "cache")}, teacher="a/b", distill="kd",
        store={"storage_path": "/shared/runs"},
    )  # fmt: skip
    submitting.submit(experiment, "distill", say=lines.append)
    assert f"train: {experiment.data.train}\n" in cluster.packed[".raybrew/tiny.yaml"]
    assert any(line.startswith(f"data.train: {experiment.data.train} is too large") for line in lines)


def test_files_that_would_not_be_there(folder: Path, cluster: Cluster) -> None:
    write(folder / "data" / "eval.jsonl")
    write(folder / ".rayignore", "eval.jsonl\n")
    with pytest.raises(ConfigError) as caught:
        submitting.submit("x.yaml", "distill", overrides=["data.eval=data/eval.jsonl", "data.unlabeled=none.jsonl"])
    assert "data.eval: given 'data/eval.jsonl', which does not travel" in str(caught.value)
    assert "data.unlabeled: given 'none.jsonl'; no such file" in str(caught.value)
    lines: list[str] = []
    submitting.submit("x.yaml", "distill", overrides=["data.eval=/shared/eval.jsonl"], say=lines.append)
    assert any("data.eval: /shared/eval.jsonl is not on this machine" in line for line in lines)


def test_a_runtime_environment_from_a_file(folder: Path, cluster: Cluster) -> None:
    write(folder / "large.bin")
    write(folder / "env.yaml", "excludes: ['*.bin', env.yaml]\npip: [six]\nenv_vars: {RAY_JOB_STOP_WAIT_TIME_S: 30}\n")
    submitting.submit("x.yaml", "sweep", env={"A": "b"}, runtime_env="env.yaml")
    assert set(cluster.packed) == {"x.yaml", "data/train.jsonl", ".raybrew/tiny.yaml"}
    sent = cluster.arguments["runtime_env"]
    assert sent["pip"] == ["six"]
    assert sent["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "30", "A": "b"}
    write(folder / "wrong.yaml", "env_var: {}\nworking_dir: .\n")
    with pytest.raises(
        ConfigError, match=r"env_var: unknown key.*did you mean 'env_vars'(.|\n)*given by --working-dir"
    ):
        submitting.submit("x.yaml", "sweep", runtime_env="wrong.yaml")
    write(folder / "secret.yaml", "env_vars: {HF_TOKEN: abcdefgh1}\n")
    with pytest.raises(ConfigError, match="HF_TOKEN: looks like a secret"):
        submitting.submit("x.yaml", "sweep", runtime_env="secret.yaml")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"])
def test_secrets_are_refused(folder: Path, cluster: Cluster, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--env {name}: looks like a secret.*Kubernetes Secret") as caught:
        submitting.submit("x.yaml", "distill", env={name: "abcd1234efgh", "TOKENIZERS_PARALLELISM": "false"})
    assert "abcd1234efgh" not in str(caught.value)
    assert "TOKENIZERS" not in str(caught.value)
    assert cluster.found == []


def test_secrets_by_their_form_are_refused(folder: Path, cluster: Cluster) -> None:
    token = "hf_" + "a" * 30
    with pytest.raises(ConfigError, match="--env WHATEVER: looks like a secret"):
        submitting.submit("x.yaml", "distill", env={"WHATEVER": token})
    with pytest.raises(ConfigError, match=r"tracking\.wandb\.tags\.0: holds what looks like a secret"):
        submitting.submit("x.yaml", "distill", overrides=[f"tracking.wandb.tags=[{token}]"])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"status": "RUNNING"}, None),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 5, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}, 5),
        ({"status": "FAILED", "driver_exit_code": -9, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}, 137),
        ({"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, 4),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_exit_codes(given: dict[str, Any], code: int | None) -> None:
    status = given.pop("status")
    assert job_info(details("a", status, **given)).exit_code == code


def test_a_handle_as_html(cluster: Cluster) -> None:
    cluster.found.append(details("a", "FAILED", {"raybrew_folder": "/r/<b>"}, driver_exit_code=3))
    page = JobHandle("a", cluster)._repr_html_()  # type: ignore[arg-type]
    assert "FAILED, exit code 3" in page
    assert "/r/&lt;b&gt;" in page


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", "ftp://head:1"])
def test_addresses_that_cannot_be_one(address: str) -> None:
    with pytest.raises(ClusterError, match=r"8265") as caught:
        connect(address)
    assert "\n" not in str(caught.value)


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ClusterError, match=r"no Ray cluster answers at http://127.*--address"):
            connect(f"http://127.0.0.1:{unused.getsockname()[1]}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.yaml", "--", "predict"], "finetune, capture, distill, sweep"),
        (["x.yaml", "train.seed=1"], "finetune, capture, distill, sweep"),
        (["x.yaml", "--", "sweep", "--jsn"], "No such option: --jsn"),
        (["x.yaml", "--env", "NOT_SET_HERE", "--", "sweep"], "has no value here"),
        (["x.yaml", "train.sed=1", "--", "sweep"], "train.sed"),
    ],
)
def test_the_command_line_is_checked_first(
    folder: Path, cluster: Cluster, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["submit", *arguments])
    assert caught.value.code in (2, 3)
    assert message in capsys.readouterr().err
    assert cluster.found == []


@pytest.mark.parametrize(("here", "env"), [(False, ""), (True, "pip: [tqdm]")])
def test_another_environment_has_raybrew_on_its_path(folder: Path, cluster: Cluster, here: bool, env: str) -> None:
    cluster.here = here
    write(folder / "env.yaml", env or "{}")
    overrides = [f"store.storage_path={folder / 'runs'}"]
    submitting.submit("x.yaml", "sweep", overrides=overrides, runtime_env=folder / "env.yaml")
    assert cluster.arguments["entrypoint"] == "raybrew sweep .raybrew/tiny.yaml"


def test_overrides_may_stand_on_both_sides(folder: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["submit", "x.yaml", "train.seed=3", "--no-wait", "--", "distill", "train.epochs=2", "--run-id", "mine"])
    assert not caught.value.code
    assert capsys.readouterr().out.strip() == "tiny-mine-1"
    assert cluster.arguments["entrypoint"].endswith("raybrew distill .raybrew/tiny.yaml --run-id mine")
    assert "seed: 3" in cluster.packed[".raybrew/tiny.yaml"]
    assert "epochs: 2" in cluster.packed[".raybrew/tiny.yaml"]


def test_runs_that_would_go_with_the_job_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `ray job submit --working-dir .` would do with the default `store.storage_path`."""
    copy = folder / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    write(copy / "x.yaml", EXPERIMENT.replace("data/train.jsonl", str(folder / "data" / "train.jsonl")))
    monkeypatch.chdir(copy)
    for verb in ("finetune", "capture", "distill", "sweep"):
        with pytest.raises(SystemExit) as caught:
            main([verb, "x.yaml"])
        assert caught.value.code == 3
        assert "store.storage_path: given 'runs', which lies in this job's copy" in capsys.readouterr().err
    assert load_to_run(Path("x.yaml"), ["store.storage_path=/shared/runs"]).name == "tiny"
