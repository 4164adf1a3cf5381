"""What a request shows and names beside its words: references, control pictures, a picture to start from, LoRAs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ipadapter_engine.errors import RequestRefused

Array = np.ndarray
IDENTITY = "identity"  # the adapter that hears a reference unless it names another
NAMES = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")  # of adapters and kinds: what the name of a setting can end in


@dataclass(frozen=True, eq=False)
class ReferencePrompt:
    """One reference picture as its encoder sees it.

    embedding: float32, (embed,) for base adapters or (patches + 1, embed) for plus and full-face; of FaceID adapters
        the face, (512,). None where only `picture` is given.
    weight: this reference's share beside the others of its adapter; 0 leaves it out.
    adapter: which loaded adapter hears it.
    negative: it is what the unconditional half attends to, in place of nothing, wherever the adapter's other references
        speak: guidance leads away from it.
    region: the part of the picture, one of the request's `regions`, in which it speaks; None is everywhere.
    face: of FaceID Plus adapters the face (512,) beside the embedding, which are then hidden states.
    picture: uint8 (h, w, 3), RGB, for the families that look at references themselves.
    """

    embedding: Array | None
    weight: float = 1.0
    adapter: str = IDENTITY
    negative: bool = False
    region: str | None = None
    face: Array | None = None
    picture: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_name("an adapter", self.adapter)
        if self.region is not None:
            check_name("a region", self.region)
        if self.embedding is None and self.picture is None:
            raise RequestRefused("a reference has neither an embedding nor a picture", "embed the reference first")
        for numbers in (self.embedding, self.face):
            if numbers is not None:
                _check_numbers(numbers)
        if self.picture is not None:
            check_pixels("a reference", self.picture)
        if not (self.weight >= 0 and np.isfinite(self.weight)):
            raise RequestRefused(
                f"a reference's weight is {self.weight}, not a number of 0 or more", "give a weight of 0 or more"
            )
        if self.negative and self.region is not None:
            raise RequestRefused(
                f"a negative reference names the region {self.region!r}",
                "leave its region out: it holds wherever the others of its adapter speak",
            )


@dataclass(frozen=True, eq=False)
class ControlPrompt:
    """A picture whose lines, depth or pose the made one follows (ControlNet; Zhang et al., 2023, arXiv:2302.05543).

    picture: uint8 (h, w, 3), RGB, of the kind that the ControlNet reads; resized to the made picture's size.
    strength: what its ControlNet adds is multiplied by it; 0 leaves it out, 1 is as trained.
    window: the share of the steps, from start to end, in which it is followed.
    """

    picture: Array = field(repr=False)
    kind: str
    strength: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_name("a kind of control", self.kind)
        check_pixels(f"a control ({self.kind})", self.picture)
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise RequestRefused(
                f"the strength {self.strength} of a control ({self.kind}) is not a number of 0 or more",
                "give a strength of 0 or more; 1 is as trained",
            )
        check_window(self.window)

    @property
    def heard(self) -> bool:
        """Whether it can have a part in the picture: at strength 0 or in an empty window it has none."""
        return self.strength > 0 and self.window[0] < self.window[1]


@dataclass(frozen=True)
class CharacterModel:
    """One character as a LoRA (DreamBooth; Ruiz et al., 2022, arXiv:2208.12242) on the loaded base.

    file: of diffusers', peft's or kohya's layout (docs/adapters.md); its bytes must have `sha256`.
    strength: what the LoRA adds is multiplied by it; 0 leaves it out, 1 is as trained.
    """

    file: Path
    sha256: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise RequestRefused(
                f"{self.sha256!r} is no sha256 of a character model", "give the 64 hex digits that its training printed"
            )
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise RequestRefused(
                f"the strength {self.strength} of a character model is not a number of 0 or more",
                "give a strength of 0 or more; 1 is as trained",
            )


@dataclass(frozen=True, eq=False)
class SourcePicture:
    """The picture to start from in place of noise alone (SDEdit; Meng et al., 2021, arXiv:2108.01073).

    picture: uint8 (h, w, 3), RGB, of the shape of the made one; scaled to its size.
    strength: the share of the steps that is taken, more than 0 to 1; at 1 nothing of the picture is left where it is
        repainted.
    mask: uint8 (h, w), 255 where to repaint, 0 where the picture stays as it is; None repaints all of it.
    """

    picture: Array = field(repr=False)
    strength: float = 0.8
    mask: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_pixels("a picture to start from", self.picture)
        if not 0 < self.strength <= 1:
            raise RequestRefused(
                f"the strength {self.strength} of a picture to start from is not within 0 to 1",
                "give more than 0, up to 1; 0.8 keeps little, 0.3 much of it",
            )
        if self.mask is not None:
            check_mask("a mask to repaint within", self.mask)
            if not (self.mask >= 128).any():
                raise RequestRefused(
                    "a mask to repaint within is empty", "paint 255 where the picture is to be made anew"
                )


def check_name(what: str, name: str) -> None:
    if not NAMES.fullmatch(name):
        raise RequestRefused(
            f"{name!r} is no name of {what}",
            f"give one of lower case letters, digits and underscores, such as {nearest_name(name)!r}",
        )


def nearest_name(name: str) -> str:
    """What a name is called where only lower case letters, digits and single underscores can stand."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "other"


def check_window(window: tuple[float, float]) -> None:
    start, end = window
    if not 0 <= start <= end <= 1:
        raise RequestRefused(f"the window {window} is not within 0 to 1", "give start and end, 0 ≤ start ≤ end ≤ 1")


def inside(window: tuple[float, float], progress: float) -> bool:
    """Whether the step that begins at `progress` (its number / all steps) lies in a window, start ≤ progress < end."""
    return window[0] <= progress < window[1]


def check_pixels(what: str, picture: Array) -> None:
    """Raises RequestRefused for anything but uint8 (height, width, 3)."""
    pixels = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3
    if not (pixels and picture.size > 0 and picture.shape[-1] == 3):
        raise RequestRefused(
            f"the picture of {what} is no array uint8 (height, width, 3)",
            "give the picture's RGB pixels, np.asarray(image.convert('RGB'))",
        )


def check_mask(what: str, mask: Array) -> None:
    """Raises RequestRefused for anything but uint8 (height, width)."""
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim == 2 and mask.size > 0):
        raise RequestRefused(
            f"{what} is no array uint8 (height, width)", "give one channel, np.asarray(image.convert('L'))"
        )


def _check_numbers(numbers: Array) -> None:
    if not (isinstance(numbers, np.ndarray) and numbers.dtype.kind in "fiu"):
        raise RequestRefused("a reference's embedding is no array of numbers", "give the encoder's output as it is")
    with np.errstate(over="ignore"):  # what single precision cannot hold is infinite to the model
        finite = np.isfinite(numbers.astype(np.float32)).all()
    if not finite:
        raise RequestRefused("a reference's embedding holds NaN or infinity", "embed the reference again")
