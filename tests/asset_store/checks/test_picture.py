"""The automatic checks say pass, warn or fail for the right pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from asset_store.checks import (
    CheckPolicy,
    check_blank,
    check_decodes,
    check_duplicate,
    check_identity,
    check_palette,
    perceptual_hash,
)
from asset_store.tables import CheckOutcome

POLICY = CheckPolicy(identity_min=None)


def a_picture(colour: str = "#fad02c", background: str = "#3060a0") -> Image.Image:
    picture = Image.new("RGB", (96, 96), background)
    ImageDraw.Draw(picture).ellipse([20, 20, 76, 76], fill=colour)
    return picture


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_a_whole_file_of_the_right_size_decodes() -> None:
    assert check_decodes(png(a_picture()), 96, 96).outcome is CheckOutcome.PASS


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", png(a_picture())[:-80], png(a_picture().resize((32, 32)))])
def test_a_broken_or_wrong_sized_file_fails(data: bytes) -> None:
    assert check_decodes(data, 96, 96).outcome is CheckOutcome.FAIL


@pytest.mark.parametrize("colour", ["black", "white", "#808080"])
def test_one_flat_colour_is_blank(colour: str) -> None:
    assert check_blank(Image.new("RGB", (64, 64), colour), POLICY, finite=True).outcome is CheckOutcome.FAIL


def test_nan_latents_fail_whatever_the_pixels_show() -> None:
    assert check_blank(a_picture(), POLICY, finite=False).outcome is CheckOutcome.FAIL
    assert check_blank(a_picture(), POLICY, finite=True).outcome is CheckOutcome.PASS


def test_the_palette_must_be_in_the_picture() -> None:
    assert check_palette(a_picture("#fad02c"), ["#fad02c"], POLICY).outcome is CheckOutcome.PASS
    missing = check_palette(a_picture("#d63031"), ["#d63031", "#389e48"], POLICY)
    assert missing.outcome is CheckOutcome.WARN
    assert "#389e48" in missing.message


def test_a_palette_colour_may_be_a_shade_off() -> None:
    assert check_palette(a_picture("#f6cf38"), ["#fad02c"], POLICY).outcome is CheckOutcome.PASS


def test_the_same_pixels_again_fail_and_nearly_the_same_warn() -> None:
    mine = perceptual_hash(a_picture())
    assert check_duplicate(mine, "p", [(mine, "p", "spring/one")], POLICY).outcome is CheckOutcome.FAIL
    near = check_duplicate(mine, "p", [(mine, "q", "spring/one")], POLICY)
    assert near.outcome is CheckOutcome.WARN
    assert "spring/one" in near.message
    other = perceptual_hash(Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 96, 3), dtype=np.uint8)))
    assert check_duplicate(mine, "p", [(other, "q", "spring/one")], POLICY).outcome is CheckOutcome.PASS
    assert check_duplicate(mine, "p", [], POLICY).outcome is CheckOutcome.PASS


def test_identity_is_the_mean_cosine_to_the_references() -> None:
    x, y = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    found = check_identity(x, [x * 3, y], 0.4)
    assert found.value == pytest.approx(0.5)
    assert found.outcome is CheckOutcome.PASS
    assert check_identity(x, [y], 0.4).outcome is CheckOutcome.FAIL
