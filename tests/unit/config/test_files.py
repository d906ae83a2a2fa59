"""Experiment files: all are valid, every published row has one, and the overrides in their comments fit local rows."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from raybrew.config.loading import load_experiment
from raybrew.config.views import task_views
from raybrew.data.rows import load_rows
from raybrew.models.loading import ModelSource, load_config, load_tokenizer
from raybrew.tasks.base import build_task

#: Folder -> its files with a published figure beside that of the folder's own name, and the method of each.
STUDENTS = dict.fromkeys(("T6", "T3-small", "T4-tiny", "T12-nano"), "textbrewer")
METHODS = {"distilbert": "distilbert", "pkd": "pkd-skip", "tinybert": "tinybert"}
CHINESE = dict.fromkeys(("T3-small", "T4-tiny", "Electra-small"), "textbrewer")
PUBLISHED = {
    "mnli": STUDENTS | METHODS | {"theseus": "theseus", "multi_teacher": "kd"},
    "squad": STUDENTS | METHODS,
    "conll2003": STUDENTS | {"BiGRU": "kd"},
    "xnli": CHINESE,
    "lcqmc": CHINESE,
    "cmrc2018": CHINESE,
    "drcd": CHINESE,
    "msra_ner": {},
}
#: Files of other teachers than the task's first one.
OTHER_TEACHER = ("Electra-small", "tinybert", "theseus", "multi_teacher")
NUM_FILES = 61
ROWS_READ = 250
FIGURE = re.compile(r"[Pp]ublished.*\d\d\.\d", re.DOTALL)


def files(repo_root: Path) -> list[Path]:
    return sorted((repo_root / "experiments").rglob("*.yaml"))


def header(path: Path) -> str:
    """The comment that a file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.removeprefix("#").strip() for line in lines)


def local_overrides(path: Path) -> list[str]:
    """The `key=value` words below `With local files ...:` in a file's comment, as a shell would give them."""
    _, _, rest = header(path).partition("With local files")
    return shlex.split(rest.partition(":\n")[2].replace("\\\n", " "))


def test_every_file_is_valid_by_the_command(repo_root: Path) -> None:
    found = files(repo_root)
    assert len(found) == NUM_FILES
    command = [sys.executable, "-m", "raybrew", "validate", *map(str, found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NUM_FILES} of {NUM_FILES} valid" in done.stdout + done.stderr


@pytest.mark.parametrize("folder", PUBLISHED)
def test_every_published_row_has_a_file_with_its_figure(repo_root: Path, folder: str) -> None:
    base = repo_root / "experiments" / folder / f"{folder}.yaml"
    first = load_experiment(base)
    assert first.distill.method == "textbrewer"
    for name, method in ({folder: "textbrewer"} | PUBLISHED[folder]).items():
        path = base.with_name(f"{name}.yaml")
        assert FIGURE.search(header(path)), path
        experiment = load_experiment(path)
        assert experiment.distill.method == method
        if method == "textbrewer":
            assert [match.loss for match in experiment.distill.matches] == ["hidden_mse", "mmd"]
            assert experiment.distill.temperature == 8
            assert not experiment.distill.scale_by_temperature_squared
        if name in STUDENTS:
            assert experiment.student.shape == name
        # One teacher, fine-tuned once, serves all students but those of another.
        if name not in OTHER_TEACHER:
            assert experiment.run_id("finetune") == first.run_id("finetune")


def test_workers_change_nothing_but_their_number(repo_root: Path) -> None:
    folder = repo_root / "experiments" / "msra_ner"
    one, two = (load_experiment(folder / name) for name in ("msra_ner.yaml", "workers.yaml"))
    assert (one.train.workers, two.train.workers) == (1, 2)
    assert two.run_id("distill") == one.run_id("distill")


def _local(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


with_local = [path for path in files(Path(__file__).resolve().parents[3]) if local_overrides(path)]


@pytest.mark.parametrize("path", with_local, ids=_local)
def test_overrides_for_local_files_read_them(
    path: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = local_overrides(path)
    named = re.findall(r"\w+/\w+\.jsonl\.gz", " ".join(overrides))
    assert len(named) >= 2
    for value in named:
        source = shared_data / value
        if not source.is_file():
            # Where only the development set could be had, its columns stand for those of the training set.
            source = source.with_name("dev.jsonl.gz")
        target = tmp_path / value
        target.parent.mkdir(exist_ok=True)
        with gzip.open(source, "rt", encoding="utf-8") as rows, gzip.open(target, "wt", encoding="utf-8") as head:
            head.writelines(itertools.islice(rows, ROWS_READ))
    monkeypatch.chdir(tmp_path)
    for view in task_views(load_experiment(path, overrides)):
        data = view.experiment.data
        task = build_task(view.experiment.task, data.columns)
        train = load_rows(data, "train", task)
        assert len(load_rows(data, "eval", task, train.labels)) == ROWS_READ
        tested = load_rows(data, "test", task, train.labels) if data.test is not None else ()
        assert len(train) + len(tested) * (data.test_share is not None) == ROWS_READ
        if data.unlabeled is not None:
            assert len(load_rows(data, "unlabeled", task, train.labels)) == ROWS_READ


def script(repo_root: Path, name: str) -> ModuleType:
    """A script of `experiments/` as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, repo_root / "experiments" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_bert_with_random_weights_is_a_model_folder(repo_root: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "人", "民"]) + "\n", encoding="utf-8"
    )
    folder = tmp_path / "model"
    script(repo_root, "random_bert.py").make(vocabulary, folder, layers=2, hidden=16)
    source = ModelSource(str(folder))
    config = load_config(source)
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (7, 2, 16)
    assert load_tokenizer(source).tokenize("人民x") == ["人", "民", "[UNK]"]


def test_random_tokens_are_distilled(repo_root: Path, tmp_path: Path) -> None:
    before, after = script(repo_root, "random_tokens/distill.py").main(tmp_path / "out")
    assert after < before / 10


def test_contexts_are_cut_around_the_answer(repo_root: Path) -> None:
    cut = script(repo_root, "cmrc2018/cut_contexts.py").cut
    context = "一二三。四五六！七八九？十。"
    row = {"context": context, "question": "?", "answers": {"text": ["五六", "九", "二"], "answer_start": [5, 10, 1]}}
    assert cut(row, 3) is None, "the sentence of the answer is longer"
    assert cut(row, 4) == {
        "context": "四五六！",
        "question": "?",
        "answers": {"text": ["五六"], "answer_start": [1]},
        "answers_official": ["五六", "九", "二"],
    }
    assert cut(row, 9)["context"] == "四五六！七八九？", "what follows goes before what precedes"
    assert cut(row, 99)["context"] == context
    assert cut({**row, "answers": {"text": ["六！七"], "answer_start": [6]}}, 8)["context"] == "四五六！七八九？"
