"""Preprocessing: what becomes of every kind of picture, and which are refused before they cost anything."""

import dataclasses
import io
import json
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from serving import preprocess
from serving.bundle import spec_from_proto, spec_to_proto
from serving.preprocess import ImageError, PreprocessSpec, decode, fit, normalise, prepare

GREY = PreprocessSpec(color="L", height=8, width=8, mean=(127.5,), std=(127.5,))
COLOUR = PreprocessSpec(
    color="RGB",
    height=8,
    width=8,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)
# The eight positions of EXIF, and what an upright picture went through to be stored so.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def picture_of(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def with_size(spec: PreprocessSpec, height: int, width: int, **changes: Any) -> PreprocessSpec:
    return dataclasses.replace(spec, height=height, width=width, **changes)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("size", [(8, 8), (13, 29), (29, 13), (3, 3)])
def test_an_array_and_its_lossless_png_give_the_same_bytes(
    spec: PreprocessSpec, method: Any, resize: Any, size: tuple[int, int]
) -> None:
    for crop_fraction in (1.0, 0.875):
        spec = dataclasses.replace(spec, method=method, resize=resize, crop_fraction=crop_fraction)
        pixels = noise(*size, spec.channels)
        from_png = fit(decode(saved(picture_of(pixels)), spec), spec)
        from_array = fit(pixels, spec)
        assert from_png.dtype == np.uint8
        assert from_array.shape == (8, 8, spec.channels)
        np.testing.assert_array_equal(from_png, from_array, strict=True)


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_picture_stands_upright_as_its_exif_says(orientation: int, kind: str) -> None:
    upright = Image.fromarray(noise(5, 7, 3))
    turned = STORED_AS[orientation]
    stored = upright if turned is None else upright.transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(saved(stored, kind, exif=exif), COLOUR), np.asarray(upright))


def test_a_photograph_lying_on_its_side_is_turned() -> None:
    upright = Image.new("RGB", (16, 32), "black")
    upright.paste("red", (0, 0, 16, 16))  # its upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(
        saved(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif), COLOUR
    )
    assert pixels.shape == (32, 16, 3)
    assert pixels[:14, :, 0].min() > 200
    assert pixels[18:, :, 0].max() < 50


def test_a_palette_picture_has_the_colours_of_its_palette() -> None:
    pixels = noise(6, 6, 3, seed=1) // 64 * 64
    drawn = Image.fromarray(pixels).quantize(64)
    np.testing.assert_array_equal(decode(saved(drawn), COLOUR), np.asarray(drawn.convert("RGB")))


def test_transparency_shows_black_behind_it() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(200, 100, 50, 255), (200, 100, 50, 0), (200, 100, 50, 128)]
    np.testing.assert_array_equal(
        decode(saved(Image.fromarray(pixels)), COLOUR)[0], [(200, 100, 50), (0, 0, 0), (100, 50, 25)]
    )


def test_transparency_of_grey_and_of_a_palette_show_black_too() -> None:
    grey = Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(decode(saved(grey), GREY)[0, :, 0], [200, 0])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 200, 200])
    np.testing.assert_array_equal(
        decode(saved(palette, transparency=1), COLOUR)[0], [(10, 20, 30), (0, 0, 0)]
    )


def test_a_colour_named_transparent_shows_black() -> None:
    pixels = np.array([[[9, 9, 9], [255, 255, 255]]], np.uint8)
    encoded = saved(Image.fromarray(pixels), transparency=(255, 255, 255))
    np.testing.assert_array_equal(decode(encoded, COLOUR)[0], [(9, 9, 9), (0, 0, 0)])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_a_pixel_are_scaled_to_8_and_not_clipped(kind: str) -> None:
    deep = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    np.testing.assert_array_equal(
        decode(saved(Image.fromarray(deep), kind), GREY)[0, :, 0], [0, 0, 1, 127, 128, 255]
    )


def test_values_beyond_16_bits_do_not_wrap_around() -> None:
    deep = np.array([[-1, 0, 0xFFFF, 0x10000, 2**31 - 1]], np.int32)
    np.testing.assert_array_equal(
        decode(saved(Image.fromarray(deep), "TIFF"), GREY)[0, :, 0], [0, 0, 255, 255, 255]
    )


def test_one_bit_a_pixel_is_black_and_white() -> None:
    encoded = saved(Image.fromarray(np.array([[True, False]])))
    np.testing.assert_array_equal(decode(encoded, GREY)[0, :, 0], [255, 0])


@pytest.mark.parametrize(("spec", "kind"), [(COLOUR, "TIFF"), (COLOUR, "JPEG"), (GREY, "TIFF")])
def test_inks_become_light(spec: PreprocessSpec, kind: str) -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    pixels = decode(saved(inks, kind), spec)
    wanted = [255, 0, 0] if spec is COLOUR else [76]  # 0.299 of 255, as luma weighs red
    assert np.abs(pixels.astype(int) - wanted).max() <= 1  # JPEG rounds


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    encoded = saved(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    np.testing.assert_array_equal(decode(encoded, COLOUR), np.asarray(frames[0]))


def test_grey_and_colour_become_what_the_spec_asks_for() -> None:
    grey, colour = noise(4, 4, 1), noise(4, 4, 3)
    np.testing.assert_array_equal(decode(saved(picture_of(grey)), COLOUR), np.repeat(grey, 3, axis=2))
    luma = np.asarray(ImageOps.grayscale(Image.fromarray(colour)))[..., None]
    np.testing.assert_array_equal(decode(saved(picture_of(colour)), GREY), luma)


WHOLE = saved(Image.fromarray(noise(20, 20, 3)))
UNDECODABLE = {
    "nothing": b"",
    "text": b"not a picture",
    "a header alone": WHOLE[:40],
    "cut in the middle": WHOLE[: len(WHOLE) // 2],
    "altered in the middle": WHOLE[:60] + b"\x00" * 40 + WHOLE[100:],
    "half a JPEG": saved(Image.fromarray(noise(64, 64, 3)), "JPEG")[:600],
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("case", UNDECODABLE)
def test_bytes_that_are_no_whole_picture_are_refused_in_one_line(case: str) -> None:
    encoded = UNDECODABLE[case]
    with pytest.raises(
        ImageError, match=rf"^the bytes \({len(encoded)}\) are no image that can be decoded: \w+$"
    ):
        decode(encoded, COLOUR)


def test_a_format_that_would_start_a_program_is_not_looked_at() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(postscript)) as known:  # Pillow would
        assert known.format == "EPS"
    with pytest.raises(ImageError, match="UnidentifiedImageError"):
        decode(postscript, GREY)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels and whose data is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (10_000, 9_000), (50_000_001, 1), (7_072, 7_072)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_enormous_dimensions_are_refused_from_the_header(width: int, height: int) -> None:
    encoded = png_that_claims(width, height)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"at most 50000000( pixels)? are taken; send a smaller one$"):
            decode(encoded, COLOUR)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_the_limit_of_pixels_is_taken_and_one_more_is_not() -> None:
    encoded = saved(Image.fromarray(noise(10, 10)))
    assert decode(encoded, GREY, max_pixels=100).shape == (10, 10, 1)
    with pytest.raises(ImageError, match="has 10 x 10 pixels, at most 99 are taken"):
        decode(encoded, GREY, max_pixels=99)


def test_an_image_of_other_channels_does_not_fit() -> None:
    with pytest.raises(ImageError, match="has 3 channels, L asks for 1"):
        fit(noise(8, 8, 3), GREY)
    for channels in (2, 4):
        with pytest.raises(ImageError, match=f"has {channels} channels, RGB asks for 3"):
            fit(noise(8, 8, channels), COLOUR)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(8, 8), (13, 29), (3, 3)])
def test_a_grey_array_becomes_colour_as_its_png_does(
    size: tuple[int, int], method: Any, resize: Any, antialias: bool
) -> None:
    grey = noise(*size, 1)
    spec = dataclasses.replace(COLOUR, method=method, resize=resize, antialias=antialias)
    from_png = fit(decode(saved(picture_of(grey)), spec), spec)
    np.testing.assert_array_equal(fit(grey, spec), from_png, strict=True)


def stripes(height: int, width: int) -> np.ndarray:
    """Left third black, middle grey, right third white."""
    row = np.repeat(np.array([0, 128, 255], np.uint8), width // 3)
    return np.broadcast_to(row[None, :, None], (height, width, 1)).copy()


def test_squash_shows_the_whole_picture_and_bends_it() -> None:
    squashed = fit(stripes(8, 24), with_size(GREY, 8, 9, method="nearest"))
    np.testing.assert_array_equal(squashed[0, :, 0], [0, 0, 0, 128, 128, 128, 255, 255, 255])


def test_crop_shows_the_middle_and_bends_nothing() -> None:
    cropped = fit(stripes(8, 24), with_size(GREY, 8, 8, resize="crop"))
    assert set(np.unique(cropped)) == {128}
    tall = fit(stripes(24, 24).transpose(1, 0, 2)[:, :8], with_size(GREY, 8, 8, resize="crop"))
    assert set(np.unique(tall)) == {128}


def test_crop_takes_the_part_of_the_smaller_side_that_the_spec_says() -> None:
    frame = np.zeros((32, 32, 1), np.uint8)
    frame[8:24, 8:24] = 255
    half = fit(frame, with_size(GREY, 16, 16, resize="crop", crop_fraction=0.5, method="nearest"))
    assert half.min() == 255
    whole = fit(frame, with_size(GREY, 16, 16, resize="crop", method="nearest"))
    assert whole[0, 0, 0] == 0
    # 224 of 256, as ImageNet models are evaluated: 16 pixels go at each side.
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(256, axis=0)
    cropped = fit(ramp, with_size(GREY, 224, 224, resize="crop", crop_fraction=224 / 256))
    np.testing.assert_array_equal(cropped[0, :, 0], np.arange(16, 240))


def test_crop_of_an_odd_rest_leaves_the_larger_part_at_the_end() -> None:
    ramp = np.arange(11, dtype=np.uint8)[None, :, None].repeat(8, axis=0)
    np.testing.assert_array_equal(fit(ramp, with_size(GREY, 8, 8, resize="crop"))[0, :, 0], np.arange(1, 9))


def test_crop_to_a_rectangle_covers_it() -> None:
    spec = with_size(GREY, 8, 16, resize="crop")
    for size in ((10, 10), (100, 7), (7, 100), (8, 16)):
        assert fit(noise(*size, 1), spec).shape == (8, 16, 1)


def test_a_sliver_that_crop_would_blow_up_beyond_the_limit_is_refused() -> None:
    spec = with_size(GREY, 224, 224, resize="crop")
    with pytest.raises(ImageError, match="1 x 2000 pixels is too narrow to be cropped"):
        fit(noise(2000, 1, 1), spec)
    assert fit(noise(900, 1, 1), spec).shape == (224, 224, 1)
    assert fit(noise(2000, 1, 1), with_size(GREY, 224, 224)).shape == (
        224,
        224,
        1,
    )  # squash needs no more than the result


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    pixels = noise(8, 8, 1)
    for resize in ("squash", "crop"):
        np.testing.assert_array_equal(fit(pixels, dataclasses.replace(GREY, resize=resize)), pixels)


def test_an_image_of_the_right_size_is_still_cropped_where_only_a_part_is_asked_for() -> None:
    frame = np.zeros((8, 8, 1), np.uint8)
    frame[2:6, 2:6] = 255
    part = with_size(GREY, 8, 8, resize="crop", crop_fraction=0.5, method="nearest")
    assert fit(frame, part).min() == 255


PLAIN = with_size(GREY, 1, 2, antialias=False)


def test_without_antialias_a_new_pixel_is_read_between_two_old_ones() -> None:
    # 5 → 2: centres at 0.75 and 3.25 of the old row; 0.25 · 10 + 0.75 · 31 = 25.75 and 0.75 · 100 + 0.25 · 7 = 76.75.
    row = np.array([[10, 31, 255, 100, 7]], np.uint8)[..., None]
    np.testing.assert_array_equal(fit(row, PLAIN)[0, :, 0], [26, 77])


def test_rounding_down_cuts_off_what_is_behind_the_point() -> None:
    row = np.array([[10, 31, 255, 100, 7]], np.uint8)[..., None]
    np.testing.assert_array_equal(fit(row, dataclasses.replace(PLAIN, rounding="down"))[0, :, 0], [25, 76])


def test_rounding_down_leaves_an_even_area_as_it_is() -> None:
    for value in range(256):
        even = np.full((13, 11, 1), value, np.uint8)
        spec = with_size(GREY, 7, 9, antialias=False, rounding="down")
        assert set(np.unique(fit(even, spec))) == {value}


def test_values_that_a_cubic_throws_beyond_the_scale_are_held_at_its_ends() -> None:
    edge = np.repeat(np.array([0, 0, 255, 255], np.uint8), 2)[None, :, None]
    cubic = fit(edge, with_size(GREY, 1, 23, method="bicubic", antialias=False))[0, :, 0]
    assert (np.diff(cubic.astype(int)) >= 0).all()  # one that wrapped around would fall
    assert (cubic[0], cubic[-1]) == (0, 255)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (5, 9)])
def test_a_crop_without_antialias_is_the_middle_of_the_whole_resized_picture(
    size: tuple[int, int], method: Any
) -> None:
    pixels = noise(*size, 3)
    cropped = with_size(COLOUR, 16, 16, resize="crop", method=method, antialias=False, crop_fraction=0.8)
    scale = 20 / min(size)
    height, width = (round(side * scale) for side in size)
    whole = fit(pixels, with_size(COLOUR, height, width, method=method, antialias=False))
    top, left = (height - 16) // 2, (width - 16) // 2
    np.testing.assert_array_equal(fit(pixels, cropped), whole[top : top + 16, left : left + 16])


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_normalise_is_the_trainers_within_float32(spec: PreprocessSpec) -> None:
    import jax.numpy as jnp

    from trainer import step

    every = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(spec.channels, axis=-1)
    ours, theirs = normalise(every, spec), np.asarray(step.normalise(jnp.asarray(every), spec))
    assert ours.dtype == theirs.dtype == np.float32
    # One subtraction and one division; a compiler may divide by multiplying with the inverse, which rounds once more.
    np.testing.assert_array_max_ulp(ours, theirs, maxulp=2)


def test_normalise_is_the_formula_of_the_spec() -> None:
    pixels: np.ndarray = np.array([[[0, 128, 255]]], np.uint8)
    values = normalise(pixels, COLOUR)
    exact = [(x - mean) / std for x, mean, std in zip((0, 128, 255), COLOUR.mean, COLOUR.std, strict=True)]
    np.testing.assert_allclose(values[0, 0], exact, rtol=1e-6)  # float32 has 7 digits


def test_prepare_gives_the_images_in_their_order() -> None:
    pictures = [noise(9, 9, 3, seed=seed) for seed in range(3)]
    batch = prepare([saved(picture_of(pixels)) for pixels in pictures], COLOUR)
    assert batch.shape == (3, 8, 8, 3)
    assert batch.dtype == np.float32
    for row, pixels in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(row, normalise(fit(pixels, COLOUR), COLOUR))


def test_prepare_says_which_image_cannot_be_taken() -> None:
    with pytest.raises(ImageError, match=r"^image 1: the bytes \(3\) are no image"):
        prepare([WHOLE, b"bad", WHOLE], COLOUR)


ODD = PreprocessSpec(
    color="RGB",
    height=3,
    width=5,
    mean=(0.1, 1 / 3, 0.0),
    std=(0.2, 1e-3, 255.0),
    resize="crop",
    method="nearest",
    antialias=False,
    crop_fraction=0.875,
    rounding="down",
)


@pytest.mark.parametrize("spec", [GREY, COLOUR, ODD], ids=["grey", "colour", "odd"])
def test_a_spec_survives_json_and_the_manifest_exactly(spec: PreprocessSpec) -> None:
    assert PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec_from_proto(spec_to_proto(spec)) == spec
    assert type(spec).from_json(spec.to_json()).mean == spec.mean


def test_the_manifest_has_a_field_for_everything_in_a_spec() -> None:
    from protos import bundle_pb2

    fields = {field.name for field in bundle_pb2.Preprocessing.DESCRIPTOR.fields}
    assert fields == {field.name for field in dataclasses.fields(PreprocessSpec)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"color": "CMYK"}, "color is L or RGB"),
        ({"resize": "stretch"}, "resize squash or crop"),
        ({"method": "hamming"}, "method one of nearest, bilinear, bicubic, lanczos"),
        ({"height": 0}, "sizes are positive"),
        ({"width": -1}, "sizes are positive"),
        ({"crop_fraction": 0.0}, "crop_fraction in (0, 1]"),
        ({"crop_fraction": 1.1}, "crop_fraction in (0, 1]"),
        ({"crop_fraction": float("nan")}, "crop_fraction in (0, 1]"),
        ({"layout": "NCHW"}, "layout NHWC"),
        ({"mean": (1.0, 2.0)}, "need 1 finite values"),
        ({"std": ()}, "need 1 finite values"),
        ({"std": (0.0,)}, "std none of 0"),
        ({"std": (float("nan"),)}, "need 1 finite values"),
        ({"mean": (float("inf"),)}, "need 1 finite values"),
        (
            {"antialias": False, "method": "lanczos"},
            "antialias=False is offered with nearest, bilinear and bicubic",
        ),
        ({"rounding": "up"}, "rounding is nearest, or down with antialias=False"),
        ({"rounding": "down"}, "rounding is nearest, or down with antialias=False"),
    ],
    ids=str,
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match="PreprocessSpec") as refused:
        dataclasses.replace(GREY, **changes)
    assert named in str(refused.value)


def test_only_formats_that_this_pillow_has_are_offered() -> None:
    Image.init()
    assert set(preprocess.FORMATS) <= set(Image.OPEN)
