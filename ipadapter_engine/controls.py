"""Control pictures: extracted from a picture where a well-kept library can, and brought to the size of the made one.

Kinds are names; what a kind means is what its ControlNet was trained on. All extracted pictures are RGB of the
source's size: edges and lineart white on black, depth white where near, as the usual ControlNets read them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.prompts import Array, ControlPrompt

EXTRACTABLE = ("edges", "lineart", "depth")
SHAPE_TOLERANCE = 0.10  # how far a control picture's aspect ratio may be from the made picture's
# Of scikit-image's Sobel sum, which after the blur below is 2.56 for a step of full contrast: a line begins at a step
# of 0.21 and is followed down to 0.105, as by OpenCV's usual 100 and 200 of a sum of up to 1020.
CANNY_SIGMA_PX, CANNY_LOW, CANNY_HIGH = 1.0, 0.27, 0.54
INK_SIGMA_PX, INK_CONTRAST = 1.0, 0.05  # the width of a pen's line and the contrast at which it is fully drawn


def extract(kind: str, picture: Image.Image, *, depth_model: Path | None = None) -> Image.Image:
    """The control picture of a kind, RGB of the picture's size.

    edges: Canny on each colour, as flat drawings often differ in hue alone (Canny, 1986).
    lineart: difference of Gaussians, the lines a pen would draw (Winnemöller et al., 2012, XDoG).
    depth: by the depth estimation model in the folder `depth_model`.
    Raises RequestRefused for a kind that cannot be extracted here, CheckpointRefused for a depth model that does
    not open.
    """
    rgb = picture.convert("RGB")
    if kind == "edges":
        return _white_on_black(_edges(rgb))
    if kind == "lineart":
        return _white_on_black(_lineart(rgb))
    if kind == "depth":
        if depth_model is None:
            raise RequestRefused(
                "depth needs a depth estimation model and none is configured",
                "set ONMODEL_ENGINE__DEPTH_MODEL to a folder of one in transformers' layout, or supply a depth picture",
            )
        from ipadapter_engine.depth import depth_of  # it loads torch, which the other kinds do without

        return _white_on_black(depth_of(rgb, depth_model))
    if kind == "pose":
        raise RequestRefused(
            "a pose cannot be read from a picture here: pose detectors need weights that are not shipped",
            "supply a pose picture: a skeleton as the pose ControlNet was trained on",
        )
    raise RequestRefused(
        f"{kind!r} controls cannot be extracted from a picture",
        f"extract one of {', '.join(EXTRACTABLE)}, or supply a {kind} picture",
    )


def check_shape(what: str, size: tuple[int, int], width_px: int, height_px: int) -> None:
    """Raises RequestRefused where `what`, of this height and width, is more than 10 % off the made picture's shape."""
    height, width = size
    ratio = (width / height) / (width_px / height_px)
    if max(ratio, 1 / ratio) > 1 + SHAPE_TOLERANCE:
        raise RequestRefused(
            f"{what} of {width} × {height} px has another shape than the picture of {width_px} × {height_px} px",
            f"crop or pad it to {width_px}:{height_px}, within {SHAPE_TOLERANCE:.0%}, or ask for a picture of its shape",
        )


def fitted(control: ControlPrompt, width_px: int, height_px: int) -> Array:
    """The control's picture at the made picture's size, uint8 (height_px, width_px, 3).

    It is scaled to that size by Lanczos' filter (Pillow's), as diffusers does: where its shape differs a little it is
    stretched. Raises as `check_shape`.
    """
    check_shape(f"a control ({control.kind})", control.picture.shape[:2], width_px, height_px)
    if control.picture.shape[:2] == (height_px, width_px):
        return control.picture
    scaled = Image.fromarray(control.picture).resize((width_px, height_px), Image.Resampling.LANCZOS)
    return np.asarray(scaled)


def _edges(picture: Image.Image) -> Array:
    from skimage.feature import canny

    colours = np.asarray(picture, dtype=np.float64) / 255
    found = [canny(colours[..., c], CANNY_SIGMA_PX, CANNY_LOW, CANNY_HIGH, mode="nearest") for c in range(3)]
    return np.logical_or.reduce(found).astype(np.float64)


def _lineart(picture: Image.Image) -> Array:
    """Dark on its surroundings by INK_CONTRAST is a full line; the ratio 1.6 of the spreads is Marr and Hildreth's."""
    from skimage.filters import difference_of_gaussians

    grey = np.asarray(picture.convert("L"), dtype=np.float64) / 255
    ink = -difference_of_gaussians(grey, INK_SIGMA_PX, 1.6 * INK_SIGMA_PX, mode="nearest")
    return np.clip(ink / INK_CONTRAST, 0.0, 1.0)


def _white_on_black(values: Array) -> Image.Image:
    """values (h, w), 0 to 1."""
    return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
