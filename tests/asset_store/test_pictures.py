"""Pictures of every odd kind open as the same plain thing; everything else is refused by name."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, features

from asset_store.errors import PictureRefused
from asset_store.pictures import DEFAULT_LIMITS, PictureLimits, open_picture, pixel_sha256, thumbnail_webp, to_png

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"]
pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def scene(width_px: int = 48, height_px: int = 32) -> Image.Image:
    """Red left, blue right, the top third green: no two ways up look the same."""
    pixels = np.zeros((height_px, width_px, 3), np.uint8)
    pixels[:, : width_px // 2] = (220, 30, 30)
    pixels[:, width_px // 2 :] = (30, 30, 220)
    pixels[: height_px // 3] = (30, 200, 30)
    return Image.fromarray(pixels)


def noise(width_px: int = 160, height_px: int = 120) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (height_px, width_px, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def close(one: Image.Image, other: Image.Image, most: float = 6.0) -> bool:
    """Whether the mean difference a channel is at most `most` of 255."""
    assert one.size == other.size
    difference = np.asarray(one, np.int16) - np.asarray(other, np.int16)
    return float(np.abs(difference).mean()) <= most


def refusal(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(PictureRefused) as caught:
        open_picture(data, limits)
    assert caught.value.message
    assert caught.value.next_step
    return caught.value.reason


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_opens_by_its_content(format: str) -> None:
    opened = open_picture(saved(scene(), format))
    assert (opened.format, opened.width_px, opened.height_px, opened.image.mode) == (format, 48, 32, "RGB")
    assert close(opened.image, scene(), 12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_undone_once(format: str, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that makes the stored picture from the upright
    stored = scene() if orientation == 1 else scene().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(saved(stored, format, exif=exif))
    assert close(opened.image, scene(), 12)
    assert not opened.image.getexif()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_does_not_lose_the_picture(exif: bytes) -> None:
    assert close(open_picture(saved(scene(), "JPEG", exif=exif)).image, scene(), 12)


def test_cmyk_becomes_rgb() -> None:
    opened = open_picture(saved(scene().convert("CMYK"), "JPEG", quality=95))
    assert close(opened.image, scene(), 12)
    assert opened.notes == ("converted from CMYK without a profile",)


def test_16_bit_grey_png_keeps_both_ends() -> None:
    ramp = np.linspace(0, 65_535, 64 * 32).astype(np.uint16).reshape(32, 64)
    opened = open_picture(saved(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(np.asarray(opened.image)[..., 0], np.rint(ramp / 257).astype(np.uint8))
    assert opened.notes == ("16 bits scaled to 8",)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_tiff_of_both_byte_orders(order: str) -> None:
    ramp = np.linspace(0, 65_535, 64 * 32).astype(order).reshape(32, 64)
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (64, 32), ramp.tobytes())
    opened = open_picture(saved(image, "TIFF"))
    assert np.array_equal(np.asarray(opened.image)[..., 0], np.rint(ramp.astype(float) / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 1024, dtype=np.float32), np.linspace(0, 255, 1024)),
        (np.linspace(0, 255, 1024, dtype=np.float32), np.linspace(0, 255, 1024)),
        (np.linspace(-5, 5000, 1024, dtype=np.float32), np.linspace(0, 255, 1024)),
        (np.linspace(-3e38, 3e38, 1024, dtype=np.float32), np.linspace(0, 255, 1024)),
        (np.linspace(0, 65_535, 1024).astype(np.int32), np.linspace(0, 255, 1024)),
        (np.linspace(-(2**31), 2**31 - 1, 1024).astype(np.int32), np.linspace(0, 255, 1024)),
        (np.full(1024, np.nan, np.float32), np.zeros(1024)),
        (np.full(1024, np.inf, np.float32), np.zeros(1024)),
    ],
    ids=["unit", "byte", "wide", "widest", "int16", "int32", "nan", "inf"],
)
def test_float_and_32_bit_tiff(values: Any, expected: Any) -> None:
    opened = open_picture(saved(Image.fromarray(values.reshape(32, 32)), "TIFF"))
    found = np.asarray(opened.image)[..., 0].reshape(-1).astype(float)
    assert np.abs(found - expected).max() <= 1


def test_16_bit_colour_png_opens() -> None:
    rows = b"".join(b"\0" + b"\xff\xff\x80\x00\x00\x00" * 32 for _ in range(32))
    opened = open_picture(png_of(png_chunk(b"IDAT", zlib.compress(rows)), header=(32, 32, 16, 2)))
    assert opened.image.getpixel((3, 3)) == (255, 128, 0)


CLEAR = [saved(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), format) for format in ("PNG", "WEBP", "GIF", "TIFF")]
CLEAR += [saved(Image.new("LA", (32, 32), (0, 0)), format) for format in ("PNG", "WEBP", "TIFF")]
CLEAR += [saved(Image.new(mode, (32, 32), 0), "PNG", transparency=0) for mode in ("P", "L")]
CLEAR += [saved(Image.new("RGB", (32, 32), 0), "PNG", transparency=(0, 0, 0))]


@pytest.mark.parametrize("data", CLEAR)
def test_clear_becomes_white(data: bytes) -> None:
    opened = open_picture(data)
    assert opened.image.getpixel((16, 16)) == (255, 255, 255)
    assert opened.notes == ("alpha flattened on white",)


def test_half_clear_is_half_white() -> None:
    opened = open_picture(saved(Image.new("RGBA", (32, 32), (0, 0, 0, 128)), "PNG"))
    assert opened.image.getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_an_opaque_picture_has_no_notes(mode: str) -> None:
    assert open_picture(saved(scene().convert(mode), "PNG")).notes == ()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "AVIF"])
def test_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (32, 32), (20 * number, 0, 0)) for number in range(12)]
    opened = open_picture(saved(frames[0], format, save_all=True, append_images=frames[1:]))
    assert opened.notes == ("first of 12 frames",)
    assert close(opened.image, frames[0], 2)


def test_a_phones_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    opened = open_picture(saved(scene(), "MPO", save_all=True, append_images=[noise()]))
    assert (opened.format, opened.notes) == ("JPEG", ("first of 2 frames",))


def profile_named(name: str, gamma_like: str = "sRGB") -> bytes:
    """Little CMS makes no wide-gamut profile from Python: swap the red and green primaries of sRGB, rename it."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile(gamma_like)).tobytes())  # type: ignore[arg-type]
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)}
    for bytes_of_tag in (tags[b"rXYZ"], tags[b"gXYZ"]):
        data[bytes_of_tag : bytes_of_tag + 4] = b"gXYZ" if data[bytes_of_tag : bytes_of_tag + 1] == b"r" else b"rXYZ"
    at, size = struct.unpack(">II", data[tags[b"desc"] + 4 : tags[b"desc"] + 12])
    room = (size - 28) // 2
    data[at + 28 : at + 28 + 2 * room] = name.ljust(room)[:room].encode("utf-16-be")
    return bytes(data)


def test_a_profile_is_applied_and_named() -> None:
    picture = Image.new("RGB", (32, 32), (250, 10, 10))
    opened = open_picture(saved(picture, "PNG", icc_profile=profile_named("Swap")))
    assert opened.notes[0].startswith("converted from Swap")
    red, green, _ = np.asarray(opened.image)[0, 0]
    assert green > 200
    assert red < 60
    assert "icc_profile" not in opened.image.info


def test_a_profile_is_applied_under_alpha() -> None:
    picture = Image.new("RGBA", (32, 32), (250, 10, 10, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    opened = open_picture(saved(picture, "PNG", icc_profile=profile_named("Swap")))
    assert opened.image.getpixel((0, 0)) == (255, 255, 255)
    assert np.asarray(opened.image)[9, 9][1] > 200


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    opened = open_picture(saved(noise(), "PNG", icc_profile=profile))
    assert (opened.notes, opened.image.tobytes()) == ((), noise().tobytes())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [b"junk", b"\0" * 200, profile_named("Cut")[:300]], ids=["junk", "zeros", "cut"])
def test_a_broken_profile_is_ignored(format: str, profile: bytes) -> None:
    opened = open_picture(saved(scene(), format, icc_profile=profile))
    assert opened.notes == ("broken colour profile ignored",)
    assert close(opened.image, scene(), 12)


def test_a_profile_of_another_kind_of_picture_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    opened = open_picture(saved(scene(), "PNG", icc_profile=profile))
    assert "ignored" in opened.notes[0]
    assert opened.image.tobytes() == scene().tobytes()


def test_cielab_tiff_becomes_rgb() -> None:
    lab = ImageCms.profileToProfile(
        scene(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert close(open_picture(saved(lab, "TIFF")).image, scene(), 6)


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_cut_short_is_refused(format: str, keep: float) -> None:
    data = saved(noise(), format)
    assert refusal(data[: int(len(data) * keep)]) in ("damaged", "not_a_picture")


@pytest.mark.parametrize("format", FORMATS)
def test_a_header_alone_is_refused(format: str) -> None:
    assert refusal(saved(noise(), format)[:24]) in ("damaged", "not_a_picture", "too_small")


def zip_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", saved(scene(), "PNG"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", "empty", "empty"),
        (b"<!DOCTYPE html><html></html>", "not_a_picture", "HTML"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><!-- x --><svg xmlns=''/>", "format_not_allowed", "SVG"),
        (b"<!---->" * 140, "not_a_picture", "XML or HTML"),
        (b"<Error><Code>AccessDenied</Code></Error>", "not_a_picture", "XML"),
        (zip_archive(), "not_a_picture", "ZIP"),
        (b"%PDF-1.7\n", "not_a_picture", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_a_picture", "PostScript"),
        (b"\x00\x00\x00\x18ftypheic" + b"\0" * 99, "format_not_allowed", "HEIC"),
        (saved(scene(), "JPEG2000"), "format_not_allowed", "JPEG 2000"),
        (saved(scene(), "TGA"), "not_a_picture", "not a picture"),
        (saved(scene(), "PPM"), "not_a_picture", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not_a_picture", "damaged"),
        (bytes(500), "not_a_picture", "not a picture"),
        (b'{"error": 404}', "not_a_picture", "JSON"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data: bytes, reason: str, said: str) -> None:
    with pytest.raises(PictureRefused, match=said) as caught:
        open_picture(data)
    assert caught.value.reason == reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(*chunks: bytes, header: tuple[int, int, int, int]) -> bytes:
    """header: width, height, bits a sample, colour type."""
    ihdr = png_chunk(b"IHDR", struct.pack(">IIBB", *header) + b"\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + ihdr + b"".join(chunks) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    data = png_of(png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)), header=(side, side, 8, 2))
    assert refusal(data) in ("too_many_pixels", "decompression_bomb")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "AVIF"])
def test_too_many_pixels_are_refused_in_each_format(format: str) -> None:
    assert refusal(saved(scene(), format), PictureLimits(max_pixels=48 * 32 - 1)) == "too_many_pixels"


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_a_text_bomb_in_a_png_is_refused(kind: str) -> None:
    inflated = zlib.compress(b"\0" * 80_000_000)
    body = {"zTXt": b"k\0\0", "iTXt": b"k\0\1\0\0\0", "iCCP": b"k\0\0"}[kind] + inflated
    pixels = png_chunk(b"IDAT", zlib.compress((b"\0" + bytes(96)) * 32))
    assert refusal(png_of(png_chunk(kind.encode(), body), pixels, header=(32, 32, 8, 2))) == "decompression_bomb"


def test_many_texts_in_a_png_are_refused() -> None:
    info = PngImagePlugin.PngInfo()
    for number in range(80):
        info.add_text(f"k{number}", "x" * 1_000_000, zip=True)
    assert refusal(saved(scene(), "PNG", pnginfo=info)) == "decompression_bomb"


@pytest.mark.parametrize("size", [(15, 400), (400, 15), (1, 1)])
def test_a_tiny_picture_is_refused(size: tuple[int, int]) -> None:
    assert refusal(saved(Image.new("RGB", size), "PNG")) == "too_small"


def test_the_least_side_is_taken() -> None:
    assert open_picture(saved(Image.new("RGB", (16, 16)), "PNG")).width_px == 16


def test_too_many_bytes_are_refused() -> None:
    data = saved(scene(), "PNG")
    assert refusal(data, PictureLimits(max_bytes=len(data) - 1)) == "too_many_bytes"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "AVIF"])
def test_too_many_frames_are_refused(format: str) -> None:
    frames = [Image.new("RGB", (32, 32), (20 * number, 0, 0)) for number in range(5)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert open_picture(data, PictureLimits(max_frames=5)).width_px == 32
    assert refusal(data, PictureLimits(max_frames=4)) == "too_many_frames"


@pytest.mark.timeout(20)
def test_a_gif_of_a_million_frames_is_refused_soon() -> None:
    frame = b"\x2c\0\0\0\0\x20\0\x20\0\0\x02\x01\x44\0"
    data = b"GIF89a\x20\0\x20\0\0\0\0" + frame * 1_000_000 + b";"
    assert refusal(data) == "too_many_frames"


def test_a_tiff_whose_pages_lead_in_a_circle_ends() -> None:
    data = bytearray(saved(scene(), "TIFF"))
    at = struct.unpack("<I", data[4:8])[0]
    entries = struct.unpack("<H", data[at : at + 2])[0]
    data[at + 2 + 12 * entries : at + 6 + 12 * entries] = struct.pack("<I", at)
    assert open_picture(bytes(data)).width_px == 48


SEEDS = [saved(noise(40, 40), format) for format in FORMATS]
SEEDS += [saved(noise(40, 40), "PNG", icc_profile=profile_named("Swap"), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")]
SEEDS += [saved(noise(40, 40), "GIF", save_all=True, append_images=[noise(40, 40)])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_changed_bytes_open_or_are_refused_and_nothing_warns(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(SEEDS)))
    places = st.integers(0, len(changed) - 1) | st.integers(0, 100)
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=12)):
        changed[at] = value
    end = data.draw(st.none() | st.integers(0, len(changed)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            opened = open_picture(bytes(changed[:end]), PictureLimits(max_pixels=1_000_000))
        except PictureRefused as refused:
            assert refused.next_step
        else:
            assert opened.image.mode == "RGB"


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    files = [saved(noise(), format) for format in FORMATS] * 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_picture, files))
    assert list(warnings.filters) == before


def test_a_png_is_the_same_each_time_and_bare() -> None:
    picture = noise()
    picture.info.update(icc_profile=profile_named("Swap"), comment="me", exif=b"Exif\0\0x", dpi=(72, 72))
    data = to_png(picture)
    assert data == to_png(noise())
    assert [kind for kind in (b"iCCP", b"eXIf", b"tEXt", b"pHYs") if kind in data] == []


def test_a_png_keeps_every_pixel() -> None:
    assert open_picture(to_png(noise())).image.tobytes() == noise().tobytes()


def test_pixels_have_one_sha256_in_any_file() -> None:
    assert pixel_sha256(open_picture(saved(noise(), "PNG")).image) == pixel_sha256(
        open_picture(saved(noise(), "BMP")).image
    )


def test_the_sha256_of_pixels_tells_shape_and_mode_apart() -> None:
    pictures = [Image.new("L", (4, 6)), Image.new("L", (6, 4)), Image.new("RGB", (4, 2)), Image.new("L", (4, 6), 1)]
    assert len({pixel_sha256(picture) for picture in pictures}) == 4


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 500), (320, 160)), ((100, 50), (100, 50)), ((16, 4000), (1, 320))]
)
def test_a_thumbnail_fits_and_is_never_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(thumbnail_webp(Image.new("RGB", size)))) as small:
        assert (small.format, small.size) == ("WEBP", expected)
