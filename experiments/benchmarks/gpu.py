"""What a machine with a GPU has to say: its tests and both benchmarks, in under ten minutes. `make gpu` runs it.

    python experiments/benchmarks/gpu.py [--out runs/gpu]

Exits with 3, and says why, where torch sees no GPU. Each part writes a log, the benchmarks their figures as JSON, to
the folder `--out`; a part that fails or takes too long does not end the others, but the command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from raybrew.demo.reviews import LABEL_NAMES, generate_reviews

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ROWS = 3200
#: Seconds of each part; together under ten minutes.
LIMITS = {"tests": 210, "training": 150, "training-compiled": 120, "store": 90}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="logs and figures")
    options = parser.parse_args()
    reason = no_gpu()
    if reason:
        print(f"make gpu: {reason}", file=sys.stderr)
        sys.exit(3)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = options.out / "rows.jsonl"
    write_rows(rows)
    failed = [name for name, command in parts(rows, options.out).items() if not ran(name, command, options.out)]
    print(f"figures and logs: {options.out}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def no_gpu() -> str | None:
    """Why nothing can be measured here; None where torch sees a GPU that has bf16."""
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no GPU (torch.cuda.is_available() is false); run it on a machine with an "
            "NVIDIA GPU and a build of torch for CUDA"
        )
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability[0] < 8:
        return f"{name} has no bf16 (compute capability {capability[0]}.{capability[1]}; 8.0 is needed)"
    return None


def write_rows(path: Path) -> None:
    """Generated reviews, so that nothing is downloaded."""
    with path.open("w", encoding="utf-8") as file:
        for review in generate_reviews(ROWS, seed=0):
            file.write(json.dumps({"text": review.text, "label": LABEL_NAMES[review.label]}) + "\n")


def parts(rows: Path, out: Path) -> dict[str, list[str]]:
    """Name -> command."""
    gpu = ["--device", "cuda", "--precision", "bf16"]
    training = [str(HERE / "training.py"), "--data", str(rows), "--rows", str(ROWS), *gpu, "--fixed-rounds", "0"]
    store = [str(HERE / "store.py"), "--data", str(rows), "--rows", str(ROWS), "--rounds", "3", "--memory-rows", *gpu]
    return {
        "tests": ["-m", "pytest", str(ROOT / "tests"), "-m", "gpu", "-q", "-p", "no:cacheprovider"],
        "training": [*training, "--rounds", "3", "--json", str(out / "training.json")],
        # Each length of batches is compiled for itself, so one objective and without TextBrewer.
        "training-compiled": [
            *[*training, "--compile", "--objectives", "logits", "--no-textbrewer", "--rounds", "2"],
            *["--json", str(out / "training-compiled.json")],
        ],
        "store": [*store, "--json", str(out / "store.json"), "--markdown", str(out / "store.md")],
    }


def ran(name: str, command: list[str], out: Path) -> bool:
    """Run one part, show its last lines, and say whether it succeeded."""
    log, started = out / f"{name}.log", time.monotonic()
    environment = {**os.environ, "RAYBREW_TEST_GPU": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LIMITS[name],
                check=False,
            )
            outcome = "done" if done.returncode == 0 else f"failed with {done.returncode}"
        except subprocess.TimeoutExpired:
            outcome = f"ended after its {LIMITS[name]} s"
    print(f"== {name}: {outcome}, {time.monotonic() - started:.0f} s")
    print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]), flush=True)
    return outcome == "done"


if __name__ == "__main__":
    main()
