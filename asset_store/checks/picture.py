"""What can be said of one picture without a person: each check gives value, threshold and a sentence."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import imagehash
import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from skimage.color import deltaE_ciede2000, rgb2lab

from asset_store.reviewing.decide import CheckResult
from asset_store.tables import CheckOutcome

NAMES = ("decodes", "not blank", "palette", "not a duplicate", "identity")
POLICY_VERSION = "1"


class CheckPolicy(BaseModel, frozen=True, extra="forbid"):
    """The thresholds of a campaign's checks; a brief may set its own under `checks:`."""

    identity_min: float | None = Field(
        None, ge=-1, le=1, description="lowest CLIP-I (cosine) to the references; empty: calibrated on the library"
    )
    palette_share: float = Field(0.03, ge=0, le=1, description="lowest share of pixels near the character's palette")
    palette_delta_e: float = Field(10.0, gt=0, le=50, description="what counts as near, in CIEDE2000")
    duplicate_bits: int = Field(0, ge=0, le=32, description="perceptual hashes this close or closer are duplicates")
    blank_spread: float = Field(6.0, ge=0, le=128, description="lowest spread of pixel values, of 255")


def check_decodes(data: bytes, width_px: int, height_px: int) -> CheckResult:
    """The file opens as a PNG of the size that was asked for."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            size, mode = picture.size, picture.mode
    except (OSError, ValueError, SyntaxError) as error:
        return _result("decodes", False, f"the file does not open: {error}")
    right = size == (width_px, height_px) and mode == "RGB"
    return _result("decodes", right, f"{size[0]} × {size[1]} {mode}, asked for {width_px} × {height_px} RGB")


def check_blank(picture: Image.Image, policy: CheckPolicy, *, finite: bool) -> CheckResult:
    """Not black, not one colour, not NaN. NaN is seen on the latents, before pixels hide it."""
    spread = float(np.asarray(picture, dtype=np.float32).std())
    if not finite:
        return _result("not blank", False, "the model produced NaN", spread, policy.blank_spread)
    told = f"pixel values spread by {spread:.1f} of 255"
    return _result("not blank", spread >= policy.blank_spread, told, spread, policy.blank_spread)


def check_palette(picture: Image.Image, palette: Sequence[str], policy: CheckPolicy) -> CheckResult:
    """Each colour of the character's palette is in the picture; the value is the rarest one's share of pixels.

    Near means CIEDE2000 (Sharma et al., 2005) of at most `palette_delta_e`; measured at 64 px or less.
    """
    small = picture.convert("RGB")
    small.thumbnail((64, 64), Image.Resampling.BOX)
    lab = rgb2lab(np.asarray(small, dtype=np.float64) / 255)
    rarest, colour = 1.0, ""
    for name in palette:
        wanted = rgb2lab(np.array([[[int(name[i : i + 2], 16) for i in (1, 3, 5)]]]) / 255)
        share = float((deltaE_ciede2000(lab, np.broadcast_to(wanted, lab.shape)) <= policy.palette_delta_e).mean())
        if share <= rarest:
            rarest, colour = share, name
    outcome = CheckOutcome.PASS if rarest >= policy.palette_share else CheckOutcome.WARN
    told = f"{colour} covers {rarest:.0%} within ΔE {policy.palette_delta_e:g}"
    return CheckResult("palette", outcome, told, POLICY_VERSION, rarest, policy.palette_share)


def perceptual_hash(picture: Image.Image) -> str:
    """A 256-bit difference-of-frequencies hash (imagehash.phash), as 64 hex digits."""
    return str(imagehash.phash(picture, hash_size=16))


def check_duplicate(
    hash_: str, pixels: str, others: Iterable[tuple[str, str, str]], policy: CheckPolicy
) -> CheckResult:
    """Not the same picture again. `others`: (perceptual hash, pixel sha256, what it is called) of the brand's pictures,
    rejected ones too. The same pixels fail, nearly the same ones warn."""
    mine, nearest, name = int(hash_, 16), 256, ""
    for other, other_pixels, called in others:
        if other_pixels == pixels:
            return _result("not a duplicate", False, f"the same pixels as {called}", 0, policy.duplicate_bits)
        distance = (mine ^ int(other, 16)).bit_count()
        if distance < nearest:
            nearest, name = distance, called
    if nearest > policy.duplicate_bits:
        told = f"nearest differs in {nearest} of 256 bits" if name else "nothing to compare with yet"
        return CheckResult("not a duplicate", CheckOutcome.PASS, told, POLICY_VERSION, nearest, policy.duplicate_bits)
    told = f"nearly the same as {name}"
    return CheckResult("not a duplicate", CheckOutcome.WARN, told, POLICY_VERSION, nearest, policy.duplicate_bits)


def check_identity(picture: np.ndarray, references: Sequence[np.ndarray], minimum: float) -> CheckResult:
    """CLIP-I: the mean cosine of the picture's embedding (d,) with its references' embeddings (d,) each."""
    unit = picture / np.linalg.norm(picture)
    likeness = float(np.mean([unit @ (r / np.linalg.norm(r)) for r in references]))
    return _result("identity", likeness >= minimum, f"CLIP-I {likeness:.2f} to its references", likeness, minimum)


def _result(
    name: str, right: bool, message: str, value: float | None = None, threshold: float | None = None
) -> CheckResult:
    return CheckResult(
        name, CheckOutcome.PASS if right else CheckOutcome.FAIL, message, POLICY_VERSION, value, threshold
    )
