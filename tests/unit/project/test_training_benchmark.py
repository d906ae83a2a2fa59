"""The training benchmark runs as it is described, and without Ray, on a small teacher and a few rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from raybrew.demo.tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_it_prints_every_ratio_without_ray(tmp_path: Path) -> None:
    rows = [
        {"text": f"a film of {'many ' * (number % 5)}words", "label": ("negative", "positive")[number % 2]}
        for number in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = build_tokenizer([row["text"] for row in rows], tmp_path / "teacher", max_length=32)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(tmp_path / "teacher")
    (tmp_path / "ray.py").write_text("raise ImportError('the benchmark does without Ray')\n")
    command = [sys.executable, ROOT / "experiments" / "benchmarks" / "training.py", "--data", tmp_path / "rows.jsonl"]
    options = [
        "--rows",
        "32",
        "--batch-size",
        "8",
        "--rounds",
        "1",
        "--max-length",
        "32",
        "--fixed-length",
        "32",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [*map(str, command), "--teacher", str(tmp_path / "teacher"), "--json", str(tmp_path / "out.json"), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    for objective in ("logits", "hidden"):
        assert found[objective]["steps"] == 4
        names = {"student floor", "store", "teacher floor", "live", "TextBrewer dynamic", "TextBrewer fixed"}
        assert set(found[objective]["seconds"]) == names
        assert all(wall > 0 for values in found[objective]["seconds"].values() for wall, _ in values)
        for source in ("store", "live"):
            shares = found[objective]["shares"][source]
            assert sum(shares.values()) == pytest.approx(1)
            assert min(shares[part] for part in ("data", "forward", "loss", "backward", "clip", "optimizer")) > 0
            assert (shares["teacher"] > 0) == (source == "live")
    assert done.stdout.count("store / student floor, speed") == 4  # wall and CPU time of two objectives
    assert "live against  TextBrewer fixed" in done.stdout
