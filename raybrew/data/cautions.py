"""What makes the numbers of a run doubtful: kinds with counts, and the sentence of each.

`raybrew.data.row_cautions` and `raybrew.data.model_cautions` are the kinds. A run keeps its cautions in `summary.json`,
where `raybrew.records.cautions` reads them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

__all__ = ["Caution", "order_text", "share_text", "tell"]

#: Labels named in one sentence.
_SHOWN_LABELS = 12


@dataclasses.dataclass(frozen=True)
class Caution:
    """Plain JSON values only, apart from tuples."""

    kind: ClassVar[str]

    @property
    def serious(self) -> bool:
        """Whether a report repeats it, as it may change what the numbers say."""
        return True

    def text(self) -> str:
        """One sentence, without a full stop."""
        raise NotImplementedError

    def plain(self) -> dict[str, Any]:
        """As `summary.json` holds it."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"kind": self.kind, **fields}


def tell(cautions: Iterable[Caution], say: Callable[[str], None]) -> None:
    """One line for each caution."""
    for caution in cautions:
        say(f"warning: {caution.text()}" if caution.serious else caution.text())


def share_text(rows: int, of: int) -> str:
    """`338 of 9,600 rows (3.5 %)`; shares below a tenth of a per cent are left out."""
    share = f" ({100 * rows / of:.1f} %)" if rows >= 0.001 * of else ""
    return f"{rows:,} of {of:,} rows{share}"


def order_text(names: Sequence[str], other: Sequence[str] | None = None) -> str:
    """`0 = negative, 1 = positive`; of many labels those that differ from `other`."""
    pairs = [(index, name) for index, name in enumerate(names)]
    if other is not None and len(other) == len(names):
        pairs = [(index, name) for index, name in pairs if other[index] != name] or pairs
    shown = ", ".join(f"{index} = {name}" for index, name in pairs[:_SHOWN_LABELS])
    return shown + (", ..." if len(pairs) > _SHOWN_LABELS else "")
