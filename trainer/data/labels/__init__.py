"""The names of ImageNet's classes, in the order of the heads that were published: what an index of a classifier means."""

import functools
from importlib import resources

_FILES = {1_000: "imagenet_1k.txt", 21_843: "imagenet_21k.txt"}


@functools.cache
def class_names(num_classes: int) -> tuple[str, ...]:
    """Names of the classes of an ImageNet head with so many outputs: of ImageNet-1k for 1,000, of ImageNet-21k for 21,843.

    A name holds all words that WordNet has for it ("tabby, tabby cat"); some classes share a name (134 and 517 are both "crane").
    Empty for any other number. Nothing says that a head of 1,000 is ImageNet's: ask only for weights known to be.
    """
    if num_classes not in _FILES:
        return ()
    lines = (resources.files(__name__) / _FILES[num_classes]).read_text(encoding="utf-8").splitlines()
    return tuple(line.partition("\t")[2] for line in lines)
