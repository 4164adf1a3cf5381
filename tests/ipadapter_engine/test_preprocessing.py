"""Our preprocessing is transformers' own, bit for bit, whatever the picture and the settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.preprocessing import Preprocessing

SETTINGS: dict[str, dict[str, Any]] = {
    "CLIP's own": {},
    "a smaller side": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    "bilinear": {"resample": 2},
    "other colours": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.7]},
    "not normalised": {"do_normalize": False},
    "a crop beyond the picture": {"size": {"shortest_edge": 30}, "crop_size": {"height": 40, "width": 40}},
    "squashed": {"size": {"height": 24, "width": 24}, "crop_size": {"height": 24, "width": 24}},
    "not cropped": {"do_center_crop": False},
}


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (57, 211), (1, 1), (500, 3)])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_bits_as_transformers(settings: dict[str, Any], size: tuple[int, int]) -> None:
    processor = CLIPImageProcessorPil(**settings)
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    theirs = processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    ours = Preprocessing(processor)(Image.fromarray(pixels))
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)
