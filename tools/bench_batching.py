"""What more batches at the same time are worth: servers that differ in --executors, under the same loads, in turn.

    python -m tools.bench_batching --model_repository=runs/quickstart/models --model=distilled [--dataset=digits]

Writes RESULTS/batching.json. The images are the data set's test images, sent as PNG bytes through Vision/Classify.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from serving.client import VisionClient
from serving.command import UserError
from tools import machine, report
from tools.bench_training.rounds import ratios, spread
from tools.serving_load import Load, rounds
from tools.serving_process import serving
from tools.stop_requests import Stopped, StopRequests

_IMAGES = 512  # that are asked for over and over


def main(argv: list[str]) -> dict[str, object]:
    """Starts a server for each number of executors and measures all in turn; the result is what the JSON holds."""
    values = flags.FlagValues()
    flags.DEFINE_string("model_repository", None, "Folder of NAME/VERSION bundles.", flag_values=values)
    flags.DEFINE_string("model", None, "The model to measure.", flag_values=values)
    flags.DEFINE_list("executors", ["1", "2"], "What is compared with the first of them.", flag_values=values)
    flags.DEFINE_list("loads", ["16x1", "4x32"], "Callers x images in a request.", flag_values=values)
    flags.DEFINE_string("dataset", "digits", "Whose test images are sent.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of the data set's files.", flag_values=values)
    flags.DEFINE_float("window_s", 2.0, "Seconds of load in each round.", flag_values=values)
    flags.DEFINE_integer(
        "rounds", 9, "Rounds, each of all servers in turn.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("results", "tools/bench/results", "Folder of the JSON record.", flag_values=values)
    extra = command.parse_flags(values, argv, required=["model_repository", "model"])
    flag = {key: values[key].value for key in values}
    complete = bool(flag["model_repository"] and flag["model"])
    command.require_usage(extra, complete, "--model_repository and --model are needed")
    executors = [_whole("executors", text) for text in flag["executors"]]
    loads = {text: _load(text, flag) for text in flag["loads"]}
    command.require_usage([], bool(executors and loads), "--executors and --loads name at least one each")
    command.require_folder(Path(flag["results"]), "--results")
    try:
        with StopRequests() as stop:
            found = _measured(flag, executors, loads, stop)
    except Stopped as stopped:
        raise UserError(f"{stopped.number.name}: stopped", 128 + stopped.number) from None
    return _write(Path(flag["results"]), shlex.join(["python", "-m", "tools.bench_batching", *argv]), found)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--{name}: {text!r} is no positive whole number")
    return int(text)


def _load(text: str, flag: dict[str, Any]) -> Load:
    callers, times, images = text.partition("x")
    if not times:
        raise UserError(f"--loads: {text!r} is not of the form CALLERSxIMAGES, such as 4x32")
    return Load(_whole("loads", callers), _whole("loads", images), flag["window_s"], rounds=flag["rounds"])


def _measured(
    flag: dict[str, Any], executors: Sequence[int], loads: dict[str, Load], stop: StopRequests
) -> list[dict[str, Any]]:
    """A row for each load and number of executors."""
    pictures = report.test_images(flag["dataset"], flag["data_dir"])[0][:_IMAGES]
    with ExitStack() as stack:
        clients = {}
        for count in executors:
            server = serving(Path(flag["model_repository"]), stop, f"--executors={count}")
            clients[str(count)] = stack.enter_context(VisionClient(stack.enter_context(server)))

        def ask(count: str, chosen: Sequence[int]) -> object:
            return clients[count].classify([pictures[one] for one in chosen], model=flag["model"], top_k=1)

        rows = []
        for text, load in loads.items():
            print(
                f"\n== {load.concurrency} callers, {load.images_per_request} images a request",
                file=sys.stderr,
            )
            rows += _rows(text, rounds(ask, list(clients), len(pictures), load))
    return rows


def _rows(load: str, found: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """images/s of each server and, round by round, how many times the first one's."""
    speeds = {count: [one[count] for one in found] for count in found[0]}
    first = next(iter(speeds.values()))
    rows = []
    for count, own in speeds.items():
        row = {"images_per_s": spread(own), "ratio": spread(ratios(own, first))}
        rows.append({"load": load, "executors": int(count), **row})
        rate, times = (
            row["images_per_s"]["median"],
            "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"]),
        )
        print(f"{count} executors: {rate:.0f} images/s, times the first: {times}", file=sys.stderr)
    return rows


def _write(results: Path, shown: str, rows: list[dict[str, Any]]) -> dict[str, object]:
    recorded: dict[str, object] = {
        "benchmark": "batching",
        "command": shown,
        "machine": machine.facts(),
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "batching.json").write_text(json.dumps(recorded, indent=2) + "\n")
    return recorded


if __name__ == "__main__":
    command.run_command(main)
