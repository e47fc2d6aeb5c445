"""Digits with captions, as a file of pairs beside its pictures and a vocabulary."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.datasets import open_dataset

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONS = ("a photo of the digit {}.", "the number {}", "{} written by hand")
_BEGINNINGS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_classes(folder: Path, count: int = 100) -> Path:
    """The first `count` test digits, in colours, in a folder for each whose name is its word."""
    data = open_dataset("digits").test
    for index in range(count):
        path = folder / WORDS[data.labels[index]] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(np.asarray(data.images[index]), 3, axis=-1)).save(path)
    return folder


def write_pairs(folder: Path, count: int = 600) -> tuple[Path, Path]:
    """(pairs.jsonl, vocab.txt) of the first `count` training digits, in colours, with captions by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    data = open_dataset("digits").train
    lines = []
    for index in range(count):
        image = np.repeat(np.asarray(data.images[index]), 3, axis=-1)
        Image.fromarray(image).save(folder / f"{index:04d}.png")
        caption = CAPTIONS[index % len(CAPTIONS)].format(WORDS[data.labels[index]])
        lines.append(json.dumps({"image": f"{index:04d}.png", "text": caption}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    said = sorted(
        {word for caption in CAPTIONS for word in caption.replace("{}", "").replace(".", "").split()}
    )
    (folder / "vocab.txt").write_text("\n".join([*_BEGINNINGS, ".", *said, *WORDS]) + "\n")
    return folder / "pairs.jsonl", folder / "vocab.txt"
