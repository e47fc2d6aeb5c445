"""Plans of well-known trainings for TPU pods, as one table: what README shows.

python -m tools.bench_plans --output=tools/bench/results/plans.json          (after make plan; a minute or two for each row)
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from serving.command import UserError, progress
from tools import machine

_LARGE = (
    "--config.dtype=bfloat16",
    "--config.scan_blocks=True",
    "--config.optim=adamw",
    "--config.base_lr=1e-3",
)
_TEACHER = ("--config.teacher_model=L_16", "--config.teacher_weights=L_16.npz", "--config.distill_weight=0.5")
# Model, topology, and what its command adds.
ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Ti_16", "v5e:16x16", ("--config.batch=4096", *_TEACHER)),
    ("L_16", "v5e:16x16", ("--config.batch=4096", "--config.mesh.fsdp=16")),
    ("B_16", "v5e:8x8", ("--config.batch=4096",)),
    ("R_Ti_16", "v5e:4x4", ("--config.batch=4096",)),
    ("L_16", "v5p:4x4x4", ("--config.batch=4096", "--config.mesh.fsdp=8")),
    ("B_16", "v5p:2x4x4", ("--config.batch=4096",)),
    ("R_Ti_16", "v5p:2x2x2", ("--config.batch=4096",)),
)


def main(argv: list[str]) -> dict[str, object]:
    """Plans every row; the result holds them as written."""
    values = flags.FlagValues()
    flags.DEFINE_string("output", "", "JSON file to write the rows to.", flag_values=values)
    flags.DEFINE_bool("largest", True, "As of tools.plan.", flag_values=values)
    command.require_usage(command.parse_flags(values, argv), True, "")
    rows = []
    with progress(len(ROWS), "plans") as bar:
        for model, topology, more in ROWS:
            rows.append(_plan(model, topology, more, values["largest"].value))
            bar.advance()
    result: dict[str, object] = {"machine": machine.facts(), "rows": rows}
    if values["output"].value:
        Path(values["output"].value).write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows), file=sys.stderr)
    return result


def _plan(model: str, topology: str, more: tuple[str, ...], largest: bool) -> dict[str, Any]:
    arguments = [
        *(f"--config=configs/augreg.py:{model}", f"--topology={topology}", "--classes=1000"),
        *(*_LARGE, *more, "--json", f"--largest={largest}"),
    ]
    done = subprocess.run([sys.executable, "-m", "tools.plan", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"python -m tools.plan {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "arguments": arguments}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| training | chips | batch | MiB of a chip, peak (of) | parameters, optimiser, teacher | collectives, MiB a step "
        "| step, at least | images/s | MFU | largest batch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        whose = f"{row['teacher']} → {row['model']}" if row["teacher"] else row["model"]
        if "peak_mib" not in row:  # the compiler found no way to fit it
            where = f"{row['topology']} ({row['devices']})"
            lines.append(
                f"| {whose} | {where} | {row['batch']:,} | does not fit | | | | | | {row.get('largest_batch', '')} |"
            )
            continue
        moved = ", ".join(f"{kind} {total['mib']:,.0f}" for kind, total in row["collectives"].items())
        kept = f"{row['params_mib']:,.1f}, {row['optimiser_mib']:,.1f}, {row['teacher_mib']:,.1f}"
        axes = row["mesh"]
        lines.append(
            f"| {whose}, fsdp={axes['fsdp']} | {row['topology']} ({row['devices']}) | {row['batch']:,} | {row['peak_mib']:,.0f} "
            f"({row['hbm_mib']:,.0f}) | {kept} | {moved} | {row['step_ms']:.1f} ms | {row['images_per_s']:,.0f} | "
            f"≤ {row['mfu_bound']:.0%} | {row.get('largest_batch', '')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command.run_command(main, extra="train")
