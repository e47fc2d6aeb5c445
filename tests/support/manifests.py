"""Whether a manifest is one: by JobSet's own definition, by Kubernetes' schemas, and by what its servers refuse besides."""

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

_KUBERNETES = "1.34"
_DEFINITION = Path(__file__).parents[3] / "shared/schemas/jobset-crd.yaml"
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def missing() -> str:
    """Why nothing can be validated here; "" where it can."""
    if definition().is_file():
        return ""
    return "the definition of JobSet is not here; VITFORGE_JOBSET_CRD names its file (from the releases of kubernetes-sigs/jobset)"


def definition() -> Path:
    return Path(os.environ.get("VITFORGE_JOBSET_CRD", _DEFINITION))


def problems(jobset: dict[str, Any]) -> list[str]:
    """What is wrong with a JobSet."""
    found = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(_schema()).iter_errors(jobset)
    ]
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
        found += core_problems(job)
    return found + _refused(jobset)


def core_problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest of Kubernetes' own kinds."""
    try:
        kubernetes_validate.validate(manifest, _KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']}: {error.message[:200]}"]
    return []


def _schema() -> dict[str, Any]:
    described = yaml.load(definition().read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (one for one in described["spec"]["versions"] if one["name"] == "v1alpha2")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    names = {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": texts,
        "annotations": texts,
    }
    schema["properties"]["metadata"] = {"type": "object", "additionalProperties": False, "properties": names}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _closed(node: Any) -> Any:
    """The schema with every field that it does not name refused: a server drops them, so that a typing error would pass."""
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    closed = {
        key: value if key in ("default", "enum", "required") else _closed(value)
        for key, value in node.items()
    }
    if node.get("x-kubernetes-int-or-string"):
        closed.pop("anyOf", None)
        closed["type"] = ["integer", "string"]
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _refused(jobset: dict[str, Any]) -> list[str]:
    """What the servers refuse and no schema states: names that grow, exit codes in no order, rules with names that are none."""
    found = []
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    for replicated in spec["replicatedJobs"]:
        job = replicated["template"]["spec"]
        pod = f"{name}-{replicated['name']}-{replicated['replicas'] - 1}-{job['completions'] - 1}-abcde"
        found += [] if _LABEL.fullmatch(pod) else [f"a pod would be called {pod}"]
        for rule in job["podFailurePolicy"]["rules"]:
            values = rule.get("onExitCodes", {}).get("values", [1])
            found += [] if values == sorted(set(values)) and 0 not in values else [f"exit codes {values}"]
            found += [] if ("onExitCodes" in rule) != ("onPodConditions" in rule) else ["a rule of two kinds"]
    for rule in spec["failurePolicy"]["rules"]:
        found += (
            [] if re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]) else [rule["name"]]
        )
    return found
