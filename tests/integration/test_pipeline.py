"""The main job through the command line on an ordinary user's project, in one process; what bad luck gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tiny_project import cli, losses_of, make_model, make_project, start_cli, write_experiment

#: Overrides that make a control of the project's experiment.
LABELS_ONLY = "distill={kd_weight: 0, hard_label_weight: 1, matches: []}"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose teacher is trained, captured and distilled."""
    folder = tmp_path_factory.mktemp("project")
    experiment = make_project(folder)
    cli("finetune", experiment)
    cli("capture", experiment)
    cli("distill", experiment)
    return folder


@pytest.fixture
def fresh(project: Path, tmp_path: Path) -> Path:
    """The same project with its teacher and store, but no distill run."""
    for name in ("train.jsonl", "eval.jsonl", "base", "runs"):
        source, target = project / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    for run in (tmp_path / "runs" / "tiny").glob("distill-*"):
        shutil.rmtree(run)
    # The run id of the teacher holds the model's path, so it stays that of the project.
    text = write_experiment(tmp_path).read_text()
    text = text.replace(str(tmp_path / "base"), str(project / "base"))
    for name in ("train", "eval"):
        text = text.replace(str(tmp_path / f"{name}.jsonl"), str(project / f"{name}.jsonl"))
    (tmp_path / "experiment.yaml").write_text(text)
    return tmp_path


def finished_teacher(project: Path) -> list[str]:
    """Overrides that take the project's trained teacher as it is, so that nothing else decides which one is meant."""
    return [f"teacher.model={run_of(project, 'finetune') / 'student'}", "teacher.finetune=null"]


def run_of(folder: Path, verb: str = "distill") -> Path:
    found = [path for path in (folder / "runs" / "tiny").glob(f"{verb}-*") if path.is_dir()]
    assert len(found) == 1, found
    return found[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def test_what_a_run_leaves_behind(project: Path) -> None:
    run = run_of(project)
    present = {path.name for path in run.iterdir()}
    assert {
        "config.yaml", "identity.json", "environment.json", "metrics.jsonl", "summary.json", "student", "report.html",
    } <= present  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["steps"] == 40
    assert summary["role"] == "student"
    assert summary["distill"]["source"] == "store"
    assert summary["teacher"]["metrics"]["accuracy"] > 0.8
    assert summary["best"]["metrics"]["accuracy"] > 0.8
    assert {"accuracy", "macro_f1", "mcc"} <= set(summary["best"]["metrics"])
    assert summary["student"]["layers"] == 2
    records = losses_of(run)
    assert [record["step"] for record in records if record["kind"] == "train"] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [record["step"] for record in records if record["kind"] == "eval"] == [10, 20, 30, 40]
    assert {"loss/kd", "loss/hidden_mse.0-0", "loss/hidden_mse.1-2", "loss/hidden_mse.2-4"} <= set(records[0])
    environment = json.loads((run / "environment.json").read_text())
    assert "distill" in environment["command"]
    assert environment["torch"] == torch.__version__


def test_the_student_runs_in_a_pipeline(project: Path) -> None:
    from transformers import pipeline

    student = pipeline("text-classification", str(run_of(project) / "student"))
    found = student(["kaba lovely mone 3", "awful tidu relu 7"])
    assert [row["label"] for row in found] == ["positive", "negative"]
    # A local folder is no hub name.
    assert "base_model" not in (run_of(project) / "student" / "README.md").read_text()


def test_every_folder_of_shards_opens_in_datasets(project: Path) -> None:
    folders = [path.parent for path in (project / "runs").rglob("state.json")]
    stores = [path for path in folders if "signals" in path.parts or path.name == "examples"]
    assert {path.name for path in stores} == {"examples", "logits", "hidden.00", "hidden.02", "hidden.04"}
    for folder in folders:
        assert len(datasets.load_from_disk(str(folder))) in (60, 160, 160 + 60)


def test_again_is_a_no_op(project: Path) -> None:
    run, before = run_of(project), weights(run_of(project))
    written = (run / "metrics.jsonl").stat().st_mtime_ns
    out, _ = cli("distill", project / "experiment.yaml")
    assert "already done" in out
    assert (run / "metrics.jsonl").stat().st_mtime_ns == written
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    out, _ = cli("capture", project / "experiment.yaml", "--json")
    assert json.loads(out)["rows"] == 160 + 60


def test_evaluate_predict_show_report(project: Path, tmp_path: Path) -> None:
    experiment = project / "experiment.yaml"
    found = json.loads(cli("evaluate", experiment, "--json")[0])
    summary = json.loads((run_of(project) / "summary.json").read_text())
    assert found["metrics"]["accuracy"] == summary["best"]["metrics"]["accuracy"]
    assert found["rows"] == 60
    assert json.loads(cli("evaluate", experiment, "--model", "teacher", "--json")[0])["metrics"]["accuracy"] > 0.8

    (tmp_path / "new.csv").write_text('text,extra\n"kaba superb, mone",1\ndull tidu,2\n')
    out, _ = cli("predict", experiment, "--input", tmp_path / "new.csv", "--output", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["text"], row["label"]) for row in rows] == [
        ("kaba superb, mone", "positive"),
        ("dull tidu", "negative"),
    ]
    assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-4) for row in rows)

    out, _ = cli("show", experiment)
    assert "teacher" in out
    assert "distilled" in out
    assert len(json.loads(cli("show", project / "runs", "--json")[0])) == 2
    page = tmp_path / "page.html"
    cli("report", project / "runs", "--output", page)
    assert "<html" in page.read_text()[:2000]
    assert page.with_suffix(".csv").read_text().count("\n") == 3


def test_a_control_learns_from_labels_alone(project: Path, tmp_path: Path) -> None:
    out, err = cli(
        "distill", project / "experiment.yaml", "--json", f"store.storage_path={tmp_path}", "student.init=random",
        LABELS_ONLY, f"teacher={{model: {project / 'base'}, finetune: null}}",
    )  # fmt: skip
    summary = json.loads(out)
    assert summary["role"] == "control"
    assert summary["distill"]["source"] == "labels"
    assert not (tmp_path / "store").exists()
    assert "capture" not in err


def test_live_and_stored_teacher_agree(project: Path, tmp_path: Path) -> None:
    live = json.loads(
        cli("distill", project / "experiment.yaml", "--json", "teacher.source=live", "store.element_type=float32")[0]
    )
    stored = json.loads(cli("distill", project / "experiment.yaml", "--json", "store.element_type=float32")[0])
    assert live["distill"]["source"] == "live"
    first, second = losses_of(Path(live["path"])), losses_of(Path(stored["path"]))
    for ours, theirs in zip(first, second, strict=True):
        if ours["kind"] == "train":
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
    for summary in (live, stored):
        shutil.rmtree(summary["path"])


def test_trackers_and_secrets(fresh: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    _, err = cli(
        *("distill", fresh / "experiment.yaml", "train.max_steps=6"),
        "tracking={tensorboard: true, wandb: {mode: offline}}",
        MY_SERVICE_TOKEN=secret,
        WANDB_SILENT="false",
    )
    run = run_of(fresh)
    assert list((run / "tensorboard").rglob("events.out.*"))
    assert list((run / "wandb").rglob("*.wandb"))
    assert "wandb sync" in err
    for path in run.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_anywhere_ends_as_if_it_never_was(project: Path, fresh: Path, number: signal.Signals) -> None:
    """The same command continues; weights and metrics are those of the unbroken run, bit for bit."""
    whole = run_of(project)
    process = start_cli("distill", fresh / "experiment.yaml")
    deadline = time.monotonic() + 120
    folder = fresh / "runs" / "tiny"
    while time.monotonic() < deadline and process.poll() is None:
        logs = [path for path in folder.glob("distill-*/metrics.jsonl") if '"step": 10' in path.read_text()]
        if logs:
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130, err
        assert "the same command continues it" in err
        assert "Traceback" not in err
    assert not (run_of(fresh) / "summary.json").exists()
    _, err = cli("distill", fresh / "experiment.yaml")
    assert "resumed at step" in err
    run = run_of(fresh)
    assert losses_of(run) == losses_of(whole)
    mine, theirs = weights(run), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_foreign_run_folder_is_refused_with_the_difference(project: Path) -> None:
    experiment = project / "experiment.yaml"
    _, err = cli("distill", experiment, "--run-id", run_of(project).name, "train.seed=7", code=1)
    assert "train.seed: the run has 0, this configuration 7" in err
    assert err.count("the run has") == 1


def test_rows_that_changed_under_a_run_are_noticed(fresh: Path, project: Path) -> None:
    copy = fresh / "train.jsonl"
    overrides = [f"data.train={copy}", "train.max_steps=4", LABELS_ONLY, *finished_teacher(project)]
    command = ["distill", fresh / "experiment.yaml", *overrides, "--run-id", "mine"]
    cli(*command)
    copy.write_text(copy.read_text() + '{"text": "kaba fine", "label": "positive"}\n')
    _, err = cli(*command, code=1)
    assert "inputs.training_rows" in err


def test_a_second_process_is_kept_out(fresh: Path) -> None:
    first = start_cli("distill", fresh / "experiment.yaml", "train.epochs=200")
    folder = fresh / "runs" / "tiny"
    while not list(folder.glob("distill-*/metrics.jsonl")):
        assert first.poll() is None
        time.sleep(0.05)
    _, err = cli("distill", fresh / "experiment.yaml", "train.epochs=200", code=1)
    assert "another process is working on this run" in err
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["teacher.model=./nowhere"], 3, "teacher.model: given './nowhere'; no such folder"),
        (["train.device=cuda"], 4, "train.device: cuda was asked for"),
        (["data.columns.text=sentence"], 1, "sentence"),
        (["task.labels=[a,b,c]"], 1, "unknown label"),
        (["task.labels=[positive,negative]"], 1, "set task.labels="),
        (["student.shape=T77"], 3, "T77"),
        (["student.init_layers=[1,9]"], 3, "student.init_layers"),
        (["distill.matches=[{loss: cos, layers: [[9,1]]}]"], 3, "student layer 9 does not exist"),
        (["teacher.source=store", "distill.matches=[{loss: cos, layers: [[1,1]]}]"], 1, "raybrew capture"),
        (["train.launcher=ray", "train.workers=2", "train.cpus_per_worker=500"], 4, "too small"),
    ],
)
def test_each_misfortune_is_one_clear_line(
    fresh: Path, project: Path, overrides: list[str], code: int, message: str
) -> None:
    before = sorted((fresh / "runs" / "store").rglob("*"))
    arguments = [fresh / "experiment.yaml", *finished_teacher(project), *overrides]
    _, err = cli("distill", *arguments, code=code, CUDA_VISIBLE_DEVICES="")
    assert message in err
    assert err.count("raybrew: error: ") == 1
    assert sorted((fresh / "runs" / "store").rglob("*")) == before


def test_a_teacher_that_is_not_trained_yet(fresh: Path) -> None:
    _, err = cli("distill", fresh / "experiment.yaml", "teacher.finetune.epochs=9", code=1)
    assert "the teacher is not trained yet" in err
    assert "raybrew finetune" in err


def test_a_tokenizer_that_does_not_fit(fresh: Path) -> None:
    other = make_model(fresh / "other", layers=2, extra_words="completely different words")
    arguments = ["distill", fresh / "experiment.yaml", "student.shape=null", f"student.model={other}"]
    _, err = cli(*arguments, code=1)
    assert "token by token, but the tokenizers" in err
    # Logits do not need the same tokens.
    cli(*arguments, "distill.matches=[]", "train.max_steps=4")


def test_debug_shows_the_traceback(fresh: Path) -> None:
    process = start_cli("distill", fresh / "experiment.yaml", "student.shape=T77", "--debug")
    _, err = process.communicate(timeout=100)
    assert "Traceback" in err


def test_bad_rows_stop_or_are_counted(fresh: Path, project: Path) -> None:
    rows = fresh / "rows.jsonl"
    rows.write_text((project / "train.jsonl").read_text() + '{"text": "", "label": "positive"}\n')
    control = [
        *finished_teacher(project),
        f"data.train={rows}",
        LABELS_ONLY,
        "train.max_steps=2",
    ]
    _, err = cli("distill", fresh / "experiment.yaml", *control, code=1)
    assert "rows.jsonl" in err
    assert "161" in err
    assert "'text'" in err
    _, err = cli("distill", fresh / "experiment.yaml", *control, "data.on_bad_row=skip")
    assert "left out 1 bad row" in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], stderr=subprocess.DEVNULL
    )  # fmt: skip
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.call(["umount", "-l", str(folder)])


def test_a_full_disk_loses_nothing(fresh: Path, small_disk: Path, project: Path) -> None:
    """The disk fills while checkpoints are written; with room again, the same command goes on."""
    filler = small_disk / "filler"
    control = [LABELS_ONLY, f"teacher.model={project / 'base'}",
               "teacher.finetune=null", f"store.storage_path={small_disk}"]  # fmt: skip
    filler.write_bytes(b"0" * (23 * 2**20 + 2**19 + 2**18))
    _, err = cli("distill", fresh / "experiment.yaml", *control, code=4)
    assert "No space left" in err
    filler.unlink()
    out, _ = cli("distill", fresh / "experiment.yaml", *control)
    assert "done" in out
