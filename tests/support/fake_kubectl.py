"""A kubectl that keeps what it is given, and answers as a cluster would whose JobSets have the status in STATE/status.json."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.fake_command import load, note, parse, refuse, state_of

_EVERYWHERE = {"--namespace", "--context"}
# As kubectl 1.32 has them.
_FLAGS = {
    "apply": {"--filename", "--dry-run", "--validate"},
    "get": {"--selector", "--output"},
    "delete": {"--selector", "--cascade", "--timeout"},
    "logs": {
        "--selector",
        "--container",
        "--prefix",
        "--tail",
        "--ignore-errors",
        "--since",
        "--max-log-requests",
        "--follow",
    },
    "auth": set(),
    "api-resources": {"--api-group", "--output"},
}


def main(words: list[str]) -> None:
    state = state_of("kubectl")
    note(state, words)
    if (state / "unreachable").exists():
        refuse(
            "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
        )
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb not in _FLAGS:
        refuse(f'unknown command "{verb}" for "kubectl"')
    positional, flags = parse(words, _FLAGS[verb] | _EVERYWHERE)
    _VERBS[verb](state, positional[1:], flags)


def _apply(state: Path, _: list[str], flags: dict[str, str]) -> None:
    listed = json.loads(Path(flags["--filename"]).read_text())
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    for item in listed["items"]:
        assert item["metadata"]["namespace"] == flags["--namespace"]
    if flags.get("--dry-run") == "server":
        return
    assert "--dry-run" not in flags
    (state / "items.json").write_text(json.dumps(listed["items"]))


def _selected(state: Path, flags: dict[str, str]) -> list[dict[str, Any]]:
    key, _, value = flags["--selector"].partition("=")
    items = load(state / "items.json", [])
    return [item for item in items if item["metadata"]["labels"].get(key) == value]


def _get(state: Path, positional: list[str], flags: dict[str, str]) -> None:
    if positional[0] == "localqueues.kueue.x-k8s.io":
        if positional[1] != "research":
            refuse(f'localqueues.kueue.x-k8s.io "{positional[1]}" not found')
        print(f"localqueue.kueue.x-k8s.io/{positional[1]}")
        return
    assert flags["--output"] == "json"
    if positional == ["jobs.batch"]:
        # As the Job controller words it for the third rule of the pod failure policy.
        message = "Container trainer for pod ml/ti-slice-0-0-abcde failed with exit code 45 matching FailJob rule at index 2"
        labels = {"jobset.sigs.k8s.io/jobset-name": "ti"}
        status = {"conditions": [{"type": "Failed", "reason": "PodFailurePolicy", "message": message}]}
        print(json.dumps({"items": [{"metadata": {"labels": labels}, "status": status}]}))
        return
    assert positional == ["jobsets.jobset.x-k8s.io"]
    status = load(state / "status.json", {})
    sets = [item | {"status": status} for item in _selected(state, flags) if item["kind"] == "JobSet"]
    print(json.dumps({"items": sets}))


def _delete(state: Path, positional: list[str], flags: dict[str, str]) -> None:
    assert positional == ["jobsets.jobset.x-k8s.io,configmaps"]
    gone = _selected(state, flags)
    left = [item for item in load(state / "items.json", []) if item not in gone]
    (state / "items.json").write_text(json.dumps(left))


def _logs(state: Path, _: list[str], flags: dict[str, str]) -> None:
    assert flags["--container"] == "trainer"
    for item in _selected(state, flags):
        if item["kind"] == "JobSet":
            print(f"[pod/{item['metadata']['name']}-slice-0-0/trainer] step 1")


def _auth(state: Path, positional: list[str], _: dict[str, str]) -> None:
    assert positional == ["can-i", "create", "jobsets.jobset.x-k8s.io"]
    print("yes")


def _api_resources(state: Path, _: list[str], flags: dict[str, str]) -> None:
    if not (state / "without_jobset").exists():
        print("jobsets.jobset.x-k8s.io")


_VERBS = {
    "apply": _apply,
    "get": _get,
    "delete": _delete,
    "logs": _logs,
    "auth": _auth,
    "api-resources": _api_resources,
}

if __name__ == "__main__":
    main(sys.argv[1:])
