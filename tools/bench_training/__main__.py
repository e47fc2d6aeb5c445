"""Benchmarks of the trainer on this machine, as ratios within one run.

python -m tools.bench_training overhead [--model=ViT-fashion_4] [--batch=128] [--steps=60]    the loop beside the bare step
python -m tools.bench_training input [--images=400] [--workers=0]                             beside a bare loop, and tf.data
python -m tools.bench_training reference --reference=CHECKOUT [--model=Ti_16] [--batch=16]    beside vision_transformer's step

`overhead`: the time of a step in `trainer.main`'s loop (input, metrics, progress) against the compiled step alone on one batch that
is there already. `input`: JPEG photographs of ImageNet's sizes, decoded, cropped at random to 224 pixels and flipped, by the Grain
pipeline of one reading thread (or of worker processes) against a plain loop over the same files in one thread; tf.data beside them
where `make tf` has installed TensorFlow. `reference`: the training step of the same model, batch and optimiser, ours and that of a
checkout of google-research/vision_transformer, which runs in the environment of `make tf`. Rounds alternate, so that a slow spell
hits all.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from serving import command
from tools import machine

_VERBS = ("overhead", "input", "reference")


def main(argv: list[str]) -> dict[str, object]:
    """Measures; the result holds medians and spreads."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "model", "", "What is trained: ViT-fashion_4 for overhead, Ti_16 for reference.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch", 0, "Images of a step: 128 for overhead, 16 for reference.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "steps", 0, "Of a round: 60 for overhead, 4 for reference.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer("images", 400, "Of a round of input.", lower_bound=8, flag_values=values)
    flags.DEFINE_integer("workers", 0, "Grain worker processes of input.", lower_bound=0, flag_values=values)
    flags.DEFINE_string(
        "reference", "", "A checkout of google-research/vision_transformer.", flag_values=values
    )
    flags.DEFINE_string("output", "", "JSON file for the result.", flag_values=values)
    extra = command.parse_flags(values, argv)
    verb = extra[0] if extra else ""
    command.require_usage(extra[1:], verb in _VERBS, f"one of {', '.join(_VERBS)} is needed")
    flag = {name: values[name].value for name in values}
    result: dict[str, object] = {"benchmark": verb, **_measured(verb, flag), "machine": machine.facts()}
    if flag["output"]:
        Path(flag["output"]).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _measured(verb: str, flag: dict[str, Any]) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    from trainer.allocator import keep_freed_memory

    keep_freed_memory()  # as trainer.main does
    if verb == "overhead":
        from tools.bench_training.overhead import overhead

        return overhead(flag["model"] or "ViT-fashion_4", flag["batch"] or 128, flag["steps"] or 60)
    if verb == "input":
        from tools.bench_training.input_pipeline import input_pipeline

        return input_pipeline(flag["images"], flag["workers"])
    from tools.bench_training.reference import reference

    return reference(flag["reference"], flag["model"] or "Ti_16", flag["batch"] or 16, flag["steps"] or 4)


if __name__ == "__main__":
    command.run_command(main, extra="train")
