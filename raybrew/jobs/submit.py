"""submit: send an experiment and the working directory to a cluster, and run one verb there as a Ray job."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config import DataConfig, Experiment
from raybrew.config.data import SOURCES
from raybrew.config.loading import load_experiment
from raybrew.config.problems import near_match, raise_problems
from raybrew.config.reading import read_yaml
from raybrew.config.rows import table_name
from raybrew.config.rules import check_sections
from raybrew.config.views import task_views, with_data
from raybrew.errors import ClusterError, ConfigError, Problem
from raybrew.jobs.client import Client, connect
from raybrew.jobs.handle import ENDED, METADATA, JobHandle, job_info
from raybrew.jobs.package import MAX_BYTES, PackedFiles, find_files, write_zip
from raybrew.secrets import scrub
from raybrew.version import __version__

__all__ = ["STOP_SECONDS", "VERBS", "submit"]

#: Takes one line for the user.
Say = Callable[[str], None]

#: What runs as a job.
VERBS = ("finetune", "capture", "distill", "sweep", "doctor")
#: Seconds between Ray's SIGTERM and SIGKILL when a job is stopped. Ray's own are 3, in which not every run can save.
STOP_SECONDS = 120
_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
#: Parts of names of environment variables that hold secrets. TOKENIZERS_PARALLELISM holds none.
_SECRET_PARTS = {
    *("KEY", "KEYS", "APIKEY", "TOKEN", "TOKENS", "SECRET", "SECRETS"),
    *("PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS", "NETRC"),
}
#: Keys of a runtime environment that bring another Python, in which raybrew is a command.
_ENVIRONMENTS = {"pip", "uv", "conda", "py_executable", "container", "image_uri"}
_WHERE_SECRETS_GO = (
    "everyone who sees the cluster's jobs can read it; put it into the environment of the cluster's nodes (a "
    "Kubernetes Secret, the launcher's file), or into ~/.netrc or the like on them"
)


def submit(
    experiment: Experiment | str | Path,
    verb: str,
    options: Sequence[str] = (),
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    working_dir: str | Path = ".",
    env: Mapping[str, str] | None = None,
    runtime_env: str | Path | None = None,
    say: Say | None = None,
) -> JobHandle:
    """Run `raybrew <verb> <experiment> <options>` as a job on the cluster at `address`; see `connect` for addresses.

    `experiment` is a file, to which `overrides` apply, or an Experiment. It is checked here before anything is sent,
    and travels resolved, with the files of `working_dir` that `.gitignore` and `.rayignore` leave; `say` takes lines
    about what is sent. `env` are environment variables of the job, which are no place for secrets; `runtime_env` is a
    YAML file with those and more (pip, excludes), as `ray job submit` takes it. Where a job on the same run is under
    way, its handle is returned; else the run is continued, or begun. Raises ConfigError, EnvironmentProblem (too
    large), ClusterError (nobody answers, wrong token).
    """
    say = say or _say_nothing
    config = _checked(experiment, verb, overrides)
    told = _runtime_env(runtime_env)
    variables = {name: str(value) for name, value in (told.pop("env_vars", None) or {}).items()} | dict(env or {})
    environment = {_STOP_VARIABLE: str(STOP_SECONDS), **_checked_environment(variables)}
    folder = Path(working_dir).absolute()
    files = find_files(folder, [_below(folder, config.store.storage_path)], told.pop("excludes", None) or ())
    _check_files(config, files, say)
    _check_secrets(config, options)

    client = connect(address)
    here = functools.cache(client.is_this_machine)  # asks the cluster, and only where it matters
    config, rows = _with_rows(_shared_places(config, folder, here, say), here, say)
    run = _run_of(config, verb, options)
    under_way = _under_way(client, run)
    if under_way is not None:
        say(f"job {under_way.id} is at this run already")
        return under_way
    name = f".raybrew/{config.name}.yaml"
    with tempfile.TemporaryDirectory(prefix="raybrew-") as scratch:
        package = Path(scratch) / "working_dir.zip"
        size = write_zip(files, package, {name: config.to_yaml(), **rows})
        say(
            f"sending {folder}: {len(files.sizes)} files, {files.bytes / 2**20:.1f} MiB, {size / 2**20:.1f} MiB "
            f"compressed, to {scrub(client.address)}"
        )
        return _send(
            client,
            run,
            entrypoint=shlex.join([*_command(told, here), verb, name, *options]),
            runtime_env={**told, "working_dir": str(package), "env_vars": environment},
            metadata={f"{METADATA}{key}": value for key, value in dataclasses.asdict(run).items()}
            | {f"{METADATA}version": __version__},
        )


def _checked(experiment: str | Path | Experiment, verb: str, overrides: Sequence[str]) -> Experiment:
    """What is to run, its files not looked for: the cluster has them."""
    if verb not in VERBS:
        raise ConfigError(f"submit: given {verb!r}; what runs as a job: {', '.join(VERBS)}")
    if isinstance(experiment, Experiment) and overrides:
        raise ConfigError("submit: overrides go with an experiment file; apply them when loading the experiment")
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment, overrides, check_files=False)
    if verb == "sweep" and experiment.sweep is None:
        raise ConfigError("sweep: required by `raybrew sweep`; name what varies, see `raybrew init`")
    return experiment


def _command(runtime_env: Mapping[str, Any], here: Callable[[], bool]) -> list[str]:
    """How the job calls raybrew. On this machine by this interpreter: its environment need not be on Ray's PATH."""
    if _ENVIRONMENTS.isdisjoint(runtime_env) and here():
        return [sys.executable, "-m", "raybrew"]
    return ["raybrew"]


def _say_nothing(line: str) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a job works on; equal ones are the same run."""

    experiment: str
    verb: str
    run: str
    folder: str


def _run_of(config: Experiment, verb: str, options: Sequence[str]) -> _Run:
    storage = Path(config.store.storage_path) / config.name
    if verb == "doctor":
        return _Run(config.name, verb, verb, str(storage))
    if verb == "capture":
        identity = [config.identity("distill"), config.store.model_dump(mode="json"), list(options)]
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        run = f"capture-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        folder = config.store.path or f"{config.store.storage_path}/store"
    else:
        run = config.sweep_id() if verb == "sweep" else _option(options, "--run-id") or config.run_id(verb)
        folder = str(storage / run)
    return _Run(config.name, verb, run, folder)


def _option(options: Sequence[str], name: str) -> str | None:
    for index, option in enumerate(options):
        if option == name and index + 1 < len(options):
            return options[index + 1]
        if option.startswith(f"{name}="):
            return option.partition("=")[2]
    return None


def _under_way(client: Client, run: _Run) -> JobHandle | None:
    """The job that is at this run now."""
    wanted = {f"{METADATA}{key}": value for key, value in dataclasses.asdict(run).items()}
    for details in client.jobs():
        told = details.metadata or {}
        if all(told.get(key) == value for key, value in wanted.items()):
            info = job_info(details)
            if info.status not in ENDED:
                return JobHandle(info.id, client, is_new=False)
    return None


def _send(client: Client, run: _Run, **arguments: Any) -> JobHandle:
    """Submit under the next free name `<experiment>-<run>-<n>`: Ray takes none twice."""
    stem = f"{run.experiment}-{run.run}"
    taken = {str(details.submission_id) for details in client.jobs()}
    number = 1
    while True:
        while f"{stem}-{number}" in taken:
            number += 1
        try:
            return JobHandle(client.submit(submission_id=f"{stem}-{number}", **arguments), client)
        except ClusterError as error:
            if "already exists" not in str(error) and "already been used" not in str(error):
                raise
            # Somebody submits the same at the same time: that is the job.
            under_way = _under_way(client, run)
            if under_way is not None:
                return under_way
            taken.add(f"{stem}-{number}")


def _runtime_env(path: str | Path | None) -> dict[str, Any]:
    """What the YAML file `path` says of the job's environment; ConfigError for keys that Ray does not know."""
    if path is None:
        return {}
    given = read_yaml(Path(path), " (--runtime-env)", "environment file") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"--runtime-env: {path}: a mapping is wanted, such as `env_vars: {{HF_HOME: /shared/hf}}`")
    from ray.runtime_env import RuntimeEnv

    known = sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_"))
    problems = [
        Problem(
            f"--runtime-env {key}", f"unknown key; allowed: {', '.join(known)}{near_match(str(key), known)}", "unknown"
        )
        for key in given
        if key not in known
    ]
    if "working_dir" in given:
        problems.append(Problem("--runtime-env working_dir", "given by --working-dir", "conflict"))
    raise_problems(str(path), problems)
    return given


def _checked_environment(env: Mapping[str, str]) -> dict[str, str]:
    """ConfigError for what looks like a secret."""
    problems = []
    for name, value in env.items():
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
            problems.append(Problem("--env", f"{name!r} is no name of an environment variable", "unknown"))
        elif _SECRET_PARTS & set(name.upper().split("_")) or scrub({name: value}, {}) != {name: value}:
            problems.append(Problem(f"--env {name}", f"looks like a secret, and {_WHERE_SECRETS_GO}", "secret"))
    raise_problems("submit", problems)
    return dict(env)


def _check_secrets(config: Experiment, options: Sequence[str]) -> None:
    problems = [
        Problem(what, f"holds what looks like a secret, and {_WHERE_SECRETS_GO}", "secret")
        for what, value in (("experiment", config.plain()), ("options", list(options)))
        if scrub(value, os.environ) != value
    ]
    raise_problems("submit", problems)


def _check_files(config: Experiment, files: PackedFiles, say: Say) -> None:
    """Files that the experiment names must travel along, or have absolute paths, which are the cluster's matter."""
    problems = [
        problem
        for problem in check_sections({name: getattr(config, name) for name in Experiment.model_fields}, True)
        if not _is_absolute(_value_at(config, problem.key))
    ]
    named = {problem.key for problem in problems}
    for key, value in _named_files(config):
        if _is_absolute(value):
            if not Path(value).exists() and not Path(value.rsplit(":", 1)[0]).exists():
                say(f"{key}: {value} is not on this machine; the job looks for it on the cluster")
            continue
        there = next((path for path in (Path(value), Path(value.rsplit(":", 1)[0])) if path.exists()), None)
        if key not in named and there is not None and not files.has(there):
            problems.append(
                Problem(
                    key,
                    f"given {value!r}, which does not travel with {files.folder}: it is ignored (.gitignore, "
                    ".rayignore, store.storage_path) or lies outside; give an absolute path that all nodes see",
                    "missing",
                )
            )
    raise_problems("submit", problems)


def _named_files(config: Experiment) -> list[tuple[str, str]]:
    """Key and value of everything that may be a local file or folder, but rows from Python, which travel anyway."""
    found: list[tuple[str, str | None]] = [("student.model", config.student.model)]
    for _, task, view in task_views(config):
        prefix = f"task.tasks.{task}." if task else ""
        found += [(f"{prefix}data.{key}", getattr(view.data, key)) for key in ("train", "eval", "unlabeled")]
        if view.data.test_share is None:
            found.append((f"{prefix}data.test", view.data.test))
        found.append((f"{prefix}teacher.model", view.teacher.model))
        found += [(f"{prefix}teacher.members.{name}.model", one.model) for name, one in view.teacher.members.items()]
    return [(key, value) for key, value in found if value is not None and table_name(value) is None]


def _value_at(config: Experiment, key: str) -> Any:
    value: Any = config.plain()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())


def _shared_places(config: Experiment, folder: Path, here: Callable[[], bool], say: Say) -> Experiment:
    """Folders of runs and stores as absolute paths: a job's own folder is a copy, and goes when the job ends."""
    given = [("store.storage_path", config.store.storage_path), ("store.path", config.store.path)]
    relative = {key: value for key, value in given if value and "://" not in value and not _is_absolute(value)}
    caches = {
        f"{f'task.tasks.{task}.' if task else ''}data.cache": view.data.cache
        for _, task, view in task_views(config)
        if view.data.cache and not _is_absolute(view.data.cache)
    }
    if not relative and not caches:
        return config
    if not here():
        lost = "the cluster has other machines than this one, where a relative folder would be lost with the job"
        raise_problems("submit", [
            Problem(key, f"given {value!r}; {lost}; give an absolute path that all nodes see, such as {folder / value} "
                         "where they share it", "missing")
            for key, value in (relative | caches).items()
        ])  # fmt: skip
    for key, value in relative.items():
        say(f"{key}: {folder / value}")
    store = {key.removeprefix("store."): str(folder / value) for key, value in relative.items()}
    config = config.model_copy(update={"store": config.store.model_copy(update=store)})
    return with_data(
        config,
        lambda key, data: data.model_copy(update={"cache": str(folder / data.cache)}) if data.cache else data,
    )


def _with_rows(config: Experiment, here: Callable[[], bool], say: Say) -> tuple[Experiment, dict[str, Path]]:
    """`config` naming rows that were given in Python where the job finds them, and those that travel along, by name.

    On this machine they stay where they are. To other machines they travel, unless they are too large for that.
    """
    travel: dict[str, Path] = {}

    def found(key: str, data: DataConfig) -> DataConfig:
        named = {name: str(value) for name in SOURCES if table_name(value := getattr(data, name)) is not None}
        for name, value in named.items():
            path = Path(value).absolute()
            named[name] = str(path)
            if not path.is_file() or here():
                continue
            if path.stat().st_size <= MAX_BYTES:
                named[name] = f".raybrew/{path.name}"
                travel[named[name]] = path
            else:
                say(f"{key}.{name}: {path} is too large to travel; the job looks for it on the cluster")
        return data.model_copy(update=named) if named else data

    return with_data(config, found), travel


def _below(folder: Path, path: str) -> Path:
    return folder / Path(path).expanduser()
