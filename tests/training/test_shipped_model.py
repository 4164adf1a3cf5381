"""The model that ships is small, diffusers loads it unchanged, and it is on model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from ipadapter_engine.checkpoints import EMBEDDED, CheckpointPaths
from ipadapter_engine.evaluation import fidelity
from ipadapter_engine.evaluation.characters import portrait
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ControlPrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training.captions import describe_identity, prompt_for
from ipadapter_engine.training.dataset import rendered
from ipadapter_engine.training.diffusion import text_states
from ipadapter_engine.training.drawing import pose_picture
from ipadapter_engine.training.first_stage import psnr
from ipadapter_engine.training.mascots import ATTRIBUTES, IDENTITY_ATTRIBUTES, Staging, held_out_identities
from ipadapter_engine.training.studio_model import Recipe

CPU = torch.device("cpu")
NAMES = [a.name for a in ATTRIBUTES]


@pytest.fixture(scope="module")
def shipped() -> Engine:
    return Engine.open()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """As it goes on from what ships."""
    return Recipe(tmp_path_factory.mktemp("recipe"), CPU, EMBEDDED)


def test_the_shipped_files_are_small_and_in_half_precision() -> None:
    files = list(EMBEDDED.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) < 60e6
    assert {v.dtype for f in files for v in load_file(f).values() if v.is_floating_point()} == {torch.float16}


def test_the_first_stage_keeps_unseen_pictures(recipe: Recipe) -> None:
    assert psnr(recipe.vae(), rendered(64, seed=6, identities=held_out_identities()), 64) > 26


def test_every_word_can_be_told_from_the_others_by_its_own_state(recipe: Recipe) -> None:
    """States have a length of about 15: another word at a place is nearly at a right angle."""
    clip, tokenizer = recipe.words(), recipe.tokenizer()
    who = held_out_identities()[0]
    for attribute in IDENTITY_ATTRIBUTES:
        told = [describe_identity(replace(who, **{attribute.name: v})) for v in attribute.values]
        states = text_states(clip, tokenizer, told, CPU)
        apart = (states[:, None] - states[None]).norm(dim=-1).amax(-1)
        assert apart[~torch.eye(len(told), dtype=torch.bool)].min() > 10, attribute.name


def theirs(pipeline: StableDiffusionPipeline, shipped: Engine, asked: GenerationRequest, **given: object) -> np.ndarray:
    """diffusers' own picture of the same: same noise, same steps, same reference, (height, width, 3) in 0…1."""
    pipeline.load_ip_adapter(EMBEDDED, subfolder=".", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    pipeline.set_progress_bar_config(disable=True)
    embedding = torch.from_numpy(asked.references[0].embedding)[None, None]
    picture: np.ndarray = pipeline(
        asked.prompt, latents=torch.randn((1, 16, 16, 16), generator=torch.Generator().manual_seed(asked.seed)),
        num_inference_steps=shipped.family.steps, guidance_scale=shipped.family.guidance, output_type="np",
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embedding), embedding])], **given,
    ).images[0]  # fmt: skip
    return picture


def test_diffusers_loads_the_shipped_model_and_its_adapter_unchanged(shipped: Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED, torch_dtype=torch.float32, local_files_only=True)
    reference = shipped.look_at(portrait(held_out_identities()[300], 256))
    asked = GenerationRequest(prompt_for(Staging(scene="beach")), 7, (reference,))
    ours = next(iter(shipped.generate([asked]))).pixels
    assert np.abs(ours.astype(float) / 255 - theirs(pipeline, shipped, asked)).max() < 0.02


def test_diffusers_loads_the_shipped_control_net_unchanged(shipped: Engine) -> None:
    net = ControlNetModel.from_pretrained(
        EMBEDDED / "controlnet" / "pose", torch_dtype=torch.float32, local_files_only=True
    )
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        EMBEDDED, controlnet=net, torch_dtype=torch.float32, local_files_only=True
    )
    skeleton = pose_picture(Staging(pose="waving"))
    reference = shipped.look_at(portrait(held_out_identities()[300], 256))
    asked = GenerationRequest(
        prompt_for(Staging(pose="waving"), pose=False), 7, (reference,),
        controls=(ControlPrompt(np.asarray(skeleton), "pose"),),
    )  # fmt: skip
    ours = next(iter(shipped.generate([asked]))).pixels
    assert np.abs(ours.astype(float) / 255 - theirs(pipeline, shipped, asked, image=skeleton)).max() < 0.02


@pytest.mark.parametrize("file", ["ip_adapter.safetensors", "ip_adapter_plus.safetensors"])
def test_pictures_of_unseen_characters_are_on_model_and_without_the_adapter_they_are_not(file: str) -> None:
    """A small sample of what `make bench-fidelity` measures on 200 characters, with room for its larger error."""
    shipped = Engine.open(CheckpointPaths(EMBEDDED, adapter=EMBEDDED / file))
    judge, asked = fidelity.open_judge(), fidelity.samples(16, 1)
    right, alone = (
        dict(zip(NAMES, fidelity.read_right(judge, fidelity.make(shipped, asked, s), asked).mean(0), strict=True))
        for s in (1.0, 0.0)
    )
    assert min(right["colour"], right["shape"], right["scene"]) >= 0.6
    assert max(alone["colour"], alone["shape"]) <= 0.5
