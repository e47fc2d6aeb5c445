"""Weights of one format into another: the published npz that the original code reads, or safetensors with timm's names.

python -m trainer.convert --weights=IN --model=NAME --output=OUT.npz|OUT.safetensors
python -m trainer.convert --checkpoint=PATH --output=OUT.npz|OUT.safetensors

An npz that is written from an npz is the file that came in, once it was checked; resized or with another head, it keeps its layout.
"""

import sys
from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError
from trainer.weights import asked

_SUFFIXES = (".npz", ".safetensors")


def main(argv: list[str]) -> dict[str, object]:
    """Converts; the result names what was written, what became of the arrays, and where readers of the format compute otherwise."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "weights",
        "",
        "An npz or safetensors file (path or URL), or a checkpoint or bundle folder.",
        flag_values=values,
    )
    flags.DEFINE_string("checkpoint", "", "A checkpoint of ours; the same as --weights.", flag_values=values)
    asked.define_identity(values)
    flags.DEFINE_string("output", None, "OUT.npz or OUT.safetensors; must not exist.", flag_values=values)
    flags.DEFINE_list("image_size", [], "Resize positions for H,W pixels.", flag_values=values)
    flags.DEFINE_enum(
        "head", "keep", ("keep", "reinit", "remove"), "What becomes of the head.", flag_values=values
    )
    flags.DEFINE_integer("num_classes", None, "Classes of a new head.", flag_values=values)
    extra = command.parse_flags(values, argv, required=["output"])
    flag = {name: values[name].value for name in values}
    complete = bool(flag["output"]) and bool(flag["weights"]) != bool(flag["checkpoint"])
    command.require_usage(extra, complete, "--output and one of --weights and --checkpoint are needed")
    output = Path(flag["output"])
    if output.suffix not in _SUFFIXES:
        raise UserError(f"--output={output} must end in {' or '.join(_SUFFIXES)}, which says its format")
    return _convert(
        flag["weights"] or flag["checkpoint"],
        flag["model"],
        output,
        image_size=_size(flag["image_size"]),
        head=flag["head"],
        num_classes=flag["num_classes"],
        sha256=flag["sha256"],
        allow=flag["allow"],
    )


def _size(given: list[str]) -> tuple[int, int] | None:
    if not given:
        return None
    if len(given) > 2 or not all(side.strip().isdecimal() for side in given):
        raise UserError(f"--image_size={','.join(given)} must be H,W in pixels, or one number for both")
    return int(given[0]), int(given[-1])


def _convert(source: str, model: str, output: Path, **wanted: object) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    from trainer.weights import save

    save.check_target(output)
    weights = asked.load(source, model, **wanted)
    changed = wanted["head"] != "keep" or weights.report.resized or weights.report.created
    if output.suffix == ".npz" and weights.layout is not None and not changed:
        # Checked and as it was: nothing of the file is lost, its precision and what lies beside the model included.
        save.copy_file(source, output, weights.sha256)
    elif output.suffix == ".npz":
        layout = {} if weights.layout is None else {"layout": weights.layout}
        save.save_npz(output, weights.description, weights.params, **layout)
    else:
        save.save_safetensors(output, weights.description, weights.params)
    departures = save.departures(weights.description, output.suffix)
    for departure in departures:
        print(departure, file=sys.stderr)
    return {
        "output": str(output),
        "bytes": output.stat().st_size,
        "family": weights.family,
        "sha256": weights.sha256,
        "report": weights.report.summary(),
        "computed_otherwise": departures,
    }


if __name__ == "__main__":
    command.run_command(main, extra="train")
