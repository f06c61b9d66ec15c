"""Manifests as Kubernetes would see them: kustomizations rendered, unknown keys refused."""

import gzip
import os
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import yaml
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]

from tests.documents import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OLDEST_KUBERNETES = "1.29"
CRDS = Path(named) if (named := os.environ.get("CRDS")) else None
"""A folder of KubeRay's CustomResourceDefinitions, YAML, gzipped or not, if one is named."""

Object = dict[str, Any]
Invalid: type[Exception] = ValidationError


def documents(path: Path) -> list[Any]:
    """Every document of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def render(folder: Path, storage: str | None = None) -> list[Object]:
    """What `kubectl kustomize` prints of the few features that are used here.

    Every component is `storage` instead, if that is given: the one line that a user changes.
    """
    (kustomization,) = documents(folder / "kustomization.yaml")
    rest = kustomization.keys() - {"apiVersion", "kind", "resources", "components", "patches"}
    assert not rest, f"{folder}: render knows no {rest}"
    objects: list[Object] = []
    for name in kustomization.get("resources", []):
        path = (folder / name).resolve()
        objects += render(path, storage) if path.is_dir() else documents(path)
    for name in kustomization.get("components", []):
        component = folder / name if storage is None else (folder / name).parent / storage
        objects += render(component.resolve())
        for patch in _patches(component.resolve()):
            objects = _apply(patch, objects)
    if kustomization["kind"] == "Kustomization":
        for patch in _patches(folder):
            objects = _apply(patch, objects)
    return objects


def _patches(folder: Path) -> list[tuple[Object, Any]]:
    """Target and content of each patch."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    return [
        (
            patch["target"],
            documents(folder / patch["path"])[0]
            if "path" in patch
            else yaml.safe_load(patch["patch"]),
        )
        for patch in kustomization.get("patches", [])
    ]


def _apply(patch: tuple[Object, Any], objects: list[Object]) -> list[Object]:
    target, content = patch
    assert target.keys() == {"kind"}
    hit = [thing for thing in objects if thing["kind"] == target["kind"]]
    if isinstance(content, list):
        for thing in hit:
            _add(thing, content)
        return objects
    assert content["$patch"] == "delete"
    assert [thing["metadata"]["name"] for thing in hit] == [content["metadata"]["name"]]
    return [thing for thing in objects if thing not in hit]


def _add(thing: Object, operations: list[Object]) -> None:
    """JSON patch (RFC 6902): elements added at the end of lists that are there."""
    for operation in operations:
        assert operation["op"] == "add"
        *steps, last = operation["path"].removeprefix("/").split("/")
        assert last == "-"
        at: Any = thing
        for step in steps:
            at = at[int(step) if isinstance(at, list) else step]
        at.append(deepcopy(operation["value"]))


def check(thing: Object) -> None:
    """Validate an object of Kubernetes itself, or of Ray; no unknown key passes."""
    if thing["apiVersion"].startswith("ray.io/"):
        Draft202012Validator(ray_schema(thing["kind"])).validate(thing)
    else:
        kubernetes_validate.validate(thing, OLDEST_KUBERNETES, strict=True)


@cache
def ray_schema(kind: str) -> Object:
    """JSON schema of a Ray kind at v1, which refuses every key that its CRD does not name."""
    assert CRDS is not None, "name a folder of KubeRay's CRDs by the environment variable CRDS"
    found = list(CRDS.glob(f"*_{kind.lower()}s.yaml*"))
    assert len(found) == 1, f"{CRDS} has {len(found)} files of the CRD of {kind}, not 1"
    (path,) = found
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    definition = yaml.load(text, Loader=yaml.CSafeLoader)
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema: Object = version["schema"]["openAPIV3Schema"]
    _refuse_unknown(schema)
    # The API server checks metadata, not the CRD.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _refuse_unknown(schema: Any) -> None:
    if isinstance(schema, list):
        for each in schema:
            _refuse_unknown(each)
    if not isinstance(schema, dict):
        return
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for each in schema.values():
        _refuse_unknown(each)


def pod_templates(thing: Any) -> list[Object]:
    """Every pod template in an object, with the metadata that its kind gives it."""
    if isinstance(thing, list):
        return [found for each in thing for found in pod_templates(each)]
    if not isinstance(thing, dict):
        return []
    here = [thing["template"]] if "containers" in thing.get("template", {}).get("spec", {}) else []
    return here + [found for each in thing.values() for found in pod_templates(each)]


def strings(value: Any) -> list[str]:
    """Every string in a value."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for each in inside for found in strings(each)]
