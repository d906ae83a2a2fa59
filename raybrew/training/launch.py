"""The ways to start a training job: in this process, or as Ray Train workers. The only file here that knows Ray.

A job is a module-level function `(spec, context) -> result`. It returns what happened instead of raising when it was
asked to stop, so that Ray does not mistake a stop for a failure.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raybrew.config.train import TrainConfig
from raybrew.errors import ClusterError, DivergenceError, RaybrewError, RunError
from raybrew.loopback import LOOPBACK
from raybrew.models.devices import choose_launcher, free_gpu, pick_device, place_of_training
from raybrew.nodes import Folder, Needed, check_seen, check_shared
from raybrew.runtime import check_resources, ensure_ray
from raybrew.training.context import (
    FAILURES_FILE,
    STOP_FILE,
    Context,
    DistributedContext,
    LocalContext,
    OnEvaluation,
    run_in_thread,
    stop_on_signals,
)

__all__ = ["Job", "launch"]

#: How often an elastic group looks whether it could be larger. Growing costs the steps since the last checkpoint.
_RESIZE_SECONDS = 60.0

Job = Callable[[Any, Context], dict[str, Any]]


def launch(
    job: Job,
    spec: Any,
    config: TrainConfig,
    run_folder: Path,
    say: Callable[[str], None],
    *,
    key: str = "train",
    on_evaluation: OnEvaluation | None = None,
    needs: Mapping[str, Needed] | None = None,
) -> dict[str, Any]:
    """Run `job` on `config.workers` workers and return rank 0's result.

    `needs` are places, by key and location, in which every node must find what this process finds there.

    Ctrl-C and SIGTERM ask the workers to save and stop; the job's result says so. `on_evaluation` is asked after each
    evaluation of a job in this process; Ray's workers are stopped by a STOP_FILE in the run folder.
    """
    for left_over in (STOP_FILE, FAILURES_FILE):
        (run_folder / left_over).unlink(missing_ok=True)
    if choose_launcher(config) == "local":
        return _in_process(job, spec, config, key, on_evaluation)
    return _on_ray(job, spec, config, run_folder, say, key, needs or {})


def _in_process(
    job: Job, spec: Any, config: TrainConfig, key: str, on_evaluation: OnEvaluation | None
) -> dict[str, Any]:
    device = pick_device(config.device, f"{key}.device")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    stop = threading.Event()
    with stop_on_signals(stop.set):
        return job(spec, LocalContext(device, stop, on_evaluation))


def _on_ray(
    job: Job,
    spec: Any,
    config: TrainConfig,
    run_folder: Path,
    say: Callable[[str], None],
    key: str,
    needs: Mapping[str, Needed],
) -> dict[str, Any]:
    fewest, _ = config.worker_range
    _set_environment(config)
    ray_info = ensure_ray("training")
    if ray_info.dashboard_url:
        say(f"Ray dashboard: {ray_info.dashboard_url}")
    use_gpu = place_of_training(config, key).device == "cuda"
    free_gpu()  # of this process, beside which workers may run
    check_resources(
        cpus=fewest * config.cpus_per_worker,
        gpus=fewest if use_gpu else 0,
        purpose=f"{fewest} training workers ({key}.workers, {key}.cpus_per_worker)",
    )
    check_shared({f"store.storage_path ({run_folder})": Folder(run_folder)}, "training")
    check_seen(needs, "training")

    trainer = _trainer(job, spec, config, run_folder, use_gpu)

    def ask_to_stop() -> None:
        say("stopping: the workers save their state first (again to end at once)")
        (run_folder / STOP_FILE).touch()

    try:
        outcome = run_in_thread(trainer.fit, ask_to_stop)
    except BaseException as error:
        raise _root_cause(error) from error
    finally:
        (run_folder / STOP_FILE).unlink(missing_ok=True)
    result: dict[str, Any] = outcome.return_value
    if result is None:
        raise RunError("the training workers ended without a result; see the logs of the Ray session")
    if "raised" in result:
        raise result["raised"]
    return result


def _set_environment(config: TrainConfig) -> None:
    """What Ray Train reads when it is imported."""
    # The workers' controller polls twice a second instead of every two.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # When a worker has died, the others are asked to leave the group before new ones start; that may wait for the dead.
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "10")
    fewest, most = config.worker_range
    if fewest < most:
        # A group that waits for a dead node's resources is tried again, smaller, after this time; Ray's own is 60 s.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")


def _trainer(job: Job, spec: Mapping[str, Any], config: TrainConfig, run_folder: Path, use_gpu: bool) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    fewest, most = config.worker_range
    return TorchTrainer(
        _ray_worker,  # type: ignore[arg-type]  # what it returns is the result's `return_value`
        train_loop_config={
            "job": job,
            "spec": spec,
            "run_folder": str(run_folder),
            "threads": config.threads,
            "use_gpu": use_gpu,
        },
        scaling_config=ScalingConfig(
            # The stubs know the old ScalingConfig.
            num_workers=fewest if fewest == most else (fewest, most),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,  # type: ignore[call-arg]
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        torch_config=_torch_config("nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"train-{os.getpid()}-{run_folder.name}",
            storage_path=str(run_folder / "ray"),
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=[_failure_notes(run_folder / FAILURES_FILE)],
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # the stubs know the old RunConfig
        ),
    )


def _torch_config(backend: str) -> Any:
    """Ray Train's process group, whose sockets listen on the loopback interface where Ray does."""
    from ray.train.torch import TorchConfig

    inherited: Any = TorchConfig().backend_cls

    class LoopbackBackend(inherited):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_stay_on_loopback)
            super().on_start(worker_group, backend_config)

    class LoopbackConfig(TorchConfig):
        backend_cls = LoopbackBackend

    return LoopbackConfig(backend=backend)


def _stay_on_loopback() -> None:
    """In a worker of a Ray that listens on the loopback interface: let torch do so too.

    Torch's store of addresses listens on all interfaces unless it is given a socket, and gloo on that of the machine's
    name.
    """
    import psutil
    import ray

    if ray.util.get_node_ip_address() != LOOPBACK:  # type: ignore[no-untyped-call]
        return
    interfaces = psutil.net_if_addrs().items()
    loopback = (name for name, places in interfaces if any(place.address == LOOPBACK for place in places))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", next(loopback))

    # Of this name its package has a function.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    original = rendezvous.TCPStore

    def store(host_name: str, port: int, *, is_master: bool, **more: Any) -> Any:
        if is_master:
            more["master_listen_fd"] = socket.create_server((LOOPBACK, port)).detach()
        return original(host_name=host_name, port=port, is_master=is_master, **more)

    rendezvous.TCPStore = store


def _failure_notes(path: Path) -> Any:
    """What writes a line for each failure of workers to `path`, from Ray Train's controller.

    It ends the run where a worker met an error that comes again: the other workers wait for that one in vain.
    """
    from ray.train import UserCallback

    class FailureNotes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes = {rank: error for rank, error in worker_exceptions.items() if not _is_consequence(error)}
            for error in causes.values():
                if isinstance(error, RaybrewError) and not error.transient:
                    # An error of a callback is one that Ray does not start workers again for.
                    raise error
            reasons = {
                str(rank): (str(error).strip() or type(error).__name__)
                for rank, error in (causes or worker_exceptions).items()
            }
            # Where the controller's node does not see the run folder, the run goes on without this line.
            with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(reasons) + "\n")

    return FailureNotes()


def _ray_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One Ray Train worker."""
    import ray.train
    import ray.train.torch

    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    # A worker that reserved no GPU may see those of others.
    device = ray.train.torch.get_device() if config["use_gpu"] else torch.device("cpu")

    def report(metrics: dict[str, Any]) -> None:
        ray.train.report({name: value for name, value in metrics.items() if isinstance(value, (int, float))})

    context = DistributedContext(device, Path(config["run_folder"]), report)
    try:
        result: dict[str, Any] = config["job"](config["spec"], context)
    except DivergenceError as error:
        # All workers have it. Where one of them raises, the others end at once, and the first still keeps the examples.
        return {"raised": error}
    return result


def _root_cause(error: BaseException) -> BaseException:
    """The reason of a failed fit as one of our errors: what one worker met, not what it did to the others."""
    reasons = list(_innermost(error, set()))
    ours = (each for each in reasons if isinstance(each, RaybrewError))
    causes = (each for each in reasons if not _is_consequence(each))
    seen = next(ours, None) or next(causes, None) or reasons[0]
    if isinstance(seen, RaybrewError):
        return seen
    first = (str(seen).strip().splitlines() or [type(seen).__name__])[-1]
    if "resource" in type(seen).__name__.lower():
        return ClusterError(f"Ray could not start the training workers: {first}")
    return RunError(f"the training workers failed: {type(seen).__name__}: {first}")


def _innermost(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """What an error is made of, by rank where workers failed; an error of ours is what it says."""
    seen.add(id(error))
    wrapped = [*sorted(dict(getattr(error, "worker_failures", None) or {}).items())]
    inner = [each for _, each in wrapped]
    inner += [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause")] + [error.__cause__]
    known = [each for each in inner if isinstance(each, BaseException) and id(each) not in seen]
    if isinstance(error, RaybrewError) or not known:
        yield error
        return
    for each in known:
        if id(each) not in seen:
            yield from _innermost(each, seen)


def _is_consequence(error: BaseException) -> bool:
    """Whether an error only says that another worker is gone: the exchange with it broke."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
