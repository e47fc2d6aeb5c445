"""The benchmarks of compression, each one command that goes on where it was interrupted.

    python -m tools.bench_compression one_shot  --teacher=PATH --workdir=DIR    cut without training, beside Torch-Pruning
    python -m tools.bench_compression distilled --teacher=PATH --workdir=DIR    the same cuts after equal distillation
    python -m tools.bench_compression headline  --teacher=PATH --workdir=DIR --student=PATH    both served: size, speed, accuracy
    python -m tools.bench_compression latency   --teacher=PATH --workdir=DIR    budgets asked and measured afresh

The record goes to RESULTS/compression_VERB.json (tools/bench/results), the table and plot to WORKDIR/VERB.md and .png. Verbs that
share a workdir share what they made: `distilled` takes the cuts of `one_shot`. Torch-Pruning needs `make peer` once.
VERB --help lists the flags.
"""

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from serving.command import UserError
from tools.bench_compression import distilled, headline, latency, one_shot
from tools.bench_compression.bench import Bench
from tools.steps import GOES_ON, Steps, compiling_once
from tools.stop_requests import Stopped, StopRequests
from trainer.workdir import hold

_VERBS: dict[str, Any] = {verb.NAME: verb for verb in (one_shot, distilled, headline, latency)}


def main(argv: list[str]) -> dict[str, object]:
    """Runs one verb; the result is what its JSON record holds, and where record and report lie."""
    name, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if name not in _VERBS and name not in ("--help", "-h"):
        raise UserError(f"no such verb: {name!r}; there are {', '.join(_VERBS)} (see --help)")
    values = flags.FlagValues()
    flags.DEFINE_string("teacher", None, "The teacher's checkpoint.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of everything that is made.", flag_values=values)
    flags.DEFINE_string("results", "tools/bench/results", "Folder of the JSON record.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of the data set's files.", flag_values=values)
    if name in _VERBS:
        _VERBS[name].define(values)
    extra = command.parse_flags(
        values, arguments if name in _VERBS else argv, required=["teacher", "workdir"]
    )
    flag = {key: values[key].value for key in values}
    command.require_usage(
        extra, bool(flag["teacher"] and flag["workdir"]), "--teacher and --workdir are needed"
    )
    workdir = Path(flag["workdir"])
    command.require_folder(workdir, "--workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    shown = shlex.join(["python", "-m", "tools.bench_compression", *argv])
    try:
        with StopRequests() as stop, hold(workdir, "running a benchmark"):
            return _run(name, flag, workdir, shown, stop)
    except Stopped as stopped:
        raise UserError(f"{stopped.number.name}: stopped; {GOES_ON}", 128 + stopped.number) from None


def _run(name: str, flag: dict[str, Any], workdir: Path, shown: str, stop: StopRequests) -> dict[str, Any]:
    from trainer.checkpoint import load_card

    meta = load_card(flag["teacher"]).meta
    with tempfile.TemporaryDirectory(prefix="vitforge-compiled-") as compiled:
        bench = Bench(
            teacher=flag["teacher"],
            workdir=workdir,
            results=Path(flag["results"]),
            dataset=meta["dataset"],
            data_dir=flag["data_dir"] or meta["data_dir"],
            command=shown,
            steps=Steps(workdir, stop, compiling_once(compiled)),
            stop=stop,
        )
        found: dict[str, Any] = _VERBS[name].run(bench, flag)
    print("\n" + Path(found["report"]).read_text(), file=sys.stderr)
    return found


if __name__ == "__main__":
    command.run_command(main, extra="train,serve")
