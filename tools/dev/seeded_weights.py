"""A file in the published format with drawn numbers in place of trained ones, to try commands on where no published file is.

python -m tools.dev.seeded_weights --model=Ti/16 --output=Ti_16.npz
"""

from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError

_SIZE = (224, 224)


def main(argv: list[str]) -> dict[str, object]:
    """Writes the file; the result names it and says how many parameters it has."""
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "The model's name (python -m tools.models).", flag_values=values)
    flags.DEFINE_string("output", None, "The .npz file to write.", flag_values=values)
    flags.DEFINE_integer("classes", 1000, "Size of the classifier.", lower_bound=1, flag_values=values)
    extra = command.parse_flags(values, argv)
    model_name, output = values["model"].value, values["output"].value
    command.require_usage(extra, bool(model_name and output), "--model and --output are needed")
    if not output.endswith(".npz"):
        raise UserError(f"--output={output} must end in .npz")

    # Imported late: --help answers without starting JAX.
    from tools.dev import seeded
    from trainer.description import named, param_count
    from trainer.models.build import flatten, param_shapes, unflatten
    from trainer.weights import published
    from trainer.weights.layouts import RELEASED
    from trainer.weights.save import save_npz

    model = named(model_name, _SIZE, 3, values["classes"].value)
    shapes = {name: leaf.shape for name, leaf in flatten(param_shapes(model)).items()}
    # Drawn under their published names: the kind of an array, and so its size, shows in those.
    places = published.places(model, RELEASED)
    names = {name: places[name].name if name in places else name for name in shapes}
    params = {name: seeded.weight(names[name], shape) for name, shape in shapes.items()}
    save_npz(Path(output), model, unflatten(params))
    return {"output": output, "model": model_name, "params": param_count(model)}


if __name__ == "__main__":
    command.run_command(main, extra="train")
