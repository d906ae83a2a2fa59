"""Weights & Biases: one W&B run per run folder, online or offline, continued under the same id."""

from __future__ import annotations

import json
import logging
import netrc
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybrew.config.tracking import WandbConfig
from raybrew.files import write_json
from raybrew.secrets import scrub
from raybrew.tracking.base import Status, scalars
from raybrew.tracking.reach import Reach, unreachable

__all__ = ["WandbTracker", "check", "has_key"]

logger = logging.getLogger("raybrew.tracking")

#: Seconds that a server may take to answer at the start, and to take the rest of the data at the end.
INIT_TIMEOUT_SECONDS = 30.0
FINISH_TIMEOUT_SECONDS = 120.0

#: Holds the W&B id, beside W&B's own files in the run folder.
ID_FILE = "raybrew-run.json"


class WandbTracker:
    """Mirrors records to W&B, `step` being its step axis.

    Where it goes is decided in this order: `WANDB_MODE=offline|disabled` in the environment (a machine without network
    says so there); `tracking.wandb.mode`; whether a key is found. Whenever the answer is not "online", one log line
    says so and how to upload later. A server that does not answer, or refuses the key, turns the run offline as well.

    W&B ignores steps that it has already, so a run that repeats the steps after its last checkpoint leaves no double
    points.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig, *, experiment: str, job_type: str) -> None:
        self.config = config
        self.experiment = experiment
        self.job_type = job_type
        self.id: str | None = None
        self._run: Any = None

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        # Read once per process; W&B would otherwise add its own lines about logins and links.
        os.environ.setdefault("WANDB_SILENT", "true")
        mode, reason = self._mode()
        if mode == "disabled":
            logger.warning("W&B: nothing is tracked, %s", reason)
            return
        self.id = self._id(run_id, folder / "wandb" / ID_FILE)
        plain = scrub({**config, "run_id": run_id})
        if mode == "online":
            try:
                self._run = self._init("online", plain, folder)
                return
            except Exception as error:
                reason = f"because going online failed ({_one_line(error)})"
                self._free_id(run_id)
        self._run = self._init("offline", plain, folder)
        logger.warning("W&B: offline, %s; upload later: wandb sync %s", reason, self._run.settings.sync_dir)

    def reopen(self, folder: Path) -> bool:
        if not (folder / "wandb" / ID_FILE).is_file():
            return False
        self.start(folder.name, {}, folder, resume=True)
        return True

    def log(self, record: Mapping[str, Any]) -> None:
        values: dict[str, Any] = dict(scalars(record))
        if self._run is None or not values:
            return
        if record.get("best") is True:
            self._run.summary.update({f"best/{name.removeprefix('eval/')}": value for name, value in values.items()})
            self._run.summary["best/step"] = int(record["step"])
        values.update({axis: record[axis] for axis in ("epoch", "time", "stage") if axis in record})
        self._run.log(values, step=int(record["step"]))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._run is None or not rows:
            return
        import wandb

        columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
        data: list[Any] = [[_cell(row.get(column)) for column in columns] for row in rows]
        self._run.log({name: wandb.Table(columns=columns, data=data)})

    def log_page(self, name: str, path: Path) -> None:
        if self._run is None:
            return
        import wandb

        self._run.log({name: wandb.Html(str(path))})

    def summarise(self, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update(scrub(dict(values)))

    def finish(self, status: Status) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if status == "interrupted":
            run.mark_preempting()
        run.finish(exit_code=0 if status == "done" else 1)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.id is None else {"id": self.id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.id = state.get("id", self.id)

    def _mode(self) -> tuple[str, str]:
        """("online" | "offline" | "disabled", the reason when it is not online)."""
        forced = os.environ.get("WANDB_MODE", "").lower()
        if forced == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true"):
            return "disabled", f"because the environment says WANDB_MODE={forced or 'disabled'}"
        if forced in ("offline", "dryrun"):
            return "offline", f"because the environment says WANDB_MODE={forced}"
        if self.config.mode == "offline":
            return "offline", "as tracking.wandb.mode asks"
        # Asked before wandb.init, which would stop at a prompt on a terminal.
        if not has_key():
            return "offline", "because no key was found (run `wandb login` or set WANDB_API_KEY)"
        return "online", ""

    def _id(self, run_id: str, path: Path) -> str:
        """The id of an earlier start, from a checkpoint or the run folder, or a new one.

        The run id alone will not do: the same configuration run in two folders would share one W&B run.
        """
        if self.id is None and path.exists():
            self.id = str(json.loads(path.read_text(encoding="utf-8"))["id"])
        if self.id is None:
            self.id = _new_id(run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"id": self.id})
        return self.id

    def _free_id(self, run_id: str) -> None:
        """Make the id usable after a failed start, whose half-open run still holds it in W&B's service process."""
        import wandb

        if wandb.run is None:
            wandb.teardown()
        else:  # the service also serves a run of the caller
            self.id = _new_id(run_id)

    def _init(self, mode: str, config: dict[str, Any], folder: Path) -> Any:
        import wandb

        options: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "init_timeout": INIT_TIMEOUT_SECONDS,
            # What W&B collects on its own: the command line, the git remote and the host may hold secrets.
            "disable_git": True,
            "disable_code": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            # A network that went away must not hold a finished run for ever.
            "finish_timeout": FINISH_TIMEOUT_SECONDS,
            "finish_timeout_raises": True,
        }
        known = wandb.Settings.model_fields
        return wandb.init(
            id=self.id,
            name=config["run_id"],
            project=self.config.project,
            entity=self.config.entity,
            group=scrub(self.config.group or self.experiment),
            job_type=self.job_type,
            tags=scrub(list(self.config.tags)),
            dir=str(folder),
            config=config,
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**{name: value for name, value in options.items() if name in known}),
        )


def check(config: WandbConfig) -> Iterator[Reach]:
    """Whether W&B can be reached and knows who asks."""
    if config.mode == "offline" or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        yield Reach("ok", "offline, as asked; `wandb sync` sends runs later")
        return
    if not has_key():
        remedy = "`wandb login`, or WANDB_API_KEY in the environment of every node"
        status = "problem" if config.mode == "online" else "warning"
        yield Reach(status, "no key was found, so runs are kept offline", remedy)  # type: ignore[arg-type]
        return
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    reason = unreachable(url)
    if reason:
        remedy = "tracking.wandb.mode=offline does not wait; metrics.jsonl has everything in any case"
        yield Reach("warning", f"{urlsplit(url).hostname} does not answer ({reason})", remedy)
    else:
        yield Reach("ok", f"{urlsplit(url).hostname} answers, and there is a key")


def _cell(value: Any) -> Any:
    """A value that a table column of mixed kinds takes."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value, default=str)


def _new_id(run_id: str) -> str:
    return f"{run_id}-{secrets.token_hex(4)}"


def has_key() -> bool:
    """Whether W&B would find a key by itself: in the environment, its settings file or netrc. Asks no server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    if wandb.run is not None:
        return not wandb.run.offline
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older wandb, whose login always prompts
        return _key_in_netrc()


def _key_in_netrc() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(scrub(str(error))).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
