"""Any of Pillow's pixel modes to 8-bit sRGB, with a note of what was done."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

WHITE = (255, 255, 255)
_MAX_16_BIT = 65_535


def to_srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A decoded picture of any mode -> RGB on white, and notes on each conversion that changed what is seen."""
    notes: list[str] = []
    profile = image.info.get("icc_profile")
    image = _to_8_bit(image, notes)
    image, alpha = _split_alpha(image)
    image = _apply_profile(image, profile, notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        # In sRGB, as every viewer composites: gamma-encoded values, not light.
        ground = Image.new("RGB", image.size, WHITE)
        ground.paste(image, mask=alpha)
        image = ground
        notes.append("alpha flattened on white")
    return image, notes


def _to_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """I;16*, I and F -> L; every other mode as it is.

    16 bits are divided by 257, so that both ends are kept. Wider values have no agreed white: what fits 16 bits is
    taken as 16 bits; F within 0..1 as dark to light, within 0..255 as 8 bits; anything else from its least to
    its most. What is no number counts as 0.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    # astype keeps the value whatever byte order the mode has; 32 bits of float are enough for 8 bits of picture.
    values: NDArray[np.floating[Any]] = np.asarray(image).astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, np.float32(0))
    scaled: NDArray[np.floating[Any]]
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and low >= 0 and high <= _MAX_16_BIT:
        scaled = values / 257
        notes.append("16 bits scaled to 8")
    elif image.mode == "F" and low >= 0 and high <= 1:
        scaled = values * 255
        notes.append("floating point 0..1 scaled to 8 bits")
    elif image.mode == "F" and low >= 0 and high <= 255:
        scaled = values
        notes.append("floating point 0..255 rounded to 8 bits")
    else:
        # Halved first, since the least and most of a float can be further apart than a float can hold.
        scaled = (values / 2 - low / 2) / max(high / 2 - low / 2, 1e-30) * 255
        notes.append("values stretched from their least and most to 8 bits")
    return Image.fromarray(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8))


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour without alpha, and the alpha as L; palettes and premultiplied alpha are resolved."""
    if image.mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if image.mode in ("La", "L", "1") else "RGBA")
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        return image.convert(image.mode[:-1]), alpha
    if image.mode in ("P", "RGBX", "HSV", "YCbCr"):
        return image.convert("RGB"), None
    return (image.convert("L") if image.mode == "1" else image), None


def _apply_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """L, RGB, CMYK or LAB -> RGB in sRGB; a profile that is broken or for another kind of picture is not used."""
    if profile:
        try:
            return _convert(image, profile, notes)
        except Exception:
            notes.append("broken colour profile ignored")
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        notes.append("converted from CIELAB")
        return _applied(image, to_rgb)
    if image.mode == "CMYK":
        notes.append("converted from CMYK without a profile")
    return image if image.mode == "RGB" else image.convert("RGB")


def _convert(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = str(source.profile.xcolor_space).strip()
    name = _plain(source.profile.profile_description or "") or "an unnamed profile"
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) != image.mode:
        notes.append(f"colour profile {name} is not for this kind of picture and was ignored")
        return _apply_profile(image, None, notes)
    if space == "RGB" and name.startswith("sRGB"):
        return image
    to_rgb = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    converted = _applied(image, to_rgb)
    notes.append(f"converted from {name}")
    return converted


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("the transform made no picture")
    return converted


def _plain(name: str) -> str:
    """A profile's own name for itself, fit for one line of a note."""
    return "".join(character for character in name if character.isprintable()).strip()[:60]
