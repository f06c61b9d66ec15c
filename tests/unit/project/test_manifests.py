"""What is shipped to deploy the program is valid, and says what the lock and the program say."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.cli.app import app
from tests.documents import ROOT
from tests.manifests import (
    CRDS,
    KUBERNETES,
    Invalid,
    Object,
    check,
    documents,
    pod_templates,
    render,
    strings,
)

GUIDE = ROOT / "docs" / "cluster.md"
FOLDERS = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))
FILES = sorted(path for path in KUBERNETES.rglob("*.yaml"))
VARIANTS = [
    ("cluster", "object-store"),
    ("cluster", "pvc"),
    ("job", "object-store"),
    ("job", "pvc"),
    ("raycronjob", "object-store"),
]
NEEDS_CRDS = pytest.mark.skipif(CRDS is None, reason="CRDS names no folder of KubeRay's CRDs")


def variant(overlay: str, storage: str) -> list[Object]:
    return render(KUBERNETES / "overlays" / overlay, storage)


def one(objects: list[Object], kind: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def launcher() -> Object:
    (config,) = documents(ROOT / "ray_cluster.yaml")
    return dict(config)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_kustomization_names_every_file_beside_it(folder: Path) -> None:
    (kustomization,) = documents(folder / "kustomization.yaml")
    patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
    named = {
        (folder / name).resolve()
        for name in kustomization.get("resources", []) + kustomization.get("components", [])
    } | {folder / name for name in patches}
    files = {each for each in folder.glob("*.yaml") if each.name != "kustomization.yaml"}
    assert files == {path for path in named if path.is_file()}
    assert all((path / "kustomization.yaml").is_file() for path in named - files)


@pytest.mark.parametrize(("overlay", "storage"), VARIANTS)
def test_every_object_of_kubernetes_is_valid(overlay: str, storage: str) -> None:
    objects = variant(overlay, storage)
    for each in objects:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "svdllm"
        if not each["apiVersion"].startswith("ray.io/"):
            check(each)
        for template in pod_templates(each):
            metadata = {"name": "pod"} | template["metadata"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            check(pod | {"spec": template["spec"]})
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


@NEEDS_CRDS
@pytest.mark.parametrize(("overlay", "storage"), VARIANTS)
def test_every_object_of_ray_is_valid(overlay: str, storage: str) -> None:
    ours = [each for each in variant(overlay, storage) if each["apiVersion"] == "ray.io/v1"]
    assert ours
    for each in ours:
        check(each)


@NEEDS_CRDS
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("spec", "rayVersions"), "2.60.0"),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "headGroupSpec", "template", "spec", "container"), []),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "eight"),
    ],
)
def test_a_wrong_object_of_ray_is_refused(keys: tuple[Any, ...], value: object) -> None:
    cluster = one(variant("cluster", "pvc"), "RayCluster")
    at: Any = cluster
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    with pytest.raises(Invalid, match=re.escape(str(value if value else "container"))):
        check(cluster)


@pytest.mark.parametrize(("overlay", "storage"), VARIANTS)
def test_pods_have_no_rights_that_they_do_not_need(overlay: str, storage: str) -> None:
    objects = variant(overlay, storage)
    accounts = {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"}
    assert {"Role", "ClusterRole", "RoleBinding"}.isdisjoint(each["kind"] for each in objects)
    templates = [template for each in objects for template in pod_templates(each)]
    assert templates
    for template in templates:
        pod = template["spec"]
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "svdllm"
        assert pod["serviceAccountName"] in accounts
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {each["name"] for each in pod["volumes"]} - {"kubernetes"}
            assert ("shared" in mounted) == (storage == "pvc" and "ray" in container["name"])


def test_only_the_operator_and_prometheus_reach_a_cluster_from_outside() -> None:
    policies = [each for each in variant("job", "pvc") if each["kind"] == "NetworkPolicy"]
    rules = [rule for each in policies for rule in each["spec"].get("ingress", ())]
    outside = [rule for rule in rules if any("namespaceSelector" in peer for peer in rule["from"])]
    assert [rule["ports"] for rule in outside] == [[{"port": 8265}], [{"port": 8080}]]
    prometheus = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert outside[1]["from"] == [{"namespaceSelector": prometheus}]


@pytest.mark.parametrize(("overlay", "port"), [("job", False), ("cluster", True)])
def test_the_port_of_the_api_server_is_open_to_an_autoscaler_alone(
    overlay: str, port: bool
) -> None:
    policies = [each for each in variant(overlay, "pvc") if each["kind"] == "NetworkPolicy"]
    opened = [each["spec"] for each in policies if "6443" in str(each["spec"]["egress"])]
    heads = [spec["podSelector"]["matchLabels"].get("ray.io/node-type") for spec in opened]
    assert heads == ["head"] * port


def test_a_run_and_the_standing_cluster_have_the_same_pods() -> None:
    """But for the autoscaler, which the cluster of one run does not have."""
    cluster = one(variant("cluster", "pvc"), "RayCluster")["spec"]
    job = one(variant("job", "pvc"), "RayJob")["spec"]["rayClusterSpec"]
    for spec in (cluster, job):
        spec["headGroupSpec"]["template"]["spec"].pop("serviceAccountName")
        for count in ("replicas", "minReplicas"):
            spec["workerGroupSpecs"][0].pop(count)
    volumes = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    volumes[:] = [each for each in volumes if each["name"] != "kubernetes"]
    for key in ("autoscalerOptions", "enableInTreeAutoscaling"):
        cluster.pop(key)
    assert cluster == job


def test_the_nightly_job_is_the_same_by_either_schedule() -> None:
    cron = one(variant("cluster", "pvc"), "CronJob")["spec"]
    ray = one(variant("raycronjob", "pvc"), "RayCronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert (cron["schedule"], cron["timeZone"]) == (ray["schedule"], ray["timeZone"])
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][0].endswith(ray["jobTemplate"]["entrypoint"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_of_a_command_is_given(path: Path) -> None:
    for storage in ("object-store", "pvc"):
        given = one(documents(KUBERNETES / "storage" / storage / "storage.yaml"), "ConfigMap")
        used = {
            name for text in strings(documents(path)) for name in re.findall(r'"\$(\w+)"', text)
        }
        assert used <= given["data"].keys()


def test_every_version_is_that_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    (ray,) = re.findall(r"^ray==(.+)$", lock, flags=re.MULTILINE)
    assert launcher()["docker"]["image"].startswith(f"rayproject/ray:{ray}-")
    found = [text for overlay, storage in VARIANTS for text in versions(variant(overlay, storage))]
    assert set(found) == {f"svdllm:ray-{ray}", ray}
    for path in (ROOT / "deploy" / "Dockerfile", GUIDE):
        assert set(re.findall(r"svdllm:ray-([\d.]+\d)", path.read_text("utf-8"))) == {ray}


def versions(thing: Any) -> list[str]:
    """Every image and rayVersion in a value."""
    if isinstance(thing, list):
        return [found for each in thing for found in versions(each)]
    if not isinstance(thing, dict):
        return []
    here = [str(thing[key]) for key in ("image", "rayVersion") if key in thing]
    return here + [found for each in thing.values() for found in versions(each)]


def test_the_cluster_launcher_takes_its_file() -> None:
    config = prepare_config(launcher())
    validate_config(config)
    types = config["available_node_types"]
    assert {each["node_config"].get("ImageId") for each in types.values()} == {"ami-ID"}
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in command for command in config["head_start_ray_commands"])
    spot = {name for name, each in types.items() if "InstanceMarketOptions" in each["node_config"]}
    assert spot == {"gpu_spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(each["resources"]["GPU"] and not each["min_workers"] for each in types.values())
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists()


def test_every_node_mounts_the_folder_that_its_container_shares() -> None:
    """Before the container starts, and on all kinds of nodes: no type has commands of its own."""
    config = prepare_config(launcher())
    volumes = [o.split() for o in config["docker"]["run_options"] if o.startswith("--volume ")]
    ((_, volume),) = volumes
    folder, inside = volume.split(":")
    assert folder == inside
    mounts = [c for c in config["initialization_commands"] if f"mountpoint -q {folder} ||" in c]
    assert len(mounts) == 1
    assert mounts[0].endswith(f":/ {folder}")
    own = {"docker", "initialization_commands"}
    assert all(not own & each.keys() for each in config["available_node_types"].values())
    assert f"model={folder}/" in GUIDE.read_text("utf-8")


def test_the_cluster_launcher_refuses_an_unknown_key() -> None:
    with pytest.raises(Invalid, match="min_worker"):
        validate_config(prepare_config(launcher() | {"min_worker": 1}))


_COMMAND = r"(?<!-n )(?:svdllm|python -m pipeline) ([a-z]+)([^\n`;|&]*)"


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Name and options of every command line of the program in a text."""
    joined = text.replace("\\\n", " ")
    return [
        (name, re.findall(r"(?<!\S)--[a-z][a-z-]*", rest))
        for name, rest in re.findall(_COMMAND, joined)
    ]


def code(markdown: str) -> str:
    """The code of a page: blocks and spans."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S))
    return "\n".join(blocks + spans)


@pytest.mark.parametrize("path", [*FILES, GUIDE], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_line_has_options_of_the_program(path: Path) -> None:
    known: Any = typer.main.get_command(app)
    text = path.read_text("utf-8")
    lines = [code(text)] if path.suffix == ".md" else strings(list(yaml.safe_load_all(text)))
    for name, options in [found for line in lines for found in commands(line)]:
        taken = {option for each in known.commands[name].params for option in each.opts}
        assert set(options) <= taken


def test_command_lines_are_found() -> None:
    assert commands("svdllm compress --model m \\\n --ratio 0.2; python -m pipeline status x") == [
        ("compress", ["--model", "--ratio"]),
        ("status", []),
    ]
    assert commands("kubectl -n svdllm create -f job.yaml") == []
