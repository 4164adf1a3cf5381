"""Image-to-image and inpainting: as diffusers' own pipelines, alone and in a batch, the rest of the picture kept."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import Array, SourcePicture
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import PIPELINES, Checkpoints, Engines, picture
from tests.ipadapter_engine.test_diffusers_parity import SIZES, TOLERANCE, USUAL, latents_of_diffusers, request_for

FROM_PICTURE = {"sd15": StableDiffusionImg2ImgPipeline, "sdxl": StableDiffusionXLImg2ImgPipeline}
WITHIN_MASK = {"sd15": StableDiffusionInpaintPipeline, "sdxl": StableDiffusionXLInpaintPipeline}
SAME = 4e-5  # the latents reach 20: a few units in the last place of single precision


def start(layout: str) -> Array:
    return np.asarray(picture(3, 64).resize(SIZES[layout], Image.Resampling.BILINEAR))


def mask(layout: str) -> Array:
    width, height = SIZES[layout]
    painted = np.zeros((height, width), dtype=np.uint8)
    painted[height // 4 :, : width // 2] = 255
    return painted


def latents(engine: Engine, request: GenerationRequest) -> Array:
    return engine.generate([request])[0].latents


def of_diffusers(checkpoints: Checkpoints, engine: Engine, request: GenerationRequest, layout: str) -> Array:
    source = request.source
    assert source is not None
    kinds: dict[str, Any] = FROM_PICTURE if source.mask is None else WITHIN_MASK
    pipe = kinds[layout].from_pretrained(checkpoints.folders[layout], local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS[engine.batch_key(request).scheduler].from_config(pipe.scheduler.config)
    masked = {} if source.mask is None else {
        "mask_image": Image.fromarray(source.mask), "width": SIZES[layout][0], "height": SIZES[layout][1]}  # fmt: skip
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=request.prompt, image=Image.fromarray(source.picture), strength=source.strength,
            num_inference_steps=request.steps, guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed), output_type="latent", **masked,
        )  # fmt: skip
    return np.asarray(out.images[0])


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler", "unipc", "lcm"])
@pytest.mark.parametrize(("strength", "masked"), [(0.5, False), (1.0, False), (0.6, True), (1.0, True)])
def test_a_picture_to_start_from_agrees_with_diffusers(
    engines: Engines, checkpoints: Checkpoints, layout: str, scheduler: str, strength: float, masked: bool
) -> None:
    engine = engines(layout, None)
    source = SourcePicture(start(layout), strength, mask(layout) if masked else None)
    request = request_for(layout, (), steps=6, scheduler=scheduler, source=source)
    theirs = of_diffusers(checkpoints, engine, request, layout)
    assert np.abs(latents(engine, request) - theirs).max() <= TOLERANCE * max(1.0, np.abs(theirs).max() / USUAL)


def test_rows_that_begin_at_different_steps_are_the_same_alone(engines: Engines) -> None:
    engine = engines("sd15", "base")
    seen = (engine.look_at(picture(0)),)
    requests = [
        request_for("sd15", seen, seed=i, steps=5, scheduler=scheduler, source=source)
        for scheduler in ("dpmpp_2m", "unipc", "euler")
        for i, source in enumerate(
            (None, SourcePicture(start("sd15"), 0.4), SourcePicture(start("sd15"), 0.8, mask("sd15")), None)
        )
    ]
    for made, request in zip(engine.generate(requests, max_batch=4), requests, strict=True):
        assert np.abs(made.latents - latents(engine, request)).max() <= SAME


def test_less_strength_keeps_more_of_the_picture(engines: Engines) -> None:
    engine = engines("sd15", None)
    kept = []
    with torch.inference_mode():
        pixels = torch.from_numpy(start("sd15").copy()).permute(2, 0, 1)[None] / 127.5 - 1
        vae = engine.checkpoint.vae
        clean = (vae.encode(pixels).latent_dist.mean * vae.config["scaling_factor"])[0].numpy()
    for strength in (0.2, 0.6, 1.0):
        request = request_for("sd15", (), steps=10, source=SourcePicture(start("sd15"), strength))
        kept.append(float(np.abs(latents(engine, request) - clean).mean()))
    assert kept == sorted(kept)


def test_what_is_not_masked_keeps_its_very_pixels(engines: Engines) -> None:
    engine = engines("sd15", None)
    source = SourcePicture(start("sd15"), 0.9, mask("sd15"))
    (made,) = engine.generate([request_for("sd15", (), source=source)])
    outside = mask("sd15") == 0
    assert np.array_equal(made.pixels[outside], start("sd15")[outside])
    assert not np.array_equal(made.pixels[~outside], start("sd15")[~outside])


def test_a_source_of_another_size_is_scaled_and_one_of_another_shape_refused(engines: Engines) -> None:
    engine = engines("sd15", None)
    width, height = SIZES["sd15"]
    large = np.asarray(Image.fromarray(start("sd15")).resize((2 * width, 2 * height), Image.Resampling.NEAREST))
    request = request_for("sd15", (), source=SourcePicture(large, 0.5))
    assert latents(engine, request).shape == latents(engine, replace(request, source=None)).shape
    for wrong in (SourcePicture(large[:, :width], 0.5), SourcePicture(large, 0.5, mask("sd15")[:, : width // 2])):
        with pytest.raises(RequestRefused, match="another shape"):
            engine.generate([replace(request, source=wrong)])


def test_a_mask_that_falls_between_what_can_be_repainted_is_refused(engines: Engines) -> None:
    speck = np.zeros_like(mask("sd15"))
    speck[2:4, 2:4] = 255
    with pytest.raises(RequestRefused, match="smaller than what the base can repaint, 8 px"):
        latents(engines("sd15", None), request_for("sd15", (), source=SourcePicture(start("sd15"), 0.5, speck)))


def test_sources_that_make_no_sense_are_refused() -> None:
    good = start("sd15")
    for wrong, told in (
        ({"picture": good.astype(np.float32)}, "no array uint8"),
        ({"picture": good, "strength": 0.0}, "strength 0.0"),
        ({"picture": good, "strength": 1.5}, "strength 1.5"),
        ({"picture": good, "mask": np.zeros((48, 64), np.uint8)}, "is empty"),
        ({"picture": good, "mask": good}, "no array uint8"),
    ):
        with pytest.raises(RequestRefused, match=told):
            SourcePicture(**wrong)


# ---------------------------------------------------------------------- bases that were trained for it


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_an_inpainting_base_agrees_with_diffusers(tmp_path: Path, layout: str, strength: float) -> None:
    write = {"sd15": tiny.write_sd15, "sdxl": tiny.write_sdxl}[layout]
    folder = write(tmp_path / layout, unet_changes={"in_channels": 9})
    engine = Engine.open(CheckpointPaths(folder))
    source = SourcePicture(start(layout), strength, mask(layout))
    request = request_for(layout, (), steps=6, source=source)
    theirs = of_diffusers(Checkpoints({layout: folder}, folder, {}), engine, request, layout)
    assert np.abs(latents(engine, request) - theirs).max() <= TOLERANCE
    with pytest.raises(RequestRefused, match="within a mask"):
        latents(engine, replace(request, source=None))


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_a_base_that_is_told_its_guidance_agrees_with_diffusers(tmp_path: Path, layout: str) -> None:
    write = {"sd15": tiny.write_sd15, "sdxl": tiny.write_sdxl}[layout]
    folder = write(tmp_path / layout, unet_changes={"time_cond_proj_dim": 16})
    engine = Engine.open(CheckpointPaths(folder))
    request = request_for(layout, (), steps=4, guidance=6.0, scheduler="lcm")
    pipe = PIPELINES[layout].from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert np.abs(latents(engine, request) - latents_of_diffusers(pipe, engine, request, [])).max() <= TOLERANCE
    assert np.abs(latents(engine, request) - latents(engine, replace(request, guidance=2.0))).max() > 1e-3
