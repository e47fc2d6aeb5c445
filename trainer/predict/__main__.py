"""What a model says: the likeliest labels of pictures, logits of ready arrays, embeddings of pictures and texts.

python -m trainer.predict --model=Ti/16 --weights=Ti_16.npz --images=cat.jpg,dog.png,holiday/
python -m trainer.predict --weights=runs/student --images=cat.png             a checkpoint knows its model
python -m trainer.predict --weights=models/student/1 --images=cat.png         so does a bundle, run by its runtime
python -m trainer.predict --model=R_Ti_16 --weights=R_Ti_16.npz --inputs=x.npy --logits=out.npy
python -m trainer.predict --model=LiT-B16B --weights=LiT-B16B.npz --vocab=vocab.txt --images=cat.jpg --labels="a cat,a dog"
python -m trainer.predict --model=LiT-L16Ti --weights=LiT-L16Ti.npz --inputs=x.npy --tokens=t.npy --embeddings=out.npz
"""

import os

from absl import flags

from serving import command
from serving.command import UserError
from trainer.weights import asked


def main(argv: list[str]) -> dict[str, object]:
    """Predicts; the result holds the model's origin, its preprocessing, and the answers or the files that hold them."""
    values = flags.FlagValues()
    _define_model(values)
    _define_inputs(values)
    _define_outputs(values)
    more_images = command.parse_flags(values, argv, required=["weights"])
    given = {name: values[name].value for name in values}
    given["images"] = [*given["images"], *more_images]
    _check(given)

    # Imported late: --help answers without starting JAX.
    from trainer.predict.job import Request, predict

    names = Request.__dataclass_fields__
    return predict(Request(**{name: given[name] for name in names}))


def _define_model(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "weights",
        None,
        ".npz or .safetensors (a path, or a URL that fsspec knows), a training or compression workdir, or a bundle.",
        flag_values=values,
    )
    asked.define_identity(values)
    asked.define_side(values)


def _define_inputs(values: flags.FlagValues) -> None:
    flags.DEFINE_list(
        "images",
        [],
        "Pictures and folders of pictures, comma-separated; also as plain arguments.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "inputs",
        "",
        "A .npy file of ready input: floats (B, H, W, C) in the model's range.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokens", "", "A .npy file of ready tokens: integers (B, T), for LiT.", flag_values=values
    )
    flags.DEFINE_list(
        "labels", [], "Descriptions to choose from, for LiT: --labels='a cat,a dog'.", flag_values=values
    )
    flags.DEFINE_string(
        "vocab",
        "",
        "The tokeniser's vocabulary (.txt of BERT, .model of SentencePiece), for --labels.",
        flag_values=values,
    )


def _define_outputs(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "logits", "", "Write float32 logits (B, classes) to this .npy file.", flag_values=values
    )
    flags.DEFINE_string(
        "embeddings",
        "",
        "Write what a LiT pair makes to this .npz file: zimg (B, E), ztxt (B, E), t (1,).",
        flag_values=values,
    )
    flags.DEFINE_integer("top_k", 5, "Labels an image.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch", 32, "Inputs at a time.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "threads",
        len(os.sched_getaffinity(0)),
        "Threads of a bundle's runtime.",
        lower_bound=1,
        flag_values=values,
    )


def _check(given: dict[str, object]) -> None:
    """Refuses a command line that asks for nothing, or for two things at once.

    Raises:
      UserError: saying what is needed.
    """
    command.require_usage([], bool(given["weights"]), "--weights is needed")
    if given["images"] and given["inputs"]:
        raise UserError(
            "--images and --inputs exclude each other; give pictures or a ready array (see --help)"
        )
    if given["tokens"] and given["labels"]:
        raise UserError("--tokens and --labels exclude each other; give ready tokens or texts (see --help)")
    anything = given["images"] or given["inputs"] or given["tokens"] or given["labels"]
    command.require_usage([], bool(anything), "--images, --inputs or --tokens is needed")
    for name, ending in (("inputs", ".npy"), ("tokens", ".npy"), ("logits", ".npy"), ("embeddings", ".npz")):
        if given[name] and not str(given[name]).endswith(ending):
            raise UserError(f"--{name}={given[name]} must end in {ending}")


if __name__ == "__main__":
    command.run_command(main, extra="train")
