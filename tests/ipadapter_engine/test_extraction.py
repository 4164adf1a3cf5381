"""Control pictures extracted from pictures: what is found where, and what cannot be extracted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    GLPNConfig,
    PretrainedConfig,
    PromptDepthAnythingConfig,
    ZoeDepthConfig,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from ipadapter_engine.controls import EXTRACTABLE, extract
from ipadapter_engine.depth import tells_distance
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from tests.ipadapter_engine.tiny_checkpoints import change_json

BOX = (20, 12, 43, 51)  # of the drawn square, in a picture of 64 × 72 px


def drawing(paper: str = "white", ink: str = "black", *, filled: bool = True) -> Image.Image:
    made = Image.new("RGB", (64, 72), paper)
    ImageDraw.Draw(made).rectangle(BOX, fill=ink if filled else None, outline=ink, width=2)
    return made


def near_outline(pixels: np.ndarray, *, within_px: int) -> np.ndarray:
    left, top, right, bottom = BOX
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    inside = np.minimum.reduce([x - left, right - x, y - top, bottom - y])
    return np.asarray(np.abs(inside) <= within_px)


@pytest.mark.parametrize("kind", ["edges", "lineart"])
def test_an_extracted_picture_has_the_size_of_its_source_and_is_rgb(kind: str) -> None:
    found = extract(kind, drawing().convert("RGBA"))
    assert (found.mode, found.size) == ("RGB", (64, 72))


@pytest.mark.parametrize("kind", ["edges", "lineart"])
def test_a_blank_picture_has_no_lines(kind: str) -> None:
    assert not np.asarray(extract(kind, Image.new("RGB", (40, 40), "#2c5cce"))).any()


@pytest.mark.parametrize("turned", [False, True], ids=["dark on light", "light on dark"])
def test_edges_are_white_along_the_outline_and_nowhere_else(turned: bool) -> None:
    shown = np.asarray(extract("edges", drawing(*(("black", "white") if turned else ("white", "black")))))
    outline = near_outline(shown, within_px=2)
    assert set(np.unique(shown)) == {0, 255}
    assert not shown[~outline].any()
    assert (shown[..., 0] > 0).sum() >= 2 * (23 + 39) - 16  # the square's circumference, less its rounded corners


def test_edges_between_colours_of_one_brightness_are_seen() -> None:
    """Luma of both is 76: a detector that looks at brightness alone finds nothing."""
    made = drawing("#ff0000", "#008100")
    assert len(np.unique(np.asarray(made.convert("L")))) == 1
    assert (np.asarray(extract("edges", made))[..., 0] > 0).sum() >= 100


@pytest.mark.parametrize(("step", "seen"), [(0.1, False), (0.25, True)])
def test_edges_of_little_contrast_are_left_out(step: float, seen: bool) -> None:
    """As by OpenCV's usual thresholds, which begin a line at a step of a fifth: 200 of 1020."""
    pixels = np.full((40, 40, 3), 100, np.uint8)
    pixels[:, 20:] += round(step * 255)
    assert np.asarray(extract("edges", Image.fromarray(pixels))).any() == seen


def test_lineart_is_white_where_a_dark_line_is() -> None:
    shown = np.asarray(extract("lineart", drawing(filled=False)))[..., 0]
    assert shown[near_outline(shown, within_px=0)].min() > 200
    assert not shown[~near_outline(shown, within_px=6)].any()


def test_lineart_of_light_lines_is_not_drawn_as_they_are() -> None:
    shown = np.asarray(extract("lineart", drawing("black", "white", filled=False)))[..., 0]
    assert not shown[near_outline(shown, within_px=0)].any()


# ---------------------------------------------------------------------- depth


def write_depth_model(folder: Path, *, metric: bool = False) -> Path:
    """A tiny Depth Anything with random weights."""
    torch.manual_seed(3)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[4, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=4, depth_estimation_type="metric" if metric else "relative",
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(folder)
    return folder


def colours() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("metric", [False, True], ids=["tells nearness", "tells distance"])
def test_depth_is_the_models_stretched_to_white_where_near(tmp_path: Path, metric: bool) -> None:
    folder = write_depth_model(tmp_path, metric=metric)
    found = extract("depth", colours(), depth_model=folder)
    pixels = np.asarray(found)
    assert found.size == (60, 50)
    assert (pixels.min(), pixels.max()) == (0, 255)
    model = DepthAnythingForDepthEstimation.from_pretrained(folder)
    processor = DPTImageProcessorPil.from_pretrained(folder)
    with torch.inference_mode():
        out = model(**processor(images=colours(), return_tensors="pt"))
    depth = processor.post_process_depth_estimation(out, [(50, 60)])[0]["predicted_depth"].double().numpy()
    near = (depth.max() - depth if metric else depth - depth.min()) / (depth.max() - depth.min())
    assert np.abs(pixels[..., 0] - near * 255).max() <= 0.51


def test_depth_without_a_model_says_which_setting_is_missing() -> None:
    with pytest.raises(RequestRefused, match="none is configured") as refusal:
        extract("depth", colours())
    assert "ONMODEL_ENGINE__DEPTH_MODEL" in refusal.value.next_step


def test_a_folder_without_a_depth_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=str(tmp_path)):
        extract("depth", colours(), depth_model=tmp_path)


def test_a_depth_model_without_its_image_processor_is_refused(tmp_path: Path) -> None:
    folder = write_depth_model(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointRefused, match="image processor"):
        extract("depth", colours(), depth_model=folder)


@pytest.mark.parametrize("kind", ["chmv2", "vit", "their_own", None])
def test_a_model_that_is_not_known_to_estimate_depth_is_refused(tmp_path: Path, kind: str | None) -> None:
    folder = write_depth_model(tmp_path)
    change_json(folder / "config.json", model_type=kind)
    with pytest.raises(CheckpointRefused, match=repr(kind)):
        extract("depth", colours(), depth_model=folder)


@pytest.mark.parametrize(
    ("config", "distance"),
    [
        (DepthAnythingConfig(), False),
        (DepthAnythingConfig(depth_estimation_type="metric"), True),
        (DPTConfig(), False),
        (DPTConfig(add_projection=True), True),
        (GLPNConfig(), True),
        (PromptDepthAnythingConfig(), True),
        (ZoeDepthConfig(), True),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_what_each_kind_tells(config: PretrainedConfig, distance: bool) -> None:
    assert tells_distance(config) == distance


@pytest.mark.parametrize("kind", ["depth_anything", "their_own"])
def test_a_folders_own_code_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """transformers asks on the terminal whether to run it, of the model and of its image processor."""

    def answered(question: str) -> str:
        asked.append(question)
        return "yes"

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", answered)
    folder, mark = write_depth_model(tmp_path / "model"), tmp_path / "mark"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    own = {"AutoConfig": "own.C", "AutoModelForDepthEstimation": "own.M", "AutoImageProcessor": "own.P"}
    change_json(folder / "config.json", model_type=kind, auto_map=own)
    change_json(folder / "preprocessor_config.json", image_processor_type="Own", auto_map=own)
    with pytest.raises(CheckpointRefused):
        extract("depth", colours(), depth_model=folder)
    assert asked == []
    assert not mark.exists()


# ---------------------------------------------------------------------- what cannot be extracted


def test_a_pose_is_to_be_supplied() -> None:
    with pytest.raises(RequestRefused, match="weights that are not shipped") as refusal:
        extract("pose", drawing())
    assert "supply a pose picture" in refusal.value.next_step


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestRefused, match="'scribble'") as refusal:
        extract("scribble", drawing())
    assert all(kind in refusal.value.next_step for kind in EXTRACTABLE)
