"""The names of ImageNet's classes: the order of published heads, and that an installation carries them."""

import pytest

from tests.support.servers import ROOT
from trainer.data.labels import class_names

FILES = {1_000: "imagenet_1k.txt", 21_843: "imagenet_21k.txt"}


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "tench, Tinca tinca"),
        (207, "golden retriever"),
        (281, "tabby, tabby cat"),
        (999, "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_imagenet_1k_has_the_order_that_everybody_knows(index: int, name: str) -> None:
    assert class_names(1000)[index] == name


@pytest.mark.parametrize("index_and_name", [(0, "organism, being"), (1, "benthos"), (21_842, "knothole")])
def test_imagenet_21k_begins_and_ends_as_the_published_heads_do(index_and_name: tuple[int, str]) -> None:
    index, name = index_and_name
    assert class_names(21_843)[index] == name


@pytest.mark.parametrize("count", FILES)
def test_every_class_has_a_name_and_a_synset_of_its_own(count: int) -> None:
    lines = (ROOT / "trainer" / "data" / "labels" / FILES[count]).read_text().splitlines()
    synsets = [line.split("\t")[0] for line in lines]
    assert len(class_names(count)) == len(set(synsets)) == count
    assert all(len(synset) == 9 and synset[0] == "n" and synset[1:].isdecimal() for synset in synsets)
    assert synsets == sorted(synsets)
    assert all(name and name == name.strip() for name in class_names(count))


@pytest.mark.parametrize("count", [0, 10, 999, 1001, 21_841])
def test_other_heads_have_no_names(count: int) -> None:
    assert class_names(count) == ()


def test_the_names_stand_under_a_licence_that_travels_with_them() -> None:
    assert "Princeton University" in (ROOT / "trainer" / "data" / "labels" / "LICENSE.wordnet").read_text()
