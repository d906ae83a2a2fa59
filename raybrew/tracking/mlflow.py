"""MLflow: one MLflow run per run folder, continued under the same id."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybrew.config.tracking import MlflowConfig
from raybrew.files import write_json
from raybrew.secrets import scrub
from raybrew.tracking.base import Status, scalars
from raybrew.tracking.reach import Reach, unreachable

__all__ = ["MlflowTracker", "check"]

#: Holds the MLflow id, in the run folder.
ID_FILE = "mlflow/raybrew-run.json"
#: What MLflow takes in one request, and of one value.
_MAX_PARAMS = 100
_MAX_TEXT = 5000
#: Unlike these, any other character is refused in the name of a metric or parameter.
_REFUSED = re.compile(r"[^\w\-. /]")
_STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """Mirrors records to MLflow, whose parameters are the experiment's values by dotted key.

    MLflow keeps every point that it is given: a run that repeats the steps after its last checkpoint therefore leaves
    out those that are there.
    """

    name = "mlflow"

    def __init__(self, config: MlflowConfig, *, experiment: str, job_type: str) -> None:
        self.config = config
        self.experiment = experiment
        self.job_type = job_type
        self.id: str | None = None
        self._client: Any = None
        self._last: dict[str, int] = {}

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        if self._continue(folder):
            return
        from mlflow.entities import Param

        name = self.config.experiment or self.experiment
        found = self._client.get_experiment_by_name(name)
        place = found.experiment_id if found is not None else self._client.create_experiment(name)
        group = self.config.group or self.experiment
        tags = {**self.config.tags, "raybrew.group": group, "raybrew.verb": self.job_type}
        self.id = str(self._client.create_run(place, run_name=run_id, tags=scrub(tags)).info.run_id)
        path = folder / ID_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"id": self.id})
        params = [Param(key, text[:_MAX_TEXT]) for key, text in _flat(scrub({**config, "run_id": run_id}))]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self.id, params=params[first : first + _MAX_PARAMS])

    def reopen(self, folder: Path) -> bool:
        return (folder / ID_FILE).is_file() and self._continue(folder)

    def log(self, record: Mapping[str, Any]) -> None:
        values = scalars(record)
        if self.id is None or not values:
            return
        if record.get("best") is True:
            values |= {f"best/{name.removeprefix('eval/')}": value for name, value in values.items()}
        self._log(values, int(record["step"]))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            plain = json.dumps(scrub([dict(row) for row in rows]), default=str, indent=1)
            self._client.log_text(self.id, plain, f"{name}.json")

    def log_page(self, name: str, path: Path) -> None:
        self._client.log_text(self.id, path.read_text(encoding="utf-8"), f"{name}.html")

    def summarise(self, values: Mapping[str, Any]) -> None:
        plain = scrub(dict(values))
        numbers = {key: float(value) for key, value in plain.items() if isinstance(value, int | float)}
        self._last = {}  # a value of the run as a whole may be another one than it was
        self._log(numbers, 0)
        for key in plain.keys() - numbers.keys():
            self._client.set_tag(self.id, _name(key), str(plain[key])[:_MAX_TEXT])

    def finish(self, status: Status) -> None:
        run, self.id = self.id, None
        if run is not None:
            self._client.set_terminated(run, status=_STATUS[status])

    def state_dict(self) -> dict[str, Any]:
        return {} if self.id is None else {"id": self.id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.id = state.get("id", self.id)

    def _continue(self, folder: Path) -> bool:
        """Open the client and, if there is one, the run of an earlier start, with the steps that it has."""
        # A server that does not answer must not hold up training: MLflow would try for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.config.uri)
        path = folder / ID_FILE
        if self.id is None and path.is_file():
            self.id = str(json.loads(path.read_text(encoding="utf-8"))["id"])
        if self.id is None:
            return False
        self._client.update_run(self.id, status="RUNNING")
        for name in self._client.get_run(self.id).data.metrics:
            self._last[name] = max(point.step for point in self._client.get_metric_history(self.id, name))
        return True

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {_name(name): value for name, value in values.items()}
        new = [Metric(name, value, now, step) for name, value in named.items() if step > self._last.get(name, -1)]
        if new:
            self._client.log_batch(self.id, metrics=new)


def check(config: MlflowConfig) -> Iterator[Reach]:
    """Whether MLflow is installed and its server answers."""
    try:
        import mlflow.tracking
    except ImportError:
        yield Reach("problem", "mlflow is not installed, so nothing is mirrored to it", "pip install 'raybrew[mlflow]'")
        return
    uri = config.uri or str(mlflow.tracking.get_tracking_uri())
    if urlsplit(uri).scheme not in ("http", "https"):
        yield Reach("ok", f"runs are kept in {scrub(uri)}")
        return
    reason = unreachable(uri)
    if reason:
        remedy = "set tracking.mlflow.uri or MLFLOW_TRACKING_URI; metrics.jsonl has everything in any case"
        yield Reach("warning", f"{urlsplit(uri).hostname} does not answer ({reason})", remedy)
    else:
        yield Reach("ok", f"{urlsplit(uri).hostname} answers")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text; what is nothing is left out."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif value is not None and value != [] and key:
        yield _name(key), json.dumps(value, default=str) if isinstance(value, list | tuple) else str(value)


def _name(text: str) -> str:
    return _REFUSED.sub("_", text)
