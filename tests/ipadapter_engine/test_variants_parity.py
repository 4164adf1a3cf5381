"""Full-face and FaceID adapters make what diffusers' pipelines make of them, alone and beside requests without a face."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import Array
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_adapters
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import PIPELINES, Checkpoints, picture
from tests.ipadapter_engine.test_diffusers_parity import TOLERANCE, request_for

FACE = np.random.default_rng(5).normal(size=tiny_adapters.FACE).astype(np.float32)
LAYOUTS = ["sd15", "sdxl"]
STATES: dict[str, Callable[..., Any]] = {
    "full-face": tiny_adapters.full_face_state,
    "faceid": tiny_adapters.face_state,
    "faceid-plusv2": tiny_adapters.face_plus_state,
}


@pytest.fixture(scope="module")
def opened(
    checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Engine, Any]]:
    """The engine and diffusers' pipeline with the same adapter."""
    root, made = tmp_path_factory.mktemp("variants"), {}

    def open_both(layout: str, variant: str) -> tuple[Engine, Any]:
        if (layout, variant) not in made:
            folder = checkpoints.folders[layout]
            name = f"ip-adapter-{variant}_{layout}.bin"
            file = tiny.write_bin(root / layout / name, STATES[variant](tiny.open_unet(folder)))
            engine = Engine.open(CheckpointPaths(folder, file, checkpoints.encoder))
            made[layout, variant] = engine, pipeline(folder, file, layout, checkpoints.encoder)
        return made[layout, variant]

    return open_both


def pipeline(folder: Path, file: Path, layout: str, encoder: Path) -> Any:
    pipe = PIPELINES[layout].from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    return pipe


def latents(engine: Engine, request: GenerationRequest) -> Array:
    return engine.generate([request])[0].latents


def of_diffusers(pipe: Any, engine: Engine, request: GenerationRequest) -> Array:
    (reference,) = request.references
    zero_hidden = torch.from_numpy(engine.encoder.zero_hidden())
    pipe.set_ip_adapter_scale(request.scale)
    pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
    if reference.face is not None:
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        projection.clip_embeds = torch.stack([zero_hidden, torch.from_numpy(reference.embedding)])[:, None].float()
        projection.shortcut = True
        shown = torch.from_numpy(np.stack([np.zeros_like(reference.face), reference.face]))[:, None]
    elif reference.embedding is not None and reference.embedding.ndim == 2:
        shown = torch.stack([zero_hidden, torch.from_numpy(reference.embedding)])[:, None]
    else:
        shown = torch.from_numpy(np.stack([np.zeros_like(reference.embedding), reference.embedding]))[:, None]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=request.prompt, width=request.width_px, height=request.height_px, guidance_scale=request.guidance,
            num_inference_steps=request.steps, generator=torch.Generator().manual_seed(request.seed),
            ip_adapter_image_embeds=[shown], output_type="latent",
        )  # fmt: skip
    return np.asarray(out.images[0])


def asked(engine: Engine, layout: str, variant: str) -> GenerationRequest:
    if variant == "full-face":
        return request_for(layout, (engine.look_at(picture(0)),))
    (encoded,) = engine.encoder.encode([picture(0)], hidden=True)
    return request_for(layout, (engine.face_reference(FACE, encoded),))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", sorted(STATES))
def test_the_engine_makes_what_diffusers_makes(opened: Any, layout: str, variant: str) -> None:
    engine, pipe = opened(layout, variant)
    request = asked(engine, layout, variant)
    assert np.abs(latents(engine, request) - of_diffusers(pipe, engine, request)).max() <= TOLERANCE
    assert np.abs(latents(engine, request) - latents(engine, replace(request, references=()))).max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["faceid", "faceid-plusv2"])
def test_a_face_s_own_lora_is_in_its_pictures_and_in_no_other(opened: Any, layout: str, variant: str) -> None:
    engine, _ = opened(layout, variant)
    request = asked(engine, layout, variant)
    others = [replace(request, references=()), replace(request, seed=3), replace(request, scale=0.0)]
    before = latents(engine, others[0])
    for made, one in zip(engine.generate([request, *others]), [request, *others], strict=True):
        assert np.abs(made.latents - latents(engine, one)).max() <= 4e-5
    assert np.array_equal(latents(engine, others[0]), before)


def test_a_face_where_none_is_read_and_none_where_one_is_are_refused(opened: Any) -> None:
    plus, _ = opened("sd15", "faceid-plusv2")
    full, _ = opened("sd15", "full-face")
    with pytest.raises(RequestRefused, match="hidden states beside the face"):
        plus.face_reference(FACE)
    with pytest.raises(RequestRefused, match="reads faces"):
        plus.look_at(picture(0))
    with pytest.raises(RequestRefused, match="reads no faces"):
        full.face_reference(FACE)
    with pytest.raises(RequestRefused, match="all zeros"):
        plus.face_reference(np.zeros(512, np.float32))
    (reference,) = asked(plus, "sd15", "faceid-plusv2").references
    with pytest.raises(RequestRefused, match="face is missing"):
        latents(plus, request_for("sd15", (replace(reference, face=None),)))


def test_a_long_picture_is_heard_in_tiles(engine: Engine) -> None:
    long = picture(0, 96).resize((96, 32))
    tiles = engine.look_at_all_of(long, weight=0.6)
    assert [round(t.weight, 6) for t in tiles] == [0.2] * 3
    centre = engine.look_at(long)
    assert (
        np.abs(latents(engine, request_for("sd15", tiles)) - latents(engine, request_for("sd15", (centre,)))).max()
        > 1e-3
    )
