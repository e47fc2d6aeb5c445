"""A latency profile: what models took on one machine under one setting, as JSON that travels.

A kit is what a device times: a folder of models, with what each is called in the profile.
"""

import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from serving.runtime import cpu
from serving.timing.turns import Timing

KIT_FORMAT, FORMAT = "vitforge-latency-kit-1", "vitforge-latency-2"
KIT_FILE = "kit.json"
Machine = dict[str, str]


def this_machine() -> Machine:
    """What a timing depends on besides its setting."""
    int8 = "yes" if cpu.supports(cpu.INT8) else "no"
    return {
        **cpu.identity(),
        "int8": int8,
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
    }


def all_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(
    path: Path, machine: Machine, setting: dict[str, Any], timings: dict[str, Timing], **more: Any
) -> None:
    """Writes a profile whole or not at all: timings by model description, of `machine` under `setting`."""
    content = {
        "format": FORMAT,
        "machine": machine,
        "setting": setting,
        "timings": {name: dataclasses.astuple(timing) for name, timing in timings.items()},
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
