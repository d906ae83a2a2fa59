"""`store`: where teacher outputs and runs live, and how the teacher pass is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field

from raybrew.catalog.forms import FORMS
from raybrew.config.base import MAX_CPUS, FunctionName, Many, Section

__all__ = ["StoreConfig"]

if TYPE_CHECKING:
    FormName: TypeAlias = str
else:
    FormName = Literal[tuple(FORMS)]


class StoreConfig(Section):
    """Folders and the shape of a capture. What a student learns changes with `element_type` and `forms` alone."""

    storage_path: str = "runs"
    """Folder of all runs: `<storage_path>/<name>/<run id>/`."""
    path: str | None = None
    """Folder of teacher stores, or `s3://bucket/prefix`, `gs://bucket/prefix`. Default: `<storage_path>/store`."""
    cache: str | None = None
    """Folder on each node for copies of what is read from s3:// or gs://. Default: `~/.cache/raybrew/stores`."""
    element_type: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    """How stored numbers are kept, int8 with a scale for each token and layer; logits are always float32."""
    forms: dict[str, FormName | FunctionName] = Field(default={})
    """Form of a kind of signals, such as `logits: package.module:Name`; a class of your own says what is stored."""
    signals: Many[str] = ()
    """Signals to capture beyond what the objective needs, such as `hidden.00`."""
    rows_per_shard: int = Field(default=4096, ge=1, le=10**7)
    """Rows of one shard, the unit that is computed, committed and repeated after a failure."""
    batch_tokens: int = Field(default=8192, ge=64, le=10**8)
    """Padded tokens of one teacher batch at most."""
    actors: Many[int] | None = None
    """Fewest and most teacher actors. Default: one, and as many as the cluster has GPUs, or CPUs and memory, for."""
    cpus_per_actor: float = Field(default=1, gt=0, le=MAX_CPUS)
    """CPUs that Ray reserves for each teacher actor."""
    launcher: Literal["auto", "local", "ray"] = "auto"
    """`ray`: Ray Data actors; `local`: in this process; `auto`: Ray, except for a single shard."""

    @property
    def fewest_actors(self) -> int:
        """Actors that a capture does not begin without."""
        return 1 if self.actors is None else self.actors[0]
