"""How near everything in a picture is, by a depth estimation model of transformers' from a local folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.prompts import Array
from ipadapter_engine.weights import first_line, load_model, read_config

_NEXT_STEP = "name a folder of a depth estimation model, saved whole by transformers (Depth Anything, MiDaS's DPT)"
_NEARNESS_KINDS = ("depth_anything", "dpt")  # inverse depth, unless their configuration says otherwise
_METRIC_KINDS = ("depth_pro", "glpn", "prompt_depth_anything", "tipsv2_dpt", "zoedepth")  # how far, in metres


@torch.inference_mode()
def depth_of(picture: Image.Image, folder: Path) -> Array:
    """Nearness float64 (h, w) of an RGB picture, 0 for what is farthest and 1 for what is nearest in it."""
    model, processor = _opened(folder)
    inputs = processor(images=picture, return_tensors="pt")
    found = processor.post_process_depth_estimation(model(**inputs), [(picture.height, picture.width)])
    depth = found[0]["predicted_depth"].double().squeeze().cpu().numpy()
    if tells_distance(model.config):
        depth = -depth
    spread = depth.max() - depth.min()
    return (depth - depth.min()) / spread if spread > 0 else np.zeros_like(depth)


def tells_distance(config: Any) -> bool:
    """Whether larger is farther. MiDaS's DPT and the relative Depth Anything tell nearness (inverse depth); the metric
    Depth Anything and DINOv2's DPT, which was trained on metres and alone has a projection, tell distance."""
    if config.model_type == "dpt":
        return bool(config.add_projection)
    return config.model_type in _METRIC_KINDS or getattr(config, "depth_estimation_type", "relative") == "metric"


@functools.lru_cache(maxsize=1)
def _opened(folder: Path) -> tuple[Any, Any]:
    """Raises CheckpointRefused."""
    if not (folder / "config.json").exists():
        raise CheckpointRefused(f"{folder} holds no depth estimation model", _NEXT_STEP)
    kind = read_config(folder / "config.json").get("model_type")
    if kind not in (*_NEARNESS_KINDS, *_METRIC_KINDS):
        raise CheckpointRefused(f"{folder} holds a model of kind {kind!r}, not known to estimate depth", _NEXT_STEP)
    options = {"trust_remote_code": False}  # unless told so, transformers asks on the terminal and may run its code
    model = load_model(AutoModelForDepthEstimation, folder, torch.float32, next_step=_NEXT_STEP, **options)
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil", **options)
    except (OSError, ValueError) as error:
        raise CheckpointRefused(f"{folder} has no image processor: {first_line(error)}", _NEXT_STEP) from None
    return model.eval(), processor
