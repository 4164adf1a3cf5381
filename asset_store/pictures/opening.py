"""Bytes from anywhere to a plain picture, or a refusal; never another exception, never a warning."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from asset_store.errors import PictureRefused
from asset_store.pictures.colour import to_srgb
from asset_store.pictures.frames import count_frames
from asset_store.pictures.limits import (
    DEFAULT_LIMITS,
    FORMATS,
    PictureLimits,
    not_taken,
    refuse_bytes,
    refuse_size,
    too_many_frames,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (tag 0x0112) to the transpose that undoes it."""


@dataclass(frozen=True, slots=True)
class OpenedPicture:
    """`image`: PIL, RGB, 8-bit sRGB, upright, no metadata, `width_px` x `height_px`. `format`: Pillow's name of the
    file's own. `notes`: what was changed on the way, in words."""

    image: Image.Image
    format: str
    width_px: int
    height_px: int
    notes: tuple[str, ...]


def open_picture(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> OpenedPicture:
    """The picture in these bytes; of an animation or a stack of pages, the first.

    The format is told by the content. The size is checked in the header, before pixels are decoded. PictureRefused,
    with a reason code, for whatever is not a whole picture within the limits.
    """
    refuse_bytes(data, limits)
    try:
        with _QUIET.silence():
            return _open(data, limits)
    except PictureRefused:
        raise
    except UnidentifiedImageError:
        raise not_taken(data) from None
    except Image.DecompressionBombError as error:
        raise _bomb(error) from error
    except MemoryError as error:
        raise _bomb(error) from error
    except Exception as error:  # hostile bytes make decoders raise SyntaxError, struct.error, KeyError and more
        if "MAX_TEXT" in str(error) or "Decompressed data too large" in str(error):
            raise _bomb(error) from error
        raise PictureRefused(
            "damaged",
            f"the picture is damaged or cut short ({type(error).__name__}: {str(error)[:120]})",
            "Upload it again from its source; if it opens in an editor, save a fresh copy there.",
        ) from error


def _open(data: bytes, limits: PictureLimits) -> OpenedPicture:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        # A JPEG with further pictures behind it, as phones write for depth or HDR, is a JPEG to people.
        name = "JPEG" if picture.format == "MPO" else str(picture.format)
        refuse_size(*picture.size, limits)
        frames = count_frames(picture, data, limits.max_frames)
        if frames > limits.max_frames:
            raise too_many_frames(limits)
        image, notes = _decode(picture, limits)
    if frames > 1:
        notes.insert(0, f"first of {frames} frames")
    return OpenedPicture(image, name, image.width, image.height, tuple(notes))


def _decode(picture: ImageFile.ImageFile, limits: PictureLimits) -> tuple[Image.Image, list[str]]:
    picture.load()
    # Once more: a few formats only learn their true size from the first frame.
    refuse_size(*picture.size, limits)
    notes: list[str] = []
    # After loading: for TIFF, Pillow itself turns the picture then, and takes the tag away.
    turn = _UPRIGHT.get(_orientation(picture))
    image, colour_notes = to_srgb(picture)
    if turn is not None:
        image = image.transpose(turn)
        notes.append("turned upright by EXIF orientation")
    plain = Image.new("RGB", image.size)  # a fresh picture, since a converted one keeps the file's metadata
    plain.paste(image)
    return plain, notes + colour_notes


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _bomb(error: BaseException) -> PictureRefused:
    return PictureRefused(
        "decompression_bomb",
        f"the file unpacks to far more than a picture needs ({type(error).__name__})",
        "Save a fresh copy of the picture in an editor, without its metadata.",
    )


class _Quiet:
    """Silences Pillow's warnings while any thread is decoding.

    `warnings.catch_warnings` swaps a list for the whole process, so two threads that leave in another order than they
    came would leave the wrong list behind: the first thread in swaps, the last one out swaps back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught: warnings.catch_warnings[None] | None = None

    @contextmanager
    def silence(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._caught is None:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
                warnings.filterwarnings("ignore", module=r"asset_store\.pictures(\.|$)")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._caught is not None:
                    self._caught.__exit__(None, None, None)
                    self._caught = None


_QUIET = _Quiet()
