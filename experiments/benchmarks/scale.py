"""How the driver of a sweep, its report and a store's reader grow: the real conductor, ledger, search, progress, report
and store, with trials that train nothing.

python experiments/benchmarks/scale.py sweep --sizes 100 1000 10000
python experiments/benchmarks/scale.py sweep --sizes 100 1000 --search optuna --scheduler asha
python experiments/benchmarks/scale.py report --sizes 100 300 1000
python experiments/benchmarks/scale.py store --sizes 10000 100000 1000000
python experiments/benchmarks/scale.py rows --sizes 10000 100000 1000000
python experiments/benchmarks/scale.py plan --sizes 100000000 --teacher-rate 400000 --student-rate 500000

Each size runs in a process of its own. Seconds are processor time, so that other work on the machine hardly counts.
`plan` measures nothing: it is the arithmetic of `raybrew plan` for given rates, in tokens a second of one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Trials at the same time, as on 64 GPUs.
SLOTS = 64
#: Evaluations that each trial reports.
_REPORTS = 4
_ROWS_PER_SHARD = 1000
_SPACE = {
    "distill.temperature": {"uniform": [1, 20]},
    "distill.kd_weight": {"uniform": [0.1, 1]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "student.shape": {"choice": [{"layers": layers, "hidden": 312} for layers in (2, 3, 4, 6)]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*sorted(MEASURES), "plan"])
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--search", default="random", choices=("random", "optuna"))
    parser.add_argument("--scheduler", default="none", choices=("none", "asha", "median"))
    group = parser.add_argument_group("plan")
    group.add_argument("--teacher-rate", type=float, default=400e3)
    group.add_argument("--student-rate", type=float, default=500e3)
    group.add_argument("--tokens", type=int, default=32, help="of a row")
    group.add_argument("--width", type=int, default=768, help="of the teacher")
    group.add_argument("--layers", type=int, default=4, help="hidden layers that are matched")
    group.add_argument("--gpus", type=int, default=64)
    group.add_argument("--nodes", type=int, default=8)
    group.add_argument("--trials", type=int, default=1000)
    group.add_argument("--epochs", type=float, default=1.0)
    group.add_argument("--rows-per-shard", type=int, default=65536)
    group.add_argument("--parameters", type=float, default=14.35e6, help="of a student")
    parser.add_argument("--one", action="store_true", help="measure in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(MEASURES[arguments.what](arguments.sizes[0], arguments)))
        return
    if arguments.what == "plan":
        for size in arguments.sizes:
            print(plan_table(size, arguments))
        return
    found = []
    for size in arguments.sizes:
        command = [sys.executable, __file__, arguments.what, "--sizes", str(size), "--one"]
        command += ["--search", arguments.search, "--scheduler", arguments.scheduler]
        found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
    print(table(arguments.sizes, found))


def table(sizes: list[int], found: list[dict[str, float]]) -> str:
    """A column per size, and the exponent of growth between the last two: 1 is linear, 2 quadratic."""
    heads = ["", *(f"{size:,}" for size in sizes), "exponent"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name in found[0]:
        values = [one[name] for one in found]
        exponent = ""
        if len(values) > 1 and values[-1] > 0 and values[-2] > 0:
            exponent = f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):.2f}"
        lines.append("| " + " | ".join([name, *(f"{value:.4g}" for value in values), exponent]) + " |")
    return "\n".join(lines)


def base(folder: Path, trials: int, search: str, scheduler: str) -> Any:
    """An experiment whose sweep has `trials` configurations."""
    from raybrew.config.loading import build_experiment

    sweep = {
        "space": _SPACE,
        "search": search,
        "trials": trials,
        "scheduler": scheduler,
        "budget": {"gpu_hours": 1e9, "price_per_hour": 1.0, "money": 1e9},
        "resources": {"gpus": 1},
    }
    values = {
        "name": "scale",
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "teacher": {"model": "a/teacher"},
        "student": {"shape": {"layers": 4, "hidden": 312}},
        "store": {"storage_path": str(folder)},
        "sweep": sweep,
    }
    return build_experiment(values, check_files=False)


class StubTrainer:
    """Instead of training: a run folder of the size and kind that `raybrew distill` leaves, with made-up numbers."""

    def __init__(self, folder: Path, whole: bool) -> None:
        self.folder = folder
        self.whole = whole
        self.random = random.Random(0)

    def value(self, job: Any) -> float:
        distill = job.experiment.distill
        return (
            0.9
            - 0.002 * abs(distill.temperature - 8)
            - 0.05 * abs(distill.kd_weight - 0.7)
            + self.random.gauss(0, 0.01)
        )

    def finish(self, job: Any, value: float) -> None:
        """`summary.json`, which the search reads; with `whole` also what reports read."""
        folder = self.folder / job.run
        (folder / "student").mkdir(parents=True, exist_ok=True)
        plain = job.experiment.plain()
        layers = plain["student"]["shape"]["layers"]
        summary = {
            "verb": "distill", "name": plain["name"], "run_id": job.run, "status": "done", "seed": job.seed,
            "role": "student" if job.experiment.distill.kd_weight else "control",
            "student": {"parameters": 3_600_000 * layers, "megabytes": 14.4 * layers, "layers": layers,
                        "description": f"BERT {layers}x312", "architecture": "BertForSequenceClassification"},
            "teacher": {"model": "a/teacher", "fingerprint": "5c1f", "parameters": 22_713_986, "megabytes": 90.9,
                        "metrics": {"accuracy": 0.92}},
            "best": {"step": 1000, "epoch": 3.0, "metric": "accuracy", "value": value, "metrics": {"accuracy": value}},
            "steps": 1000, "rows": {"train": 3200, "eval": 872}, "wall_seconds": 100.0, "device": "cuda",
            "latency_ms": {"batch_1": 0.3 * layers, "batch_32": 0.05 * layers, "tokens": 24},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        if not self.whole:
            return
        (folder / "config.yaml").write_text(json.dumps(plain), encoding="utf-8")
        identity = {"verb": "distill", "identity": job.experiment.identity("distill"), "inputs": {}}
        (folder / "identity.json").write_text(json.dumps(identity, default=str), encoding="utf-8")
        machine = {"machine": {"cpus": 8, "cpu": "some CPU", "memory_gib": 31.4, "gpus": ["some GPU"]}, "torch": "2"}
        (folder / "environment.json").write_text(json.dumps(machine), encoding="utf-8")
        lines = [
            {"step": step, "epoch": step / 333, "time": step / 10, "kind": "train", "loss": 1 / step}
            for step in range(50, 1001, 50)
        ]
        lines += [{"step": 1000, "time": 100.0, "kind": "eval", "eval/accuracy": value, "eval/rows": 872, "best": True}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@dataclasses.dataclass
class _Trial:
    """As much of a trial of Ray Tune as schedulers and progress ask for."""

    trial_id: str
    config: dict[str, Any]
    status: str = "RUNNING"


def drive(experiment: Any, trainer: StubTrainer) -> tuple[Any, dict[str, float]]:
    """The whole sweep with SLOTS trials at a time, by the calls that raybrew's Ray Tune parts make."""
    from raybrew.records.ledger import Ledger
    from raybrew.records.sweeps import CANDIDATE
    from raybrew.sweeps.conductor import Conductor
    from raybrew.sweeps.progress import live_table, news, waiting_reason
    from raybrew.sweeps.replay import objectives_from
    from raybrew.sweeps.run import sweep_folder
    from raybrew.sweeps.schedulers import build_scheduler

    folder = sweep_folder(experiment)
    folder.mkdir(parents=True)
    ledger = Ledger(folder)
    ledger.write("sweep", name=experiment.name, experiment=experiment.plain(), command="raybrew sweep e.yaml")
    ledger.write("session")
    conductor = Conductor(
        experiment, ledger, steps_of=lambda candidate, control: {},
        objectives=objectives_from(folder.parent, experiment.sweep.search.objectives),
    )  # fmt: skip
    scheduler = build_scheduler(experiment.sweep.scheduler)
    told: dict[str, str] = {}
    times = {"trainer": 0.0, "scheduler": 0.0, "table": 0.0}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        found = call()
        times[name] += time.process_time() - began
        return found

    def changed() -> None:
        news(conductor, told)
        waiting_reason(conductor, SLOTS)

    began = time.process_time()
    running: deque[tuple[Any, float, int, _Trial]] = deque()
    count = events = 0
    while True:
        conductor.stopped_by = conductor.stopped_by or conductor.over_budget()
        while len(running) < SLOTS and (job := conductor.next()) is not None:
            conductor.started(job.run)
            changed()
            trial = _Trial(job.run, {"may_stop": job.role == CANDIDATE and not job.rerun})
            timed("scheduler", lambda trial=trial: scheduler.on_trial_add(None, trial))
            running.append((job, timed("trainer", lambda job=job: trainer.value(job)), 0, trial))
            count += 1
        if not running:
            break
        job, value, reports, trial = running.popleft()
        reports += 1
        share = reports / _REPORTS
        conductor.reported(job.run, share, value - 0.1 * (1 - share))
        changed()
        result = {"percent": 100 * share, "quality": value - 0.1 * (1 - share)}
        action = timed("scheduler", lambda trial=trial, result=result: scheduler.on_trial_result(None, trial, result))
        if action == "STOP" or reports == _REPORTS:
            outcome: dict[str, Any] = {"status": "stopped", "seconds": 60.0}
            if action != "STOP":
                timed("trainer", lambda job=job, value=value: trainer.finish(job, value))
                outcome = {"status": "done", "value": value, "seconds": 100.0, "overhead": 1.0}
            trial.status = "TERMINATED"
            timed("scheduler", lambda trial=trial, result=result: scheduler.on_trial_complete(None, trial, result))
            conductor.ended(job.run, outcome)
            changed()
        else:
            running.append((job, value, reports, trial))
        events += 1
        if events % 50 == 0:  # a terminal is drawn anew twice a second
            timed("table", lambda: live_table(conductor, SLOTS))
    seconds = time.process_time() - began
    assert conductor.finished, "the sweep must come to its end"
    ledger.write("close", reason="finished")
    others = times["trainer"] + times["scheduler"] + times["table"]
    times["driver"] = seconds - others
    return conductor, times | {"trials": float(count)}


def measure_sweep(size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """The driver's own seconds and memory for `size` configurations, and of taking up the finished ledger again."""
    from raybrew.records.ledger import Ledger
    from raybrew.records.sweeps import load_sweep
    from raybrew.sweeps.conductor import Conductor
    from raybrew.sweeps.replay import objectives_from

    with tempfile.TemporaryDirectory() as name:
        experiment = base(Path(name), size, arguments.search, arguments.scheduler)
        trainer = StubTrainer(Path(name) / "scale", whole=False)
        with tempfile.TemporaryDirectory() as small:  # imports, so that they do not count
            drive(
                base(Path(small), 2, arguments.search, arguments.scheduler), StubTrainer(Path(small) / "scale", False)
            )
        before = memory()
        conductor, times = drive(experiment, trainer)
        grown = memory() - before
        folder = conductor.ledger.folder
        found = {
            "trials": times["trials"],
            "driver, s": times["driver"],
            "driver, ms a trial": 1000 * times["driver"] / times["trials"],
            "scheduler, s": times["scheduler"],
            "live table, s": times["table"],
            "memory grown, MB": grown,
            "ledger, MB": (folder / "ledger.jsonl").stat().st_size / 1e6,
        }
        began = time.process_time()
        again = Conductor(
            experiment, Ledger(folder), steps_of=lambda candidate, control: {},
            objectives=objectives_from(folder.parent, experiment.sweep.search.objectives),
        )  # fmt: skip
        assert again.over()
        found["taking up again, s"] = time.process_time() - began
        began = time.process_time()
        assert len(load_sweep(folder).trials) == times["trials"]
        found["reading the ledger, s"] = time.process_time() - began
        began = time.process_time()
        assert len(conductor.ranking()) <= size
        found["ranking, s"] = time.process_time() - began
    return found


def measure_report(size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """What the last step of a sweep takes: reading all runs, comparing them, the page."""
    from raybrew.records.sweeps import load_sweep
    from raybrew.reports.sweep_tables import leaderboard, trial_rows
    from raybrew.verbs.report import report

    with tempfile.TemporaryDirectory() as name:
        experiment = base(Path(name), size, arguments.search, arguments.scheduler)
        conductor, _ = drive(experiment, StubTrainer(Path(name) / "scale", whole=True))
        folder = conductor.ledger.folder
        record = load_sweep(folder)
        found: dict[str, float] = {}

        def timed(title: str, call: Callable[[], Any]) -> Any:
            began = time.process_time()
            result = call()
            found[title] = time.process_time() - began
            return result

        runs = timed("reading runs, s", record.runs)
        timed("comparing, s", lambda: leaderboard(record, runs))
        timed("table of trials, s", lambda: trial_rows(record))
        timed("whole report, s", lambda: report([folder], folder / "report.html"))
        found["page, MB"] = (folder / "report.html").stat().st_size / 1e6
        found["memory in all, MB"] = memory()
    return found


def measure_store(size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """A store of `size` rows in shards of 1,000: opening it, finding and gathering rows in random order."""
    import numpy as np
    from generated_store import HIDDEN, ids_of, make_store

    from raybrew.store.reader import Store

    def read(path: Path, ids: Any, batches: int) -> tuple[float, float, float]:
        """Seconds until the first batch is there, those of one more, and private memory with the store open."""
        began = time.process_time()
        store, rng = Store.open(path), np.random.default_rng(0)
        store.gather(HIDDEN, store.locate(ids[rng.integers(0, len(ids), 64)]))
        opened = time.process_time() - began
        began = time.process_time()
        for _ in range(batches):
            store.gather(HIDDEN, store.locate(ids[rng.integers(0, len(ids), 64)]))
        return opened, (time.process_time() - began) / batches, _private_dirty()

    with tempfile.TemporaryDirectory() as name:
        # Imports, so that they do not count.
        read(make_store(Path(name) / "small", 2000, _ROWS_PER_SHARD), ids_of(2000), 2)
        began = time.process_time()
        path = make_store(Path(name) / "store", size, _ROWS_PER_SHARD)
        made = time.process_time() - began
        ids = ids_of(size)
        gc.collect()
        before = _private_dirty()
        opened, batch, private = read(path, ids, 1000)
        return {
            "shards": size / _ROWS_PER_SHARD,
            "files": float(sum(entry.is_file() for entry in path.rglob("*"))),
            "manifest, MB": (path / "manifest.json").stat().st_size / 1e6,
            "writing, s": made,
            "opening and first batch, s": opened,
            "a batch of 64 rows, ms": 1000 * batch,
            "private memory grown, MB": private - before,
        }


def measure_rows(size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """What a driver or worker holds of `size` source rows of 12 words, and of the order of their batches."""
    import numpy as np

    from raybrew.config.loading import build_experiment
    from raybrew.pipeline.resolve import resolve
    from raybrew.pipeline.rows import read_rows
    from raybrew.training.encoded import build_order

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        words = random.Random(0)
        with path.open("w", encoding="utf-8") as file:
            for number in range(size):
                text = " ".join(f"word{words.randrange(5000)}" for _ in range(12))
                file.write(json.dumps({"text": f"{text} {number}", "label": str(number % 2)}) + "\n")
        values = {"name": "rows", "data": {"train": str(path)}, "teacher": {"model": "a/teacher"}}
        experiment = build_experiment({**values, "student": {"shape": "T3"}}, check_files=False)
        before = memory()
        began = time.process_time()
        rows = read_rows(resolve(experiment).tasks[0], None, lambda words: None)
        read = time.process_time() - began
        found = {
            "file, MB": path.stat().st_size / 1e6,
            "reading, s": read,
            "memory grown by reading, MB": memory() - before,
            "rows in memory, MB": rows.training.nbytes / 1e6,
        }
        lengths = np.random.default_rng(0).integers(8, 64, size, np.int32)
        before, began = memory(), time.process_time()
        batches = build_order(lengths, experiment.train).batches(0)
        found["order of an epoch, s"] = time.process_time() - began
        found["memory grown by the order, MB"] = memory() - before
        assert sum(len(batch) for batch in batches) == size
    return found


def plan_table(rows: int, arguments: argparse.Namespace) -> str:
    """Bytes, times, traffic and metadata by `raybrew plan`'s own model, for three ways to match."""
    from raybrew.planning.result import Plan, StorePlan, TrainingPlan
    from raybrew.signals import LOGITS, parse_signal
    from raybrew.store.estimate import Amounts, Widths, estimate_bytes
    from raybrew.store.forms.base import Forms

    tokens = rows * arguments.tokens
    amounts = Amounts(rows, tokens, rows * arguments.tokens**2)
    widths = Widths(logits=2, hidden=arguments.width, heads=12)
    hidden = [parse_signal(f"hidden.{layer:02d}") for layer in range(1, arguments.layers + 1)]
    step_tokens = 8192
    steps = round(tokens * arguments.epochs / step_tokens)
    training = TrainingPlan(
        rows, arguments.epochs, steps, step_tokens / arguments.student_rate,
        tokens * arguments.epochs / arguments.student_rate, 1, "cuda",
    )  # fmt: skip
    columns: dict[str, dict[str, str]] = {}
    for title, request, element in (
        ("logits", [LOGITS], "float16"),
        (f"and {arguments.layers} hidden layers, int8", [LOGITS, *hidden], "int8"),
        (f"and {arguments.layers} hidden layers, float16", [LOGITS, *hidden], "float16"),
    ):
        sizes = estimate_bytes(amounts, widths, request, Forms(element), arguments.rows_per_shard)
        total = sum(sizes.values())
        shards = math.ceil(rows / arguments.rows_per_shard)
        store = StorePlan(
            title, "teacher", "s3://bucket/stores", rows, tokens, arguments.tokens, shards, element, sizes, total,
            None, arguments.teacher_rate, tokens / arguments.teacher_rate, arguments.gpus, "cuda",
        )  # fmt: skip
        plan = Plan("scale", arguments.trials, (store,), training, None, ())
        files = shards * (len(request) + 1)
        state = 4 * arguments.parameters
        columns[title] = {
            "store": f"{total / 1e12:.3f} TB",
            "shards; files and commit marks": f"{shards:,}; {files + shards:,}",
            "capture, if only the teacher takes time": f"{store.seconds / 60:.1f} min",
            "written in it, each GPU": f"{store.write_rate / arguments.gpus / 1e6:.1f} MB/s",
            "written in it, all": f"{store.write_rate / 1e9:.2f} GB/s",
            "copied to each node once": f"{total / 1e12:.3f} TB",
            f"copied by {arguments.nodes} nodes": f"{total * arguments.nodes / 1e12:.2f} TB",
            "the copy at 25 Gbit/s": f"{total / (25e9 / 8) / 60:.1f} min",
            "read from the local disk, each trial": f"{plan.read_rate / 1e6:.0f} MB/s",
            "read from it, each node": f"{plan.read_rate * arguments.gpus / arguments.nodes / 1e9:.2f} GB/s",
            "steps of a trial": f"{steps:,}",
            "one trial": f"{training.worker_seconds / 3600:.2f} h",
            "all trials": f"{plan.student_seconds / arguments.gpus / 3600:.0f} h",
            "GPU-hours with a store": f"{plan.stored_seconds / 3600:,.0f}",
            "GPU-hours with a live teacher": f"{plan.live_seconds / 3600:,.0f}",
            "states of running trials (2 of 3 x weights each)": f"{2 * 3 * state * arguments.gpus / 1e9:.0f} GB",
            "written for states, every 10 minutes": f"{3 * state * arguments.gpus / 600 / 1e6:.0f} MB/s",
            "students until the sweep ends": f"{state * arguments.trials / 1e9:.0f} GB",
            "run folders' files": f"{arguments.trials * 12:,}",
            "device time saved by the store": f"{plan.live_seconds / plan.stored_seconds:.1f} times",
        }
    heads = ["", *columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    names = next(iter(columns.values()))
    lines += ["| " + " | ".join([name, *(column[name] for column in columns.values())]) + " |" for name in names]
    return "\n".join(lines)


def memory() -> float:
    """The most resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _private_dirty() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1000


MEASURES: dict[str, Callable[[int, argparse.Namespace], dict[str, float]]] = {
    "sweep": measure_sweep,
    "report": measure_report,
    "rows": measure_rows,
    "store": measure_store,
}


if __name__ == "__main__":
    main()
