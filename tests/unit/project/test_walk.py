"""The way from `distill(experiment)` to the first training step: what is read once, and how far a reader must walk."""

from __future__ import annotations

import functools
import json
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from family_models import without_latency
from tiny_teacher import make_teacher

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.models import loading
from raybrew.runs import train_run
from raybrew.training.encoded import Trainee

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "raybrew"
#: Rooms in which it is decided what is done next, with the files of these that are entered at most.
DECIDING, MOST_DECIDING = ("verbs", "pipeline", "runs"), 21
#: Files of the whole package, with those that parse rows, capture a store and score the teacher; and pairs of functions
#: of which the lower one calls the higher one.
MOST_FILES, MOST_CLIMBS = 125, 15


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    without_latency(monkeypatch)
    make_teacher(tmp_path / "teacher")
    for name, count in {"train": 40, "eval": 12, "test": 12}.items():
        rows = [{"text": f"kola mane {name} {number}", "label": str(number % 3)} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(storage: str, **sections: Any) -> Experiment:
        return build_experiment(
            {
                "name": "walk",
                "task": {"kind": "classification", "max_length": 16},
                "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")},
                "teacher": {"model": str(tmp_path / "teacher"), "device": "cpu"},
                "student": {"shape": {"layers": 1, "hidden": 32, "heads": 2, "feed_forward": 48}, "init": "truncate"},
                "distill": {"matches": [{"loss": "pooled_cos"}]},
                "train": {"epochs": 1, "device": "cpu"},
                "store": {"storage_path": str(tmp_path / storage), "launcher": "local"},
                **sections,
            }
        )

    return make


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often weights and tokenizers were read, by what and where from."""
    found: Counter[tuple[str, str]] = Counter()
    load = loading._load

    def counted(what: str, function: Any, source: loading.ModelSource, **arguments: Any) -> Any:
        found[what, Path(source.model).name] += what != "config"
        return load(what, function, source, **arguments)

    monkeypatch.setattr(loading, "_load", counted)
    return found


@pytest.mark.parametrize("source", ["auto", "live"])
@pytest.mark.parametrize("test", [False, True])
def test_a_fresh_distill_reads_each_model_once(
    project: Callable[..., Experiment], reads: Counter[tuple[str, str]], source: str, test: bool
) -> None:
    experiment = project("runs")
    teacher = experiment.teacher.model_copy(update={"source": source})
    data = experiment.data.model_copy(
        update={"test": experiment.data.eval.replace("eval", "test") if test and experiment.data.eval else None}
    )
    result = raybrew.distill(experiment.model_copy(update={"teacher": teacher, "data": data}))
    assert ("test" in result.summary) == test
    assert result.summary["teacher"]["metrics"], "the teacher was scored"
    assert +reads == {("model", "teacher"): 1, ("tokenizer", "teacher"): 1, ("model", "student"): 1} | (
        {("tokenizer", "student"): 1} if test else {}
    )


def test_what_workers_are_given_travels(project: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process trains the same from a pickled spec, whose store and models stay behind."""
    here = raybrew.distill(project("here"), report=False)
    launch = train_run.launch

    def elsewhere(job: Any, spec: Any, *more: Any, **named: Any) -> Any:
        sent = pickle.loads(pickle.dumps(spec))
        assert spec.inputs[0].teachers[0].opened is not None
        assert sent.inputs[0].teachers[0].opened is None
        return launch(job, sent, *more, **named)

    monkeypatch.setattr(train_run, "launch", elsewhere)
    there = raybrew.distill(project("there"), report=False)
    assert there.summary["last"] == here.summary["last"]
    assert there.summary["best"] == here.summary["best"]


@functools.cache
def _place_of(filename: str) -> str | None:
    path = Path(filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None


class Walk:
    """Files and climbs of all calls until the first training step."""

    def __init__(self) -> None:
        layers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
        rows = layers["contracts"][0]["layers"]
        self.heights = {room.strip(): -place for place, row in enumerate(rows) for room in row.split("|")}
        self.files: set[str] = set()
        self.climbs: Counter[tuple[str, str]] = Counter()

    @staticmethod
    def place(frame: FrameType) -> str | None:
        return _place_of(frame.f_code.co_filename)

    def height(self, place: str) -> int:
        return self.heights.get(place.split("/", maxsplit=1)[0].removesuffix(".py"), 0)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        here = self.place(frame)
        if here is None or frame.f_code.co_name == "<module>":
            return
        self.files.add(here)
        above = frame.f_back
        while above is not None and self.place(above) is None:
            above = above.f_back
        if above is not None:
            there = self.place(above)
            assert there is not None
            if self.height(here) > self.height(there):
                self.climbs[f"{there}:{above.f_code.co_name}", f"{here}:{frame.f_code.co_name}"] += 1


class _Begun(Exception):  # noqa: N818 (not an error)
    pass


@pytest.mark.parametrize("storage", ["before", "fresh"])
def test_few_files_lie_on_the_way_to_the_first_step(
    project: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    raybrew.distill(project("before"), report=False)  # imports everything

    def begun(*_: Any) -> Any:
        sys.setprofile(None)
        raise _Begun

    monkeypatch.setattr(Trainee, "forward", begun)
    walk, experiment = Walk(), project(storage)
    sys.setprofile(walk)
    threading.setprofile(walk)
    try:
        with pytest.raises(_Begun):
            raybrew.distill(experiment, run_id="walked", report=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    deciding = [name for name in walk.files if name.startswith(DECIDING)]
    assert 10 < len(deciding) <= MOST_DECIDING, sorted(deciding)
    assert len(walk.files) <= MOST_FILES, sorted(walk.files)
    assert len(walk.climbs) <= MOST_CLIMBS, sorted(walk.climbs.items())
