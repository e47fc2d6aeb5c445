"""From an encoded image to model input, as data says it: one small interpreter for evaluation, export and serving alike.

    bytes → decode → uint8 (H, W, C) → fit → uint8 (height, width, C) → normalise → float32

numpy and Pillow only; gRPC-free.
"""

import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from serving import interpolate

Array = np.ndarray[Any, np.dtype[Any]]
MAX_PIXELS = 50_000_000  # checked against the header, before a single pixel is decoded
# Formats that a stranger's bytes may have. Pillow knows more, and some are not for strangers: EPS starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

_METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_CHANNELS = {"L": 1, "RGB": 3}


class ImageError(ValueError):
    """Bytes that are no image, or too large a one; the message is one line for whoever sent them."""


@dataclasses.dataclass(frozen=True)
class PreprocessSpec:
    """How an image becomes model input.

    `resize`: "squash" to the size, or "crop": the smaller side to size / crop_fraction, then the centre.
    `antialias`: True as Pillow resizes, False as TensorFlow does by default (`interpolate.py`); "nearest" heeds it not.
    `rounding` of resized values to uint8: "nearest", or "down", which only models trained without antialias have seen.
    `mean` and `std` are per channel on the scale of 0 to 255: y = (x - mean) / std.
    """

    color: Literal["L", "RGB"]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["squash", "crop"] = "squash"
    method: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    crop_fraction: float = 1.0
    layout: Literal["NHWC"] = "NHWC"
    rounding: Literal["nearest", "down"] = "nearest"

    def __post_init__(self) -> None:
        if (
            self.color not in _CHANNELS
            or self.method not in _METHODS
            or self.resize not in ("squash", "crop")
        ):
            raise ValueError(
                f"{self}: color is L or RGB, resize squash or crop, method one of {', '.join(_METHODS)}"
            )
        if min(self.height, self.width) < 1 or not 0 < self.crop_fraction <= 1 or self.layout != "NHWC":
            raise ValueError(f"{self}: sizes are positive, crop_fraction in (0, 1], layout NHWC")
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != self.channels or len(self.std) != self.channels or 0 in self.std or not finite:
            raise ValueError(f"{self}: mean and std need {self.channels} finite values, std none of 0")
        if not self.antialias and self.method == "lanczos":
            raise ValueError(f"{self}: antialias=False is offered with nearest, bilinear and bicubic")
        if self.rounding not in ("nearest", "down") or (self.rounding == "down" and self.antialias):
            raise ValueError(f"{self}: rounding is nearest, or down with antialias=False")

    @property
    def channels(self) -> int:
        """C: 1 for grey, 3 for colour."""
        return _CHANNELS[self.color]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "PreprocessSpec":
        """The spec that `to_json` wrote."""
        return PreprocessSpec(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})


def decode(
    encoded: bytes,
    spec: PreprocessSpec,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = FORMATS,
) -> Array:
    """The image in `encoded` as uint8 (H, W, C): upright (EXIF), first frame, transparency on black, 16 bits scaled to 8.

    `formats` of None takes all that Pillow reads: for files of one's own alone.

    Raises:
      ImageError: when the bytes are no image of `formats`, or hold more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"the image has {width} x {height} pixels, at most {max_pixels} are taken; send a smaller one"
                )
            return _as_array(ImageOps.exif_transpose(image), spec)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, far above ours
        raise ImageError(
            f"the image is enormous ({error}), at most {max_pixels} pixels are taken; send a smaller one"
        ) from error
    except Exception as error:
        # Pillow's decoders raise many kinds for damaged files; each is the sender's to mend.
        raise ImageError(
            f"the bytes ({len(encoded)}) are no image that can be decoded: {type(error).__name__}"
        ) from error


def _as_array(image: Image.Image, spec: PreprocessSpec) -> Array:
    if image.mode.startswith("I"):  # 16 bits a pixel; convert("L") would clip instead of scale
        image = Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), coloured)
    pixels = np.asarray(image.convert(spec.color))
    return pixels.reshape(*pixels.shape[:2], spec.channels)


def fit(image: Array, spec: PreprocessSpec) -> Array:
    """uint8 (H, W, C) → uint8 (spec.height, spec.width, C) by the spec's resize. Grey becomes RGB where the spec asks for it.

    Raises:
      ImageError: when the image has other channels, or is so narrow that "crop" would first blow it up beyond MAX_PIXELS.
    """
    image = in_color(image, spec)
    if image.shape[:2] == (spec.height, spec.width) and spec.crop_fraction == 1:
        return image
    size, left, top = _placed(image.shape[1], image.shape[0], spec)
    if spec.antialias or spec.method == "nearest":
        return _by_pillow(image, spec, size, left, top)
    window = (left, top, spec.width, spec.height)
    values = interpolate.interpolate(image, (size[1], size[0]), window, spec.method)
    whole = np.floor(values) if spec.rounding == "down" else np.rint(values)
    return np.clip(whole, 0, 255).astype(np.uint8)


def in_color(image: Array, spec: PreprocessSpec) -> Array:
    """uint8 (H, W, C) in the channels of `spec`: grey becomes RGB where it asks for it.

    Raises:
      ImageError: when the image has other channels.
    """
    if image.shape[2] == 1 and spec.color == "RGB":
        image = np.repeat(image, 3, axis=2)
    if image.shape[2] != spec.channels:
        raise ImageError(f"the image has {image.shape[2]} channels, {spec.color} asks for {spec.channels}")
    return image


def _placed(width: int, height: int, spec: PreprocessSpec) -> tuple[tuple[int, int], int, int]:
    """What an image of this width and height is resized to, (width, height), and where the spec's window lies in it: left, top."""
    if spec.resize == "squash":
        return (spec.width, spec.height), 0, 0
    scale = max(spec.width / width, spec.height / height) / spec.crop_fraction
    size = (max(spec.width, round(width * scale)), max(spec.height, round(height * scale)))
    if size[0] * size[1] > MAX_PIXELS:
        shape = f"{width} x {height}"
        raise ImageError(
            f"an image of {shape} pixels is too narrow to be cropped to {spec.width} x {spec.height}; crop it first"
        )
    return size, (size[0] - spec.width) // 2, (size[1] - spec.height) // 2


def _by_pillow(image: Array, spec: PreprocessSpec, size: tuple[int, int], left: int, top: int) -> Array:
    picture = Image.fromarray(image[..., 0] if spec.channels == 1 else image)
    resized = picture.resize(size, _METHODS[spec.method])
    if size != (spec.width, spec.height):
        resized = resized.crop((left, top, left + spec.width, top + spec.height))
    return np.asarray(resized).reshape(spec.height, spec.width, spec.channels)


def normalise(images: Array, spec: PreprocessSpec) -> Array:
    """uint8 (..., H, W, C) → float32, per channel (x - mean) / std."""
    mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))
    return (images.astype(np.float32) - mean) / std


def prepare_pixels(images: Iterable[Array], spec: PreprocessSpec) -> Array:
    """Decoded images, uint8 (H, W, C) each → float32 (B, height, width, C), ready for the model."""
    return normalise(np.stack([fit(image, spec) for image in images]), spec)


def prepare(encoded: Sequence[bytes], spec: PreprocessSpec) -> Array:
    """Encoded images → float32 (B, height, width, C), ready for the model.

    Raises:
      ImageError: naming which image cannot be taken.
    """
    fitted = []
    for index, one in enumerate(encoded):
        try:
            fitted.append(fit(decode(one, spec), spec))
        except ImageError as error:
            raise ImageError(f"image {index}: {error}") from error
    return normalise(np.stack(fitted), spec)
