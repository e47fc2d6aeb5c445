"""The model description: names, sizes, what it costs, and its round trip through JSON."""

import dataclasses
import json

import pytest

from serving.command import UserError
from trainer import description
from trainer.description import Block, Model, Stem, TextTower, ViT, require_vit

# Parameters at 224 px with 1,000 classes, as the published code counts them.
PUBLISHED_PARAMS = {
    "ViT-Ti_16": 5_717_416,
    "ViT-S_16": 22_050_664,
    "ViT-S_32": 22_878_952,
    "ViT-B_16": 86_567_656,
    "ViT-B_32": 88_224_232,
    "ViT-L_16": 304_326_632,
    "ViT-L_32": 306_535_400,
    "ViT-H_14": 632_045_800,
    "ViT-S_16-gap-norep": 22_049_896,
    "ViT-S_32-gap-norep": 22_878_184,
    "ViT-B_16-gap-norep": 86_566_120,
    "ViT-B_32-gap-norep": 88_222_696,
    "R+ViT-Ti_16": 6_337_704,
    "R26+ViT-S_32": 36_431_912,
    "R26+ViT-B_32": 101_383_976,
    "R50+ViT-B_16": 98_659_112,
    "R50+ViT-L_32": 328_994_856,
}
# Published too, with no published MACs here; DeiT's are timm's counts.
ALSO_PUBLISHED_PARAMS = {
    "ViT-B_8": 86_576_872,
    "DeiT-Ti_16": 5_717_416,
    "DeiT-S_16": 22_050_664,
    "DeiT-B_16": 86_567_656,
    "DeiT-Ti_16-distilled": 5_910_800,
    "DeiT-S_16-distilled": 22_436_432,
    "DeiT-B_16-distilled": 87_338_192,
    "Mixer-B_16": 59_880_472,
    "Mixer-B_32": 60_293_428,
    "Mixer-L_16": 208_196_168,
    "LiT-B16B": 195_871_489,
    "LiT-B16B_2": 195_280_897,
    "LiT-L16L": 638_443_521,
    "LiT-L16S": 331_140_353,
    "LiT-L16Ti": 311_913_089,
}
# GMACs at 224 and 384 px, rounded as the table that they come from.
PUBLISHED_GMACS = {
    "ViT-Ti_16": (1.25, 4.68),
    "ViT-S_16": (4.60, 15.49),
    "ViT-S_32": (1.14, 3.44),
    "ViT-B_16": (17.56, 55.48),
    "ViT-B_32": (4.41, 13.04),
    "ViT-L_16": (61.55, 191.07),
    "ViT-L_32": (15.38, 45.28),
    "ViT-H_14": (167.3, 503.5),
    "ViT-S_16-gap-norep": (4.57, 15.46),
    "ViT-S_32-gap-norep": (1.12, 3.42),
    "ViT-B_16-gap-norep": (17.47, 55.38),
    "ViT-B_32-gap-norep": (4.32, 12.95),
    "R+ViT-Ti_16": (0.43, 1.33),
    "R26+ViT-S_32": (3.46, 10.26),
    "R26+ViT-B_32": (6.71, 19.81),
    "R50+ViT-B_16": (21.54, 67.16),
    "R50+ViT-L_32": (19.41, 57.14),
}
OURS = {"ViT-digits", "ViT-fashion", "ViT-fashion_4", "ViT-fashion_4-large"}
SMALL = ViT((8, 8), 1, 4, 16, (Block(2, 3, 5, 7), Block(0, 0, 0, 4), Block(1, 2, 2, 0)), 10)


def at(name: str, pixels: int) -> ViT:
    return require_vit(description.named(name, (pixels, pixels), 3, 1000), "this test")


def test_every_named_variant_is_either_ours_or_checked_against_the_published_counts() -> None:
    assert set(description.variant_names()) == OURS | PUBLISHED_PARAMS.keys() | ALSO_PUBLISHED_PARAMS.keys()
    assert PUBLISHED_PARAMS.keys() == PUBLISHED_GMACS.keys()


@pytest.mark.parametrize(("name", "params"), (PUBLISHED_PARAMS | ALSO_PUBLISHED_PARAMS).items())
def test_a_published_variant_has_the_published_number_of_parameters(name: str, params: int) -> None:
    assert description.param_count(description.named(name, (224, 224), 3, 1000)) == params


@pytest.mark.parametrize("name", PUBLISHED_GMACS)
@pytest.mark.parametrize(("column", "pixels"), [(0, 224), (1, 384)])
def test_a_published_variant_needs_the_published_macs(name: str, column: int, pixels: int) -> None:
    published = PUBLISHED_GMACS[name][column]
    # The table is rounded: to hundredths of a GMAC, and to tenths for H.
    rounding = 0.05 if name == "ViT-H_14" else 0.005
    # 1e-9 above the half of the last digit, for the rounding of the subtraction itself.
    assert abs(description.macs(at(name, pixels)) / 1e9 - published) <= rounding + 1e-9


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_a_published_variant_has_the_published_conventions(name: str) -> None:
    model = at(name, 224)
    pooling = "gap" if "gap" in name else "cls"
    assert (model.pooling, model.gelu, model.norm_eps) == (pooling, "tanh", 1e-6)


def test_pixels_that_fill_no_patch_are_not_seen() -> None:
    model = at("ViT-H_14", 384)
    assert (model.num_patches, model.num_tokens) == (27 * 27, 27 * 27 + 1)


@pytest.mark.parametrize("spelling", ["ViT-Ti_16", "Ti_16", "Ti/16", "vit-ti/16", "ViT_Ti-16", "ti16"])
def test_a_variant_is_known_by_every_usual_spelling(spelling: str) -> None:
    assert at(spelling, 224) == at("ViT-Ti_16", 224)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("R_Ti_16", "R+ViT-Ti_16"),
        ("R+Ti/16", "R+ViT-Ti_16"),
        ("R26_S_32", "R26+ViT-S_32"),
        ("R50+ViT-L_32", "R50+ViT-L_32"),
        ("S_16-gap-norep", "ViT-S_16-gap-norep"),
        ("mixer_b16_224", "Mixer-B_16"),
        ("vit_tiny_patch16_224", "ViT-Ti_16"),
        ("vit_large_patch32_384", "ViT-L_32"),
        ("deit_tiny_distilled_patch16_224", "DeiT-Ti_16-distilled"),
        ("L16Ti", "LiT-L16Ti"),
        ("vit_tiny_r_s16_p8_224", "R+ViT-Ti_16"),
        ("vit_small_r26_s32_384", "R26+ViT-S_32"),
        ("vit_large_r50_s32_224.augreg_in21k", "R50+ViT-L_32"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "ViT-B_16"),
        ("vit_huge_patch14_224_in21k", "ViT-H_14"),
        ("google/vit-base-patch16-224-in21k", "ViT-B_16"),
        ("facebook/deit-tiny-patch16-224", "DeiT-Ti_16"),
        ("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "ViT-Ti_16"),
        ("lit-b16b_2", "LiT-B16B_2"),
    ],
)
def test_names_of_other_projects_and_shortened_names_are_known_too(spelling: str, name: str) -> None:
    assert description.named(spelling, (224, 224), 3, 1000) == description.named(name, (224, 224), 3, 1000)


def test_no_two_variants_share_a_spelling() -> None:
    models = [description.named(name, (224, 224), 3, 1000) for name in description.variant_names()]
    assert len(set(models)) == len(models)


def test_an_unknown_variant_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown model 'ViT-Tj_16'; nearest is 'ViT-Ti_16'"):
        at("ViT-Tj_16", 224)


def test_images_channels_and_classes_come_from_the_data() -> None:
    model = description.named("ViT-digits", (16, 16), 1, 10)
    assert (model.image_size, model.channels, model.num_classes) == ((16, 16), 1, 10)


def test_the_macs_of_a_small_model_are_those_counted_by_hand() -> None:
    tokens, width = 5, 16
    patches = 4 * (4 * 4 * 1) * width
    first = (
        tokens * width * (2 * 3 + 2 * 3 + 2 * 5 + 2 * 5) + tokens**2 * 2 * (3 + 5) + tokens * 2 * width * 7
    )
    second = tokens * 2 * width * 4
    third = tokens * width * (2 + 2 + 2 + 2) + tokens**2 * (2 + 2)
    assert description.macs(SMALL) == patches + first + second + third + width * 10


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        at("Ti_16", 224),
        dataclasses.replace(SMALL, pooling="gap", gelu="erf", norm_eps=1e-5, blocks=()),
        *(description.named(name, (224, 224), 3, 1000) for name in description.variant_names()),
    ],
)
def test_a_description_comes_back_from_json_as_it_was(model: Model) -> None:
    assert description.from_json(json.loads(json.dumps(description.to_json(model)))) == model


def test_a_model_that_merges_tokens_comes_back_from_json_and_one_that_does_not_is_written_as_ever() -> None:
    merging = dataclasses.replace(SMALL, blocks=(Block(2, 3, 5, 7, merge=2), *SMALL.blocks[1:]))
    assert description.from_json(json.loads(json.dumps(description.to_json(merging)))) == merging
    written = description.to_json(SMALL)["blocks"]
    assert all(set(block) == {"num_heads", "qk_dim", "v_dim", "mlp_dim"} for block in written)


def test_every_merged_pair_is_a_token_less_for_all_that_follows() -> None:
    blocks = tuple(dataclasses.replace(block, merge=count) for block, count in zip(SMALL.blocks, (2, 0, 1)))
    assert dataclasses.replace(SMALL, blocks=blocks).tokens_by_block == (5, 3, 3, 2)
    assert SMALL.tokens_by_block == (5, 5, 5, 5)


def test_a_text_tower_merges_nothing() -> None:
    with pytest.raises(UserError, match="text tower merge no tokens"):
        TextTower("transformer", 50, 6, 6, 16, (Block(2, 4, 4, 8, merge=1),), 12)


def test_a_description_whose_integers_became_floats_on_the_way_comes_back_as_it_was() -> None:
    model = description.named("R26+S/32", (224, 224), 3, 1000)
    through_protobuf = json.loads(json.dumps(description.to_json(model)), parse_int=float)
    assert description.from_json({**through_protobuf, "schema_version": 1}) == model


def test_a_description_that_comes_back_from_json_can_still_be_hashed() -> None:
    assert hash(description.from_json(description.to_json(SMALL))) == hash(SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"kind": "swin"}, "kind 'swin'"),
        ({"kind": "mixer"}, "damaged"),
        ({"width": None}, "damaged"),
        ({"width": "wide"}, "damaged"),
        ({"blocks": 3}, "damaged"),
        ({"blocks": [{"num_heads": 1}]}, "damaged"),
        ({"image_size": [8]}, "damaged"),
        ({"depth": 3}, "damaged"),
        ({"pooling": "map"}, "pooling 'map'"),
    ],
)
def test_a_foreign_or_damaged_description_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        description.from_json({**description.to_json(SMALL), **change})


@pytest.mark.parametrize("name", ["schema_version", "kind", "width", "blocks", "image_size"])
def test_a_description_with_a_missing_field_is_refused(name: str) -> None:
    value = description.to_json(SMALL)
    del value[name]
    with pytest.raises(UserError, match=r"cannot be read|damaged"):
        description.from_json(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (3, 8)}, "smaller than one patch"),
        ({"image_size": (8, 0)}, "smaller than one patch"),
        ({"width": 0}, "width"),
        ({"channels": 0}, "channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"patch_size": 0}, "patch_size"),
        ({"gelu": "relu"}, "gelu"),
        ({"blocks": (Block(2, 4, 4, 8), Block(2, 4, 0, 8))}, "block 1 has impossible sizes"),
        ({"blocks": (Block(2, 0, 4, 8),)}, "block 0 has impossible sizes"),
        ({"blocks": (Block(0, 4, 4, 8),)}, "block 0 has impossible sizes"),
        ({"blocks": (Block(0, 4, 0, 8),)}, "block 0 has impossible sizes"),
        ({"blocks": (Block(2, 4, 4, -8),)}, "block 0 has impossible sizes"),
        ({"blocks": (Block(2, 4, 4, 8, -1),)}, "block 0 has impossible sizes"),
        ({"blocks": (Block(0, 0, 0, 8, 1),)}, "block 0 has no attention, by whose keys"),
        ({"blocks": (Block(2, 4, 4, 8, 3),)}, "block 0 merges 3 pairs of its 4 patches; at most 2 can be"),
        (
            {"blocks": (Block(2, 4, 4, 8, 2),) * 2},
            "block 1 merges 2 pairs of its 2 patches; at most 1 can be",
        ),
        ({"distilled": True, "pooling": "gap"}, "pooling must be cls"),
        ({"stem": Stem(64, ())}, "of which the stem leaves"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [0, 16, 48])
def test_a_stem_that_group_norm_cannot_divide_is_refused(width: int) -> None:
    with pytest.raises(UserError, match="32 groups"):
        Stem(width, ())


@pytest.mark.parametrize(
    ("name", "grid"), [("R_Ti_16", (7, 7)), ("R26+S/32", (7, 7)), ("R50+B/16", (14, 14))]
)
def test_a_hybrid_has_the_tokens_that_its_stem_leaves(name: str, grid: tuple[int, int]) -> None:
    assert at(name, 224).grid == grid


@pytest.mark.parametrize("name", ["Mixer-B_16", "LiT-L16Ti"])
def test_what_takes_a_vit_refuses_other_models_by_kind(name: str) -> None:
    model = description.named(name, (224, 224), 3, 1000)
    with pytest.raises(UserError, match=f"of kind '{model.kind}'; compression takes a ViT"):
        require_vit(model, "compression")
