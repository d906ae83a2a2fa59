"""doctor: look at everything that raybrew needs, and say what is wrong with its remedy. Starts no cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from raybrew.config import Experiment
from raybrew.diagnosis.cluster import cluster, jobs_api
from raybrew.diagnosis.findings import Diagnosis, Finding
from raybrew.diagnosis.machine import disks, gpus, limits, shared_memory, versions
from raybrew.diagnosis.reach import hub, trackers
from raybrew.errors import RaybrewError
from raybrew.pipeline.reporter import QuietReporter, Reporter

__all__ = ["doctor"]


def doctor(
    experiment: Experiment | None = None, *, address: str | None = None, reporter: Reporter | None = None
) -> Diagnosis:
    """Findings about this machine, the cluster at `address` (default: RAY_ADDRESS), hub and W&B.

    With an experiment its folders, devices and needs as well: its store's size is measured as `plan` does. Nothing is
    left behind but an empty `store.storage_path`; no cluster is started.
    """
    reporter = reporter or QuietReporter()
    return Diagnosis(tuple(_findings(experiment, address, reporter)))


def _findings(experiment: Experiment | None, address: str | None, reporter: Reporter) -> Iterator[Finding]:
    yield from versions()
    yield from gpus(experiment)
    yield from limits()
    size = psutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None
    yield from shared_memory(size, "this machine")
    needed = None
    if experiment is not None:
        try:
            needed = _store_bytes(experiment, reporter)
        except RaybrewError as error:
            first = str(error).splitlines()[0]
            yield Finding(
                "plan", "warning", f"cannot be made: {first}", "`raybrew plan` says more, when this is mended"
            )
    yield from disks(experiment, needed)
    if address is not None and "://" in address and not address.startswith("ray://"):
        yield from jobs_api(address)
    elif address is None and not os.environ.get("RAY_ADDRESS") and os.environ.get("RAY_API_SERVER_ADDRESS"):
        yield from jobs_api(None)
    else:
        yield from cluster(experiment, address)
    yield from hub(experiment)
    yield from trackers(experiment)


def _store_bytes(experiment: Experiment, reporter: Reporter) -> int | None:
    """Bytes of all stores that the experiment will have; None where no teacher is stored."""
    from raybrew.verbs.plan import plan

    stores = plan(experiment, reporter=reporter).stores
    return sum(store.total_bytes for store in stores) if stores else None
