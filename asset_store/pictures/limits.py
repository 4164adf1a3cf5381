"""What is taken as a picture, and the refusals that need no decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass

from asset_store.errors import PictureRefused

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
"""Pillow's names. Other formats it knows are never tried: fewer decoders, fewer surprises."""

_ALLOWED = "JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF"
_SIGNATURES = (
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "a ZIP archive"),
    (re.compile(rb"%PDF-"), "a PDF document"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript document"),
    (re.compile(rb"(?s).{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)"), "a HEIC picture"),
    (re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL "), "a JPEG XL picture"),
    (re.compile(rb"\s*[{\[]"), "a JSON document"),
    (re.compile(rb"version https://git-lfs"), "a pointer to a large file that was not fetched"),
)


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Beyond these a picture is refused, before it is decoded. `max_pixels` is width times height."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_frames: int = 1_000
    min_side_px: int = 16


DEFAULT_LIMITS = PictureLimits()


def refuse_bytes(data: bytes, limits: PictureLimits) -> None:
    """PictureRefused for no bytes and for too many."""
    if not data:
        raise PictureRefused("empty", "the file is empty", "Upload the picture again.")
    if len(data) > limits.max_bytes:
        raise PictureRefused(
            "too_many_bytes",
            f"the file has {len(data)} bytes, over the limit of {limits.max_bytes}",
            "Save the picture smaller or with stronger compression.",
        )


def refuse_size(width_px: int, height_px: int, limits: PictureLimits) -> None:
    """PictureRefused for a picture too large or too small to be of use."""
    if width_px * height_px > limits.max_pixels:
        raise PictureRefused(
            "too_many_pixels",
            f"the picture is {width_px} x {height_px} pixels, over the limit of {limits.max_pixels} in all",
            "Save the picture with fewer pixels.",
        )
    if min(width_px, height_px) < limits.min_side_px:
        raise PictureRefused(
            "too_small",
            f"the picture is {width_px} x {height_px} pixels; each side needs {limits.min_side_px} at least",
            "Use a larger version of the picture.",
        )


def not_taken(data: bytes) -> PictureRefused:
    """Why bytes that no allowed decoder knows are refused, told by what they look like."""
    name = _looks_like(data[:1024])
    if name:
        return PictureRefused(
            "format_not_allowed" if name.endswith(("picture", "drawing")) else "not_a_picture",
            f"the file is {name}, not a picture in a format taken here",
            f"Export it as {_ALLOWED}.",
        )
    return PictureRefused(
        "not_a_picture",
        "the file is not a picture in a format taken here, or its beginning is damaged",
        f"Use {_ALLOWED}; the content counts, not the name.",
    )


def too_many_frames(limits: PictureLimits) -> PictureRefused:
    """The refusal of a long animation."""
    return PictureRefused(
        "too_many_frames",
        f"the file has more than {limits.max_frames} frames",
        "Save the one frame that is meant as a still picture.",
    )


def _looks_like(head: bytes) -> str:
    """What the first bytes say, for the message alone; empty where they say nothing."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        if b"<svg" in text:
            return "an SVG drawing"
        return "an HTML page" if b"<html" in text or b"<!doctype html" in text else "an XML or HTML document"
    return next((name for signature, name in _SIGNATURES if signature.match(head)), "")
