"""What is finished of version 2 is what its training can go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from ipadapter_engine.training.studio2 import recipe
from ipadapter_engine.training.studio2.captions import describe_identity, describe_staging
from ipadapter_engine.training.studio2.dataset import rendered
from ipadapter_engine.training.studio2.diffusion import error_from_noise, new_unet, text_states
from ipadapter_engine.training.studio2.export import exported_unet
from ipadapter_engine.training.studio2.first_stage import encode_all, psnr
from ipadapter_engine.training.studio2.mascots import IDENTITY_ATTRIBUTES, held_out_identities
from ipadapter_engine.training.studio2.recipe import Recipe

WEIGHTS = Path(recipe.__file__).parent / "weights"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def so_far(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"), CPU, WEIGHTS)


def test_the_weights_are_small_and_in_half_precision() -> None:
    files = list(WEIGHTS.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) < 60e6
    assert {v.dtype for f in files for v in load_file(f).values() if v.is_floating_point()} == {torch.float16}


def test_the_first_stage_keeps_unseen_pictures(so_far: Recipe) -> None:
    unseen = rendered(64, seed=6, identities=held_out_identities())
    assert psnr(so_far.vae(), unseen, 64) > 26


def test_every_word_can_be_told_from_the_others_by_its_own_state(so_far: Recipe) -> None:
    """States have a length of about 15: another word at a place is nearly at a right angle."""
    clip, tokenizer = so_far.words(), so_far.tokenizer()
    who = held_out_identities()[0]
    for attribute in IDENTITY_ATTRIBUTES:
        told = [describe_identity(replace(who, **{attribute.name: v})) for v in attribute.values]
        states = text_states(clip, tokenizer, told, CPU)
        apart = (states[:, None] - states[None]).norm(dim=-1).amax(-1)
        assert apart[~torch.eye(len(told), dtype=torch.bool)].min() > 10, attribute.name


def test_the_denoiser_has_begun_to_draw_what_words_say(so_far: Recipe) -> None:
    """From pure noise it is far less off with the words than without, and than the mean picture would be."""
    unet = new_unet()
    unet.load_state_dict(exported_unet(WEIGHTS))
    unseen = rendered(48, seed=9, identities=held_out_identities())
    latents = encode_all(so_far.vae(), unseen).float()
    told = [
        f"{describe_identity(w)}, {describe_staging(s)}"
        for w, s in zip(unseen.identities, unseen.stagings, strict=True)
    ]
    words, silence = (text_states(so_far.words(), so_far.tokenizer(), t, CPU) for t in (told, [""] * len(told)))
    told_error, silent_error = (error_from_noise(unet.eval(), latents, text) for text in (words, silence))
    assert told_error < 0.32 * latents.var()
    assert told_error < 0.7 * silent_error


def test_diffusers_makes_pictures_with_what_is_finished(so_far: Recipe) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a mascot, waving, happy, front view, on the beach", num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 128, 128, 3)
    assert made.std() > 0.05
