"""Questions with the sentences around their answer only, for machines on which whole contexts take too long.

python experiments/cmrc2018/cut_contexts.py cmrc2018/train.jsonl.gz cut-train.jsonl

The sentence of the (first) answer is kept, and whole sentences after and before it in turn, as long as they fit. That
tells where the answer is: figures from such rows compare students with each other, and with nothing that others have
published. Answers of other annotators that lie outside are left out of `answers`, yet count (`answers_official`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["cut", "main"]

_SENTENCE = re.compile(r"[^。！？]*[。！？]*")


def cut(row: dict[str, Any], length: int) -> dict[str, Any] | None:
    """The row with a context of at most `length` characters; None if the sentence of the answer alone is longer."""
    context, (start, *_), (text, *_) = row["context"], row["answers"]["answer_start"], row["answers"]["text"]
    spans = [match.span() for match in _SENTENCE.finditer(context) if match.group()]
    inside = [place for place, (begin, end) in enumerate(spans) if begin < start + len(text) and end > start]
    first, last = inside[0], inside[-1]
    if spans[last][1] - spans[first][0] > length:
        return None
    grew = True
    while grew:
        grew = False
        if last + 1 < len(spans) and spans[last + 1][1] - spans[first][0] <= length:
            last, grew = last + 1, True
        if first > 0 and spans[last][1] - spans[first - 1][0] <= length:
            first, grew = first - 1, True
    begin, end = spans[first][0], spans[last][1]
    kept = [
        (one, at - begin)
        for one, at in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        if at >= begin and at + len(one) <= end
    ]
    answers = {"text": [one for one, _ in kept], "answer_start": [at for _, at in kept]}
    official = row.get("answers_official") or row["answers"]["text"]
    return {**row, "context": context[begin:end], "answers": answers, "answers_official": official}


def main(source: Path, target: Path, length: int) -> tuple[int, int]:
    """Rows kept, and rows read."""

    def rows() -> Iterator[dict[str, Any]]:
        opened = gzip.open if source.suffix == ".gz" else open
        with opened(source, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)

    read = kept = 0
    with target.open("w", encoding="utf-8") as file:
        for row in rows():
            read += 1
            if (shorter := cut(row, length)) is not None:
                file.write(json.dumps(shorter, ensure_ascii=False) + "\n")
                kept += 1
    return kept, read


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--length", type=int, default=120, help="characters of a context, at most")
    given = parser.parse_args()
    print("{} of {} rows".format(*main(given.source, given.target, given.length)))
