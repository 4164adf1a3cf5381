"""What a CLIP image encoder sees of a picture: transformers' own preprocessing to the bit, without its detours."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


class Preprocessing:
    """RGB pictures of any size -> float32 (3, side, side). Safe in several threads.

    After it is resized, a picture has 256 values a channel: what rescaling and normalising make of them is asked of the
    processor once, and looked up from then on. A processor that does not resize by the shorter side and crop the middle,
    as CLIP's own does, is asked every time.
    """

    def __init__(self, processor: CLIPImageProcessorPil) -> None:
        self._processor = processor
        self._plan = _plan(processor)
        greys = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
        seen = processor(images=greys, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"][0]
        self._values = np.ascontiguousarray(seen[:, 0], dtype=np.float32)  # (3, 256)

    def __call__(self, picture: Image.Image) -> np.ndarray:
        if self._plan is None:
            return np.asarray(self._processor(images=picture, return_tensors="np")["pixel_values"][0])
        shorter, height, width, resample = self._plan
        pixels = np.asarray(picture.resize(_resized(picture.size, shorter), resample))
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        middle = pixels[top : top + height, left : left + width]
        return np.stack([values[middle[..., c]] for c, values in enumerate(self._values)])


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side as told and the other rounded down, as transformers does it."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _plan(processor: CLIPImageProcessorPil) -> tuple[int, int, int, Image.Resampling] | None:
    """(shorter side, height and width of the crop, resampling), None where the processor goes another way."""
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    shorter = size.get("shortest_edge")
    if not (processor.do_resize and processor.do_center_crop and shorter and not size.get("longest_edge")):
        return None
    height, width = crop.get("height"), crop.get("width")
    if not (height and width and max(height, width) <= shorter):
        return None  # a crop that is larger than the picture is filled up
    return int(shorter), int(height), int(width), Image.Resampling(int(processor.resample))
