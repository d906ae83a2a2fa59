"""`store`: where teacher outputs and runs live, and how the teacher pass is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field

from raybrew.catalog.forms import FORMS
from raybrew.catalog.signals import KINDS
from raybrew.config.base import MAX_CPUS, MAX_WORKERS, Many, Section
from raybrew.config.outside import FunctionName
from raybrew.config.paths import unusable_path
from raybrew.config.problems import near_match
from raybrew.errors import Problem
from raybrew.signals import parse_signal

__all__ = ["StoreConfig", "check_store"]

if TYPE_CHECKING:
    FormName: TypeAlias = str
else:
    FormName = Literal[tuple(FORMS)]


class StoreConfig(Section):
    """Folders and the shape of a capture. What a student learns changes with `element_type` and `forms` alone.

    Example:
        >>> raybrew.StoreConfig(storage_path="/shared/runs", element_type="int8")
        StoreConfig(storage_path='/shared/runs', element_type='int8')
    """

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


def check_store(store: StoreConfig) -> list[Problem]:
    problems = []
    actors = store.actors
    if actors is not None and (len(actors) != 2 or not 1 <= actors[0] <= actors[1] <= MAX_WORKERS):
        allowed = f"allowed: [fewest, most], both from 1 to {MAX_WORKERS}"
        problems.append(Problem("store.actors", f"given {list(actors)}; {allowed}"))
    for signal in store.signals:
        try:
            parse_signal(signal)
        except ValueError as error:
            problems.append(Problem("store.signals", str(error)))
    for kind in store.forms:
        if kind not in KINDS:
            words = f"no kind of signal; allowed: {', '.join(KINDS)}{near_match(kind, KINDS)}"
            problems.append(Problem(f"store.forms.{kind}", words, "unknown"))
    for key in ("storage_path", "cache"):
        value = getattr(store, key)
        if value is not None and "://" in value:
            problems.append(Problem(f"store.{key}", f"given {value!r}; allowed: a local or shared (NFS) folder"))
        problems += unusable_path(f"store.{key}", value)
    if store.path is not None and "://" in store.path:
        problems += _url(store.path)
    return [*problems, *unusable_path("store.path", store.path)]


def _url(url: str) -> list[Problem]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        # Not repeated: what stands before the @ is a secret.
        return [Problem("store.path", "holds credentials; give them in the environment, never in a URL", "secret")]
    if parts.scheme not in ("s3", "gs") or not parts.netloc or parts.query or parts.fragment:
        return [Problem("store.path", f"given {url!r}; allowed: a folder, s3://bucket/prefix or gs://bucket/prefix")]
    return []
