"""What a training needs and does on a TPU pod that is not here: memory, collectives, and the least time of a step.

make plan                                            once: an environment of its own with libtpu, the TPUs' compiler
python -m tools.plan --config=configs/augreg.py:L_16 --topology=v5e:16x16 --config.batch=4096 --config.dtype=bfloat16
python -m tools.plan --config=configs/augreg.py:Ti_16 --topology=v5p:2x2x2 --slices=2 --classes=1000 --json

The very step of the configuration is compiled for the topology. A teacher is known by --config.teacher_model; its weights need not
be there.
"""

import importlib.util
import os
import sys
from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError

_ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-plan/bin/python"


def main(argv: list[str]) -> dict[str, object]:
    """Plans; the result holds what the table on stderr shows."""
    from trainer import config

    recipe, overrides, rest = config.split_config_args(argv)
    values = flags.FlagValues()
    config.define_flag(values)
    flags.DEFINE_string(
        "topology", None, "v4, v5e, v5p or v6e with its shape, such as v5e:16x16.", flag_values=values
    )
    flags.DEFINE_integer(
        "slices", 0, "Slices of that shape; 0: as config.mesh.slices says.", flag_values=values
    )
    flags.DEFINE_integer("classes", 0, "Of the data set; 0: as it is known by name.", flag_values=values)
    flags.DEFINE_bool(
        "largest",
        True,
        "Double or halve the batch to the largest that fits; takes a few compilations more.",
        flag_values=values,
    )
    flags.DEFINE_bool("json", False, "No table; the result alone.", flag_values=values)
    extra = command.parse_flags(
        values,
        rest,
        required=["config", "topology"],
        more_help=lambda: config.keys_help(config.Experiment, recipe),
    )
    complete = bool(recipe and values["topology"].value)
    command.require_usage(extra, complete, "--config=FILE.py and --topology=KIND:SHAPE are needed")
    experiment = config.experiment(str(recipe), overrides)

    from tools.plan import chips

    where = chips.topology(values["topology"].value, values["slices"].value or experiment.mesh.slices)
    _enter_environment()

    from tools.plan.report import plan, table

    result = plan(experiment, where, values["classes"].value, values["largest"].value)
    if not values["json"].value:
        print(table(result), file=sys.stderr)
    return result


def _enter_environment() -> None:
    """Goes on in the environment of `make plan` where this one has no libtpu."""
    # Nothing is asked of a TPU, nor of the machine whether it has one.
    os.environ.update(
        {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    )
    if importlib.util.find_spec("libtpu") is not None:
        return
    if not _ENVIRONMENT.is_file():
        raise UserError(
            "there is no libtpu here, which compiles for TPUs; make plan installs it in an environment of its own"
        )
    os.execv(_ENVIRONMENT, [str(_ENVIRONMENT), "-m", "tools.plan", *sys.argv[1:]])


if __name__ == "__main__":
    command.run_command(main, extra="train")
