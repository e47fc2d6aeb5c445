"""Between what latencies budgets make sense: the teacher's own, and that of one small block, on the serving runtime.

python -m tools.bench_compression.latency_ends --teacher=PATH [--batch=1] [--threads=1] [--precision=fp32] [--seconds=30]
"""

import dataclasses

from absl import flags

from serving import command
from trainer.precisions import PRECISIONS


def main(argv: list[str]) -> dict[str, object]:
    """Measures; the result has teacher_ms and least_ms, medians."""
    values = flags.FlagValues()
    flags.DEFINE_string("teacher", None, "The teacher's checkpoint.", flag_values=values)
    flags.DEFINE_integer("batch", 1, "Images in a call.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("precision", "fp32", list(PRECISIONS), "Of the file.", flag_values=values)
    flags.DEFINE_float("seconds", 30.0, "Of timing each.", lower_bound=0.1, flag_values=values)
    extra = command.parse_flags(values, argv, required=["teacher"])
    command.require_usage(extra, bool(values["teacher"].value), "--teacher is needed")

    # Imported late: --help answers without starting JAX.
    from trainer import checkpoint, description
    from trainer.compress import latency
    from trainer.description import Block

    model = checkpoint.load_card(values["teacher"].value).description
    teacher = description.require_vit(model, "a latency budget")
    least = dataclasses.replace(teacher, blocks=(Block(1, 8, 8, 8),))
    names = ("batch", "threads", "precision")
    setting = latency.Setting(**{name: values[name].value for name in names})
    whole, small = latency.one_by_one(latency.timer(setting, values["seconds"].value))([teacher, least])
    return {"teacher_ms": whole.p50_ms, "least_ms": small.p50_ms}


if __name__ == "__main__":
    command.run_command(main, extra="train,serve")
