"""What an image-text pair knows without training: classes by their names in sentences, and which text belongs to which image.

python -m trainer.zero_shot --checkpoint=PAIR --vocab=vocab.txt --dataset=fashion_mnist --templates="a photo of a {}.|a {}."
python -m trainer.zero_shot --checkpoint=PAIR --vocab=vocab.txt --dataset=pairs:photos.jsonl
python -m trainer.zero_shot --model=LiT-B16B --weights=LiT-B16B.npz --vocab=vocab.txt --dataset=cifar10 --data_dir=downloads
"""

from typing import Any

from absl import flags

from serving import command
from serving.command import UserError

_TEMPLATES = "a photo of a {}."


def main(argv: list[str]) -> dict[str, object]:
    """Classifies the split, or retrieves in it; the result holds top-1 with its interval, or recalls."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", "", "A pair of ours.", flag_values=values)
    flags.DEFINE_string(
        "model", "", "In place of it: a LiT model's name, with --weights.", flag_values=values
    )
    flags.DEFINE_string("weights", "", "A published .npz, path or URL.", flag_values=values)
    flags.DEFINE_string("vocab", "", "The vocabulary of its text tower.", flag_values=values)
    flags.DEFINE_string("dataset", "", "With classes, or pairs:FILE for retrieval.", flag_values=values)
    flags.DEFINE_string("data_dir", "", "Folder of the data set's files.", flag_values=values)
    flags.DEFINE_enum(
        "split", "test", ("train", "validation", "test"), "Which part of it.", flag_values=values
    )
    flags.DEFINE_string(
        "templates",
        _TEMPLATES,
        "Sentences with {} for a class, | between them; their mean counts.",
        flag_values=values,
    )
    flags.DEFINE_integer("batch", 256, "Images, or texts, at a time.", lower_bound=1, flag_values=values)
    extra = command.parse_flags(values, argv)
    flag = {name: values[name].value for name in values}
    fine = bool(flag["checkpoint"]) != bool(flag["weights"]) and bool(flag["vocab"] and flag["dataset"])
    command.require_usage(
        extra, fine, "--checkpoint (or --weights with --model), --vocab and --dataset are needed"
    )
    templates = [one.strip() for one in flag["templates"].split("|") if one.strip()]
    if not templates or any(one.count("{}") != 1 for one in templates):
        raise UserError(f"--templates={flag['templates']!r}: each sentence needs one {{}} for the class")
    return _known(flag, templates)


def _known(flag: dict[str, Any], templates: list[str]) -> dict[str, object]:
    # Imported late: --help answers without starting JAX.
    from pathlib import Path

    from serving import tokenise
    from trainer.data.datasets import open_dataset, open_pairs
    from trainer.data.pairs import KIND
    from trainer.embedding import Embedder, classified, recalls
    from trainer.interval import wilson
    from trainer.weights import asked

    path, vocab = flag["checkpoint"] or flag["weights"], Path(flag["vocab"])
    pair = Embedder.of(asked.load(path, flag["model"]), path, flag["batch"])
    tokens = tokenise.spec_of(vocab, pair.model.text.max_tokens)
    said: dict[str, object] = {"weights": path, "dataset": flag["dataset"], "split": flag["split"]}
    if flag["dataset"].startswith(KIND):
        split = getattr(open_pairs(flag["dataset"], tokens, vocab), flag["split"])
        return {
            **said,
            "pairs": len(split),
            **recalls(pair.images(split), pair.texts(split.labels), split.labels),
        }
    data = open_dataset(flag["dataset"], flag["data_dir"])
    split = getattr(data, flag["split"])
    sentences = [[template.replace("{}", name) for name in data.class_names] for template in templates]
    classes = [pair.texts(tokenise.tokenise(one, tokens, vocab)) for one in sentences]
    top1 = classified(pair.images(split), classes, split.labels)
    low, high = wilson(top1, len(split))
    return {
        **said,
        "examples": len(split),
        "templates": templates,
        "top1": top1,
        "top1_low": low,
        "top1_high": high,
    }


if __name__ == "__main__":
    command.run_command(main, extra="train")
