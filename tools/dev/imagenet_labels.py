"""Makes trainer/data/labels/*.txt from the lists that timm carries; its README says how to get them.

python -m tools.dev.imagenet_labels --timm_info=FOLDER
"""

from pathlib import Path

from absl import flags

from serving import command
from serving.command import UserError

_LABELS = Path(__file__).resolve().parents[2] / "trainer" / "data" / "labels"
_WORDS = "imagenet_synset_to_lemma.txt"
# Our file: timm's file of synset ids in the order of the head, and how many there must be.
_LISTS = {
    "imagenet_1k.txt": ("imagenet_synsets.txt", 1_000),
    "imagenet_21k.txt": ("imagenet21k_goog_synsets.txt", 21_843),
}


def main(argv: list[str]) -> dict[str, object]:
    """Writes both files; the result holds their paths."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "timm_info", "", "The folder timm/data/_info of an unpacked timm wheel.", flag_values=values
    )
    command.require_usage(command.parse_flags(values, argv), True, "")
    folder = Path(values["timm_info"].value)
    words = dict(line.split("\t", 1) for line in _lines(folder / _WORDS))
    written = []
    for name, (source, count) in _LISTS.items():
        synsets = _lines(folder / source)
        if len(synsets) != count or set(synsets) - set(words):
            raise UserError(
                f"{folder / source} has {len(synsets)} synsets, {count} with words are wanted; take timm 1.0.31"
            )
        (_LABELS / name).write_text(
            "".join(f"{synset}\t{words[synset]}\n" for synset in synsets), encoding="utf-8"
        )
        written.append(str(_LABELS / name))
    return {"written": written}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error}); give timm/data/_info as --timm_info") from error


if __name__ == "__main__":
    command.run_command(main)
