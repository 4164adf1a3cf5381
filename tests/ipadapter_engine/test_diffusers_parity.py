"""The engine makes what diffusers' own pipelines make of the same files, noise and scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GeneratedImage, GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine.conftest import Engines

TOLERANCE = 1e-4  # of latents up to USUAL; of LCM's, which reach 50 here, as much more
USUAL = 20.0
CASES = [("sd15", None), ("sd15", "base"), ("sd15", "plus"), ("sdxl", None), ("sdxl", "base"), ("sdxl", "plus")]
SIZES = {"sd15": (64, 48), "sdxl": (32, 40)}


def latents_of_diffusers(
    pipe: Any, engine: Engine, request: GenerationRequest, pictures: list[Image.Image]
) -> np.ndarray:
    """Final latents (channels, h, w) of diffusers' pipeline, from the noise that the request's seed gives."""
    key = engine.batch_key(request)
    before = pipe.scheduler
    pipe.scheduler = SCHEDULERS[key.scheduler].from_config(before.config)
    kwargs: dict[str, Any] = {}
    if pictures:
        pipe.set_ip_adapter_scale(request.scale)
        kwargs["ip_adapter_image"] = [pictures]
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = pipe(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt or None,
                width=key.width_px,
                height=key.height_px,
                num_inference_steps=key.steps,
                guidance_scale=engine.family.guidance if request.guidance is None else request.guidance,
                generator=torch.Generator().manual_seed(request.seed),  # LCM and TCD draw from it on every step, too
                output_type="latent",
                **kwargs,
            )
    finally:
        pipe.scheduler = before
    return np.asarray(out.images[0])


def request_for(layout: str, references: tuple[Any, ...], **changes: Any) -> GenerationRequest:
    width_px, height_px = SIZES[layout]
    values = {"prompt": "a red fox", "seed": 7, "steps": 5, "guidance": 4.0, "scale": 0.7, "scheduler": "ddim"}
    return GenerationRequest(
        references=references, **{**values, "width_px": width_px, "height_px": height_px, **changes}
    )


@pytest.fixture
def error(
    engines: Engines, pipeline_of: Callable[[str, str | None], Any], pictures: list[Image.Image]
) -> Callable[..., float]:
    """The largest difference between the engine's latents and diffusers'."""

    def measure(layout: str, variant: str | None, *, shown: int = 1, **changes: Any) -> float:
        engine, seen = engines(layout, variant), pictures[:shown] if variant else []
        request = request_for(layout, tuple(engine.look_at(p) for p in seen), **changes)
        ours: GeneratedImage = engine.generate([request])[0]
        theirs = latents_of_diffusers(pipeline_of(layout, variant), engine, request, seen)
        assert ours.latents.shape == theirs.shape
        assert np.abs(theirs).max() > 0.1
        return float(np.abs(ours.latents - theirs).max()) / max(1.0, float(np.abs(theirs).max()) / USUAL)

    return measure


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_every_scheduler_agrees(error: Callable[..., float], layout: str, variant: str | None, scheduler: str) -> None:
    assert error(layout, variant, scheduler=scheduler) <= TOLERANCE


@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_a_negative_prompt_agrees(error: Callable[..., float], layout: str, variant: str | None) -> None:
    assert error(layout, variant, negative_prompt="a blue cat") <= TOLERANCE


@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_without_guidance_agrees(error: Callable[..., float], layout: str, variant: str | None) -> None:
    assert error(layout, variant, guidance=1.0) <= TOLERANCE


@pytest.mark.parametrize(("layout", "variant"), [case for case in CASES if case[1]])
@pytest.mark.parametrize("shown", [2, 3])
def test_several_references_agree(error: Callable[..., float], layout: str, variant: str, shown: int) -> None:
    assert error(layout, variant, shown=shown) <= TOLERANCE


def test_a_prompt_longer_than_the_encoder_reads_agrees(error: Callable[..., float]) -> None:
    assert error("sdxl", None, prompt="a red fox beside a blue cat " * 4) <= TOLERANCE


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_decoded_pixels_agree(engines: Engines, pipeline_of: Callable[[str, str | None], Any], layout: str) -> None:
    engine, pipe = engines(layout, None), pipeline_of(layout, None)
    made = engine.generate([request_for(layout, ())])[0]
    with torch.inference_mode():
        decoded = pipe.vae.decode(torch.from_numpy(made.latents)[None] / pipe.vae.config.scaling_factor).sample
    theirs = pipe.image_processor.postprocess(decoded, output_type="np")[0]
    assert np.abs(made.pixels / 255 - theirs).max() <= 0.5 / 255 + 1e-4
