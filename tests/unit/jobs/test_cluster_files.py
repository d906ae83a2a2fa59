"""cluster/ is checked without a cloud: each file by the rules of who reads it, each command by the parser it is for."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from raybrew.cli.main import app
from raybrew.config.loading import load_experiment
from unit.cluster_helpers import (
    IMAGE_ROOT,
    commands_in,
    containers_of,
    documents_of,
    lines_of,
    pod_templates,
    ray_cluster_specs,
)

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
LAUNCHER = sorted((CLUSTER / "launcher").glob("*.yaml"))
KUBERNETES = sorted((CLUSTER / "kuberay").rglob("*.yaml"))
RUNTIME_ENVS = sorted((CLUSTER / "runtime-env").glob("*.yaml"))
SCRIPTS = sorted((CLUSTER / "slurm").glob("*.sbatch"))
IMAGES = [CLUSTER / "Dockerfile", CLUSTER / "Dockerfile.dockerignore"]
PAGES = sorted(CLUSTER.glob("*.md"))
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
CRDS = ROOT.parent / "shared" / "kuberay"


def pinned(package: str) -> str:
    """The version in constraints.txt for Python 3.11."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.findall(rf"^{package}==(\S+)(?: ; python_full_version >= '3\.11')?$", text, re.MULTILINE)
    assert len(found) == 1, found
    return str(found[0])


RAY = pinned("ray")
#: Images: Ray's own, or ours on top of it, whose tag repeats its versions.
IMAGE = re.compile(rf"(rayproject/ray:|registry\.example\.com/raybrew:ray){re.escape(RAY)}-py311-(cpu|gpu)")


def test_every_file_has_its_check() -> None:
    checked = [*LAUNCHER, *KUBERNETES, *RUNTIME_ENVS, *SCRIPTS, *IMAGES, *PAGES]
    assert sorted(checked) == FILES
    assert {len(LAUNCHER), len(RUNTIME_ENVS), len(SCRIPTS)} == {3, 2, 1}
    kinds = sorted(document["kind"] for path in KUBERNETES for document in documents_of(path))
    assert kinds == sorted(
        ["ClusterQueue", "LocalQueue", "PersistentVolumeClaim", "RayCluster", "RayCronJob", "RayJob", "RayJob",
         "ResourceFlavor"]
    )  # fmt: skip


# Versions


def test_versions_are_those_of_the_lock_file() -> None:
    mentions = 0
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for image in re.findall(r"(?:rayproject/ray|registry\.example\.com/raybrew):[\w.-]+", text):
            if path.name != "Dockerfile" or not image.endswith("-"):
                assert IMAGE.fullmatch(image), (path.name, image)
            mentions += 1
        for version in re.findall(r"rayVersion: (\S+)", text):
            assert version == RAY
            mentions += 1
    assert mentions > 15
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert f"one Ray ({RAY})" in readme
    assert "(3.11)" in readme


def test_the_image_is_of_the_pinned_ray_and_runs_without_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    steps = [line for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert f"FROM rayproject/ray:{RAY}-py311-${{DEVICE}}" in steps
    assert steps[-1] == "USER ray"
    assert "USER root" not in text
    for install in re.findall(r"pip install [^\n;]*", text):
        assert "-c constraints.txt" in install
    # pytorch.org's index has torch, but not the pinned versions of what torch needs.
    (from_pytorch,) = re.findall(r"pip install [^\n;]*pytorch\.org[^\n;]*", text)
    assert "--no-deps" in from_pytorch
    sources = [word for step in steps if step.startswith("COPY ") for word in step.split()[2:-1]]
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(sources) == sorted(line[1:] for line in ignore if line.startswith("!"))
    assert all((ROOT / source).exists() for source in sources)
    supported = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert supported
    assert int(supported.group(1)) <= 11


# Commands


def raybrew_calls() -> list[tuple[str, list[str]]]:
    """File and arguments of every call of raybrew in cluster/."""
    found = []
    for path in FILES:
        for line in lines_of(path):
            calls = [call for call in commands_in(line, "raybrew") if call]  # alone it is a name
            # The script hands its arguments on.
            calls += [rest.split() for rest in re.findall(r"^sbatch .*?raybrew\.sbatch (.*?)(?:  .*)?$", line)]
            found += [(str(path.relative_to(CLUSTER)), call) for call in calls]
    return found


def parsed(command: Any, arguments: list[str]) -> dict[str, Any]:
    """What the innermost command understands; nothing is run. A UsageError for what it does not know.

    `command` is one of click's, or of the copy of click that typer carries; both have these methods.
    """
    context = command.make_context("command", list(arguments))
    if hasattr(command, "resolve_command"):
        _, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        return parsed(sub, rest)
    return dict(context.params)


def test_raybrews_commands_are_understood_and_their_experiments_valid() -> None:
    root = typer.main.get_command(app)
    calls, named = raybrew_calls(), 0
    for place, call in calls:
        if call == ["--version"]:
            continue
        understood = parsed(root, call)
        if call[0] == "submit":  # what follows is the command line of the job
            words = understood["arguments"]
            (verb,) = [word for word in words if "=" not in word]
            understood = parsed(root, [verb, str(understood["experiment"]), *(word for word in words if word != verb)])
        given = str(understood.get("experiment", "")).removeprefix(IMAGE_ROOT)
        if given and given != "experiment.yaml":
            assert given.startswith("experiments/"), place
            load_experiment(ROOT / given, understood.get("overrides") or (), check_files=False)
            named += 1
    assert {place for place, _ in calls} == {
        "Dockerfile",
        "README.md",
        "kuberay/kueue/rayjob.yaml",
        "kuberay/raycronjob.yaml",
        "kuberay/rayjob.yaml",
        "runtime-env/checkout.yaml",
        "runtime-env/gpu.yaml",
        "slurm/raybrew.sbatch",
    }
    assert len(calls) >= 20
    assert named >= 16
    assert {call[0] for _, call in calls} >= {"finetune", "capture", "distill", "sweep", "plan", "submit", "job"}


def test_a_wrong_command_would_be_found(tmp_path: Path) -> None:
    root = typer.main.get_command(app)
    page = tmp_path / "page.md"
    page.write_text("    A=1 raybrew sweep x.yaml --no-such-option && bash -c 'raybrew brew x.yaml'   # words\n")
    calls = [call for line in lines_of(page) for call in commands_in(line, "raybrew")]
    assert calls == [["sweep", "x.yaml", "--no-such-option"], ["brew", "x.yaml"]]
    for call in calls:
        with pytest.raises(typer.BadParameter.__mro__[1]):  # UsageError has no public name
            parsed(root, call)


def test_rays_commands_are_understood() -> None:
    from ray.scripts.scripts import cli

    calls = [(path.name, call) for path in FILES for line in lines_of(path) for call in commands_in(line, "ray")]
    calls = [(place, call) for place, call in calls if call and call[0] != "symmetric-run"]
    for place, call in calls:
        if "--" in call:  # what a job runs is not Ray's to parse
            call = [*call[: call.index("--")], "--", "true"]
        understood = parsed(cli, call)
        for name in ("cluster_config_file", "runtime_env"):
            given = understood.get(name)
            assert not given or (ROOT / given).is_file(), (place, given)
    assert {call[0] for _, call in calls} >= {"up", "down", "job", "dashboard", "get-auth-token", "start", "stop"}
    assert len(calls) >= 25


def test_the_files_that_pages_and_comments_name_exist() -> None:
    named: set[Path] = set()
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        named |= {
            ROOT / name
            for name in re.findall(r"(?<![\w/])(?:cluster|experiments|tests)/(?:[\w/.-]+\.\w+|Dockerfile)", text)
        }
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    named |= {
        CLUSTER / name for name in re.findall(r"`((?:launcher|kuberay|slurm|runtime-env)/[\w/.-]+\.\w+)`", readme)
    }
    assert [path for path in named if not path.is_file()] == []
    unnamed = {path for path in FILES if path.suffix not in (".md", ".dockerignore")} - named
    assert unnamed == set(), "each file is named in the README or in another file"


# Ray's launcher


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)
def test_launcher_files_pass_rays_own_validation(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    full = prepare_config(copy.deepcopy(config))
    validate_config(full)
    # What Ray fills in must not hide what we forgot: Ray's nightly wheels, machines of its choice.
    assert not any("ray-wheels" in command for command in full["setup_commands"])
    assert full["setup_commands"] == config["setup_commands"]
    assert any(config["file_mounts"][place] == "~/.ray/auth_token" for place in config["file_mounts"])
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[commands] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("path", [path for path in LAUNCHER if path.stem != "local"], ids=lambda path: path.stem)
def test_clouds_start_without_workers_and_on_spot_machines(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert IMAGE.fullmatch(config["docker"]["image"])
    assert config["provider"]["cache_stopped_nodes"] is False
    workers = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    assert workers
    for node in workers.values():
        assert node["min_workers"] == 0
        assert 0 < node["max_workers"] <= config["max_workers"]
        spot = {
            "aws": lambda given: given["InstanceMarketOptions"]["MarketType"] == "spot",
            "gcp": lambda given: {"provisioningModel": "SPOT"} in given["scheduling"],
        }[config["provider"]["type"]]
        assert spot(node["node_config"])
    # Commands before the container: a fresh machine holds apt's lock for minutes.
    patient = r"timeout \d+ bash -c 'until .*apt-get.*; do sleep \d+; done'"
    for command in config["initialization_commands"]:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command
        assert "apt-get" not in command or re.fullmatch(patient, command)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "scheduling" not in head["node_config"]


# Runtime environments


@pytest.mark.parametrize("path", RUNTIME_ENVS, ids=lambda path: path.stem)
def test_runtime_environments_are_rays_and_hold_no_keys(path: Path) -> None:
    _check_runtime_env(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_runtime_environments_are_what_submit_takes() -> None:
    from raybrew.jobs.submit import _checked_environment, _runtime_env

    for path in RUNTIME_ENVS:
        assert _checked_environment(_runtime_env(path)["env_vars"])


def _check_runtime_env(values: dict[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    assert set(values) <= RuntimeEnv.known_fields | {"config"}, "Ray itself accepts any key"
    RuntimeEnv(**copy.deepcopy(values))
    for name, value in values["env_vars"].items():
        assert isinstance(value, str)
        assert not re.search(r"TOKEN|KEY|SECRET|PASSWORD", name), name


# Kubernetes


def kuberay_documents() -> list[tuple[Path, dict[str, Any]]]:
    return [
        (path, document)
        for path in KUBERNETES
        for document in documents_of(path)
        if document["apiVersion"].startswith("ray.io/")
    ]


@pytest.mark.parametrize(("path", "document"), kuberay_documents(), ids=lambda value: getattr(value, "stem", ""))
def test_clusters_on_kubernetes(path: Path, document: dict[str, Any]) -> None:
    import kubernetes_validate

    assert document["apiVersion"] == "ray.io/v1"
    (cluster,) = ray_cluster_specs(document)
    assert cluster["authOptions"] == {"mode": "token"}
    claims = {
        d["metadata"]["name"] for p in KUBERNETES for d in documents_of(p) if d["kind"] == "PersistentVolumeClaim"
    }
    secrets = secrets_of_the_readme()
    for name, template in pod_templates(cluster).items():
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]},
            "1.30",
            strict=True,
        )
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used
        assert used <= claims
        for container in containers_of(template):
            image = IMAGE.fullmatch(container["image"])
            assert image, container["image"]
            assert image.group(2) == ("cpu" if name == "head" else "gpu")
            resources = container["resources"]
            assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}
            assert ("nvidia.com/gpu" in resources["limits"]) == (name != "head")
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            for variable in container["env"]:
                if re.search(r"TOKEN|KEY|SECRET|PASSWORD", variable["name"]):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in secrets[reference["name"]]
                    assert "value" not in variable
        if name != "head":
            assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    queued = "kueue.x-k8s.io/queue-name" in document["metadata"].get("labels", {})
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] == (group["maxReplicas"] if queued else 0)
    assert cluster.get("enableInTreeAutoscaling", False) is not queued


def secrets_of_the_readme() -> dict[str, set[str]]:
    """Secrets that the README creates, with their keys."""
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"kubectl create secret generic (\S+) (.*)", text)
    assert found
    return {name: set(re.findall(r"--from-literal=([\w-]+)=\$", rest)) for name, rest in found}


@pytest.mark.parametrize(
    ("path", "document"),
    [(path, document) for path, document in kuberay_documents() if document["kind"] != "RayCluster"],
    ids=lambda value: getattr(value, "stem", ""),
)
def test_jobs_on_kubernetes_end(path: Path, document: dict[str, Any]) -> None:
    job = document["spec"]["jobTemplate"] if document["kind"] == "RayCronJob" else document["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert 0 < job["ttlSecondsAfterFinished"] <= 86400
    assert 0 < job["activeDeadlineSeconds"] <= 7 * 86400
    assert job["backoffLimit"] <= 1
    runtime_env = yaml.safe_load(job["runtimeEnvYAML"])
    _check_runtime_env(runtime_env)
    count = int(runtime_env["env_vars"]["RAYBREW_WAIT_FOR"].removeprefix("GPU:"))
    assert count <= sum(group["maxReplicas"] for group in job["rayClusterSpec"]["workerGroupSpecs"])
    mounts = [
        mount["mountPath"]
        for mount in containers_of(job["rayClusterSpec"]["headGroupSpec"]["template"])[0]["volumeMounts"]
    ]
    storage = re.findall(r"store\.storage_path=(\S+)", job["entrypoint"])
    assert storage
    assert all(any(place.startswith(mount) for mount in mounts) for place in storage)
    if document["kind"] == "RayCronJob":
        assert re.fullmatch(r"(\S+ ){4}\S+", document["spec"]["schedule"])
    if "kueue" in path.parts:
        queues = documents_of(path.parent / "queues.yaml")
        names = {d["metadata"]["name"]: d for d in queues if d["kind"] == "LocalQueue"}
        queue = names[document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]]
        assert job["suspend"] is True
        (target,) = [d for d in queues if d["kind"] == "ClusterQueue"]
        assert queue["spec"]["clusterQueue"] == target["metadata"]["name"]
        (group,) = target["spec"]["resourceGroups"]
        quota = {one["name"]: one["nominalQuota"] for one in group["flavors"][0]["resources"]}
        assert set(quota) == set(group["coveredResources"])
        assert group["flavors"][0]["name"] in {d["metadata"]["name"] for d in queues if d["kind"] == "ResourceFlavor"}
        assert 2 * count <= quota["nvidia.com/gpu"]


def test_the_volume_is_a_valid_claim() -> None:
    import kubernetes_validate

    (claim,) = documents_of(CLUSTER / "kuberay" / "storage.yaml")
    kubernetes_validate.validate(claim, "1.30", strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are not beside the checkout (../shared/kuberay)")
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayCronJob"])
def test_kuberays_own_schemas_accept_the_files(kind: str) -> None:
    import jsonschema

    crd = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1"]
    validator = jsonschema.Draft7Validator(_closed(schema))
    documents = [(path.name, document) for path, document in kuberay_documents() if document["kind"] == kind]
    assert documents
    for name, document in documents:
        problems = [f"{name}: {'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(document)]
        assert problems == []
    broken = copy.deepcopy(documents[0][1])
    broken["spec"]["activeDeadlineSecond"] = 3
    assert list(validator.iter_errors(broken)), "an unknown key is a mistake, not something that is passed over"


def _closed(schema: Any) -> Any:
    """The schema with unknown keys refused, and without `required` for what has a default."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    properties = found.get("properties")
    if isinstance(properties, dict) and found.get("type") == "object":
        if "additionalProperties" not in found and not found.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
        if properties.get("metadata") == {"type": "object"}:
            properties["metadata"] = {"type": "object", "additionalProperties": True}
        required = [name for name in found.get("required", []) if "default" not in properties.get(name, {})]
        found.pop("required", None)
        if required:
            found["required"] = required
    return found


# Slurm


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_bash(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = path.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert text.index("#SBATCH") < text.index("set -euo"), "Slurm reads its options before the first command"
    assert "#SBATCH --time=" in text


@pytest.mark.parametrize(
    ("raybrew", "ray", "expected"),
    [("exit 0", 'shift; while [ "$1" != -- ]; do shift; done; shift; "$@"; exit $?', 0),
     ("exit 5", 'shift; while [ "$1" != -- ]; do shift; done; shift; "$@"; exit $?', 5),
     ("exit 0", "exit 0", 4)],
    ids=["done", "some trials failed", "Ray did not start"],
)  # fmt: skip
def test_the_slurm_script_runs_raybrew_and_returns_its_code(
    tmp_path: Path, raybrew: str, ray: str, expected: int
) -> None:
    folder = tmp_path / "a folder"
    shims = {
        "scontrol": 'printf "node-a\\nnode-b\\n"',
        "srun": '"$@"',
        "ray": f'[ "$1" = get-auth-token ] && exit 0; echo "ray $*" >> calls; {ray}',
        "raybrew": f'echo "$RAY_ADDRESS raybrew $*" >> calls; {raybrew}',
    }
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name, body in shims.items():
        shim = folder / ".venv" / "bin" / name
        shim.write_text(f"#!/usr/bin/env bash\n{body}\n")
        shim.chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    done = subprocess.run(
        ["bash", str(SCRIPTS[0]), "sweep", "my file.yaml", "sweep.trials=3"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **slurm}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    calls = (folder / "calls").read_text().splitlines()
    assert calls[0].startswith("ray symmetric-run --address node-a:6379 --min-nodes 2 --temp-dir /tmp/ray-7 ")
    if expected == 4:
        assert "Ray did not come up" in done.stderr
    else:
        assert calls[1:] == ["node-a:6379 raybrew sweep my file.yaml sweep.trials=3"]
    assert not list(folder.glob("*.code"))
    usage = subprocess.run(["bash", str(SCRIPTS[0]), "sweep"], capture_output=True, text=True, check=False)
    assert usage.returncode != 0
    assert "usage: sbatch" in usage.stderr
