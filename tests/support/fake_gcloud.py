"""A gcloud with one project, whose TPU workers are folders of this machine: a command on a worker runs in its home folder.

STATE/states.json lists what a queued resource says of itself, one word for each time it is asked; the last stays. A file
STATE/lose makes the next process on that worker (NODE-K) end as if its connection broke, and the resource SUSPENDED.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.fake_command import load, note, parse, refuse, state_of

_WHERE = {"--project", "--zone", "--quiet", "--format"}
# As the Google Cloud SDK 528 has them.
_FLAGS = {
    ("queued-resources", "create"): {
        *("--node-id", "--node-count", "--node-prefix", "--accelerator-type", "--runtime-version"),
        *("--spot", "--service-account"),
    },
    ("queued-resources", "describe"): set(),
    ("queued-resources", "delete"): {"--force"},
    ("queued-resources", "list"): set(),
    ("accelerator-types", "list"): set(),
    ("tpu-vm", "describe"): set(),
    ("tpu-vm", "ssh"): {"--worker", "--command"},
    ("tpu-vm", "scp"): {"--worker"},
}
_QUOTAS = [
    {
        "quotaId": f"TPUV4{kind}PodPerProjectPerZoneForTPUAPI",
        "quotaDisplayName": f"{kind} TPU v4 Pod cores per project per zone",
        "dimensionsInfos": [{"applicableLocations": ["us-central2-b"], "details": {"value": value}}],
    }
    for kind, value in (("", "32"), ("Preemptible", "8"))
]
_WORKERS = {"v4-16": 2, "v5litepod-16": 4}


def main(words: list[str]) -> None:
    state = state_of("gcloud")
    note(state, words)
    if words[:2] == ["auth", "list"]:
        print("engineer@example.com" if not (state / "logged_out").exists() else "")
        return
    if words[:4] == ["beta", "quotas", "info", "list"]:
        parse(words[4:], {"--service", "--project", "--format"})
        print(json.dumps(_QUOTAS))
        return
    if words[:2] != ["compute", "tpus"] or tuple(words[2:4]) not in _FLAGS:
        refuse(f"(gcloud) Invalid choice: {' '.join(words[:4])}", 2)
    positional, flags = parse(words[4:], _FLAGS[tuple(words[2:4])] | _WHERE)  # type: ignore[index]
    if flags.get("--project") != "lab":
        refuse(f"PERMISSION_DENIED: The caller does not have permission on project {flags.get('--project')}")
    _VERBS[tuple(words[2:4])](state, positional, flags)


def _create(state: Path, positional: list[str], flags: dict[str, str]) -> None:
    (name,) = positional
    assert ("--node-id" in flags) != ("--node-count" in flags)
    resources = load(state / "resources.json", {})
    if name in resources:
        refuse(f"ALREADY_EXISTS: Resource '{name}' already exists")
    count = int(flags.get("--node-count", "1"))
    nodes = (
        [flags["--node-id"]]
        if count == 1
        else [f"{flags['--node-prefix']}-{index}" for index in range(count)]
    )
    resources[name] = {"nodes": nodes, "type": flags["--accelerator-type"], "asked": 0}
    for node in nodes:
        for worker in range(_WORKERS[flags["--accelerator-type"]]):
            _home(state, node, worker).mkdir(parents=True, exist_ok=True)
    (state / "resources.json").write_text(json.dumps(resources))


def _describe(state: Path, positional: list[str], _: dict[str, str]) -> None:
    resources = load(state / "resources.json", {})
    if positional[0] not in resources:
        refuse(f"NOT_FOUND: Resource 'queuedResources/{positional[0]}' was not found")
    resource = resources[positional[0]]
    states = load(state / "states.json", ["ACTIVE"])
    word = resource.get("state") or states[min(resource["asked"], len(states) - 1)]
    resource["asked"] += 1
    (state / "resources.json").write_text(json.dumps(resources))
    print(json.dumps({"name": positional[0], "state": {"state": word}}))


def _delete(state: Path, positional: list[str], flags: dict[str, str]) -> None:
    resources = load(state / "resources.json", {})
    assert "--force" in flags
    assert "--quiet" in flags
    for node in resources.pop(positional[0])["nodes"]:
        for home in state.glob(f"home-{node}-*"):
            shutil.rmtree(home)
    (state / "resources.json").write_text(json.dumps(resources))


def _list(state: Path, positional: list[str], _: dict[str, str]) -> None:
    print("[]")


def _types(state: Path, positional: list[str], _: dict[str, str]) -> None:
    print("\n".join(_WORKERS))


def _vm(state: Path, positional: list[str], _: dict[str, str]) -> None:
    print(
        json.dumps(
            {"state": "READY", "networkEndpoints": [{"ipAddress": "127.0.0.1"}, {"ipAddress": "127.0.0.1"}]}
        )
    )


def _scp(state: Path, positional: list[str], flags: dict[str, str]) -> None:
    source, target = positional
    node, _, name = target.partition(":")
    assert flags["--worker"] == "all"
    for home in state.glob(f"home-{node}-*"):
        shutil.copy(source, home / name)


def _ssh(state: Path, positional: list[str], flags: dict[str, str]) -> None:
    (node,) = positional
    if flags["--worker"] != "all":
        lost = state / "lose"
        attended = "attended.py" in flags["--command"]
        if attended and lost.exists() and lost.read_text() == f"{node}-{flags['--worker']}":
            lost.unlink()
            resources = load(state / "resources.json", {})
            next(one for one in resources.values() if node in one["nodes"])["state"] = "SUSPENDED"
            (state / "resources.json").write_text(json.dumps(resources))
            sys.exit(255)
        os.chdir(_home(state, node, int(flags["--worker"])))
        os.execvp("sh", ["sh", "-c", flags["--command"]])
    for home in sorted(state.glob(f"home-{node}-*")):
        subprocess.run(["sh", "-c", flags["--command"]], cwd=home, check=True)


def _home(state: Path, node: str, worker: int) -> Path:
    return state / f"home-{node}-{worker}"


_VERBS = {
    ("queued-resources", "create"): _create,
    ("queued-resources", "describe"): _describe,
    ("queued-resources", "delete"): _delete,
    ("queued-resources", "list"): _list,
    ("accelerator-types", "list"): _types,
    ("tpu-vm", "describe"): _vm,
    ("tpu-vm", "ssh"): _ssh,
    ("tpu-vm", "scp"): _scp,
}

if __name__ == "__main__":
    main(sys.argv[1:])
