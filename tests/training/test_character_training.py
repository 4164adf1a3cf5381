"""A character's LoRA is trained on a base that stays as it was, survives a kill, and loads in diffusers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import CharacterModel
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training.character import CharacterTraining, TrainedCharacter, train_character
from ipadapter_engine.training.errors import BaseChanged, TrainingRefused
from ipadapter_engine.training.frozen import base_sha256s
from ipadapter_engine.training.lora import lora_layers, save_lora
from tests.forking import Forked
from tests.ipadapter_engine import tiny_checkpoints as tiny

PIPELINES: dict[str, Any] = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"sd15": tiny.write_sd15(root / "sd15"), "sdxl": tiny.write_sdxl(root / "sdxl")}


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(CheckpointPaths(folder))


def references(count: int = 3) -> list[Image.Image]:
    draw = [np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8) for i in range(count)]
    return [Image.fromarray(d).resize((40, 40), Image.Resampling.NEAREST) for d in draw]


def small(**changes: Any) -> CharacterTraining:
    settings = CharacterTraining(
        steps=4,
        subject="fox",
        identifier="blu",
        rank=4,
        class_pictures=2,
        size_px=32,
        log_every=1,
        lr=1e-2,
        sheet_steps=2,
    )
    return replace(settings, **changes)


def lora_of(trained: TrainedCharacter) -> dict[str, torch.Tensor]:
    return load_file(trained.file)


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_the_base_is_as_before_and_the_file_loads_in_diffusers(
    bases: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    base = opened(bases[layout])
    before, named = base_sha256s(base), list(base.unet.state_dict())
    trained = train_character(base, references(), tmp_path, small())
    assert base_sha256s(base) == before == trained.base
    assert list(base.unet.state_dict()) == named
    assert not hasattr(base.unet, "peft_config")
    assert not base.unet.training
    state = lora_of(trained)
    assert trained.size_bytes == trained.file.stat().st_size
    targets = {k.split(".lora")[0].split(".attn")[1][2:] for k in state}
    assert targets == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(k.startswith("unet.") for k in state)
    up = [v for k, v in state.items() if k.endswith(("lora_B.weight", "lora.up.weight"))]
    assert up
    assert all(v.abs().max() > 0 for v in up)  # they start at zero: every layer was trained
    pipe = PIPELINES[layout].from_pretrained(bases[layout], local_files_only=True)
    ids = torch.zeros(1, 4, 4, 4), torch.tensor([500])
    plain = noise_guess(pipe.unet, *ids)
    pipe.load_lora_weights(trained.file.parent, weight_name=trained.file.name)
    assert pipe.unet.peft_config["default_0"].r == 4
    assert not torch.allclose(noise_guess(pipe.unet, *ids), plain, atol=1e-4)
    pipe.unload_lora_weights()
    assert torch.equal(noise_guess(pipe.unet, *ids), plain)


@torch.no_grad()
def noise_guess(unet: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    text = torch.ones(1, 4, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.ones(1, tiny.WIDTH), "time_ids": torch.ones(1, 6)}
    guess: torch.Tensor = unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
    return guess


def test_the_engine_draws_the_character_with_the_file(bases: dict[str, Path], tmp_path: Path) -> None:
    trained = train_character(opened(bases["sd15"]), references(), tmp_path, small(lr=5e-2, steps=8))
    engine = Engine.open(CheckpointPaths(bases["sd15"]))
    plain = GenerationRequest("a blu fox", 1, width_px=32, height_px=32, steps=3)
    own = replace(plain, character=CharacterModel(trained.file, trained.sha256))
    without, with_it = engine.generate([plain, own])
    assert with_it.finite
    assert not np.array_equal(without.pixels, with_it.pixels)


def test_it_learns_its_references(bases: dict[str, Path], tmp_path: Path) -> None:
    trained = train_character(
        opened(bases["sd15"]), references(), tmp_path, small(steps=60, batch_size=4, lr=2e-2, prior_weight=0.0)
    )
    losses = [v for _, v in trained.losses]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


def test_the_prior_is_made_once_and_changes_what_is_learnt(bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases["sd15"])
    settings = small(class_cache=tmp_path / "class", class_prompts=("a fox", "a red fox"))
    first = train_character(base, references(), tmp_path / "one", settings)
    (cached,) = (tmp_path / "class").glob("*.safetensors")
    made = cached.stat().st_mtime_ns
    assert load_file(cached)["latents"].shape == (2, 4, 4, 4)
    train_character(base, references(4), tmp_path / "two", settings)
    assert cached.stat().st_mtime_ns == made
    without = train_character(base, references(), tmp_path / "three", replace(settings, prior_weight=0.0))
    assert any(not torch.equal(lora_of(first)[k], v) for k, v in lora_of(without).items())
    assert first.losses[0][1] > without.losses[0][1]


def test_parts_that_are_accumulated_equal_one_large_batch(bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases["sd15"])
    whole = train_character(base, references(), tmp_path / "whole", small(batch_size=4, flips=True))
    parts = train_character(base, references(), tmp_path / "parts", small(batch_size=2, accumulate=2, flips=True))
    assert [v for _, v in whole.losses] == pytest.approx([v for _, v in parts.losses], rel=1e-3)


def test_captions_of_the_references_are_learnt_instead_of_the_one_prompt(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base = opened(bases["sd15"])
    one = train_character(base, references(), tmp_path / "one", small())
    told = train_character(base, references(), tmp_path / "told", small(), captions=["a red cat", "a blu fox", "cat"])
    assert any(not torch.equal(lora_of(one)[k], v) for k, v in lora_of(told).items())
    with pytest.raises(TrainingRefused, match="2 captions for 3 references"):
        train_character(base, references(), tmp_path / "bad", small(), captions=["a", "b"])


def test_a_sheet_shows_what_is_learnt_and_leaves_the_training_as_it_is(bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases["sd15"])
    shown = train_character(base, references(), tmp_path / "a", small(sheet_every=2, ema_decay=0.9))
    plain = train_character(base, references(), tmp_path / "b", small(ema_decay=0.9))
    assert [s.name for s in sorted((tmp_path / "a" / "sheets").iterdir())] == [
        "character-0000002.png", "character-0000004.png"
    ]  # fmt: skip
    assert shown.file.read_bytes() == plain.file.read_bytes()


@pytest.mark.parametrize("count", [2, 9])
def test_three_to_eight_references_are_needed(bases: dict[str, Path], tmp_path: Path, count: int) -> None:
    with pytest.raises(TrainingRefused, match=f"{count} references"):
        train_character(opened(bases["sd15"]), references(count), tmp_path, small())


def test_a_base_that_changes_meanwhile_is_seen(bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases["sd15"])

    def meddle(done: int, of: int) -> None:
        with torch.no_grad():
            base.text[0].model.get_input_embeddings().weight.mul_(1.0001)

    with pytest.raises(BaseChanged, match="text encoder 1"):
        train_character(base, references(), tmp_path, small(), on_step=meddle)
    assert not (tmp_path / "character.safetensors").exists()
    assert not (tmp_path / "character.ckpt").exists()


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_a_file_says_its_alpha_and_guesses_as_what_was_trained(
    bases: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    base = opened(bases[layout])
    ids = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([500])
    with lora_layers(base.unet, rank=4, alpha=12):
        for name, weight in base.unet.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
        trained = noise_guess(base.unet, *ids)
        for copy in range(4):
            save_lora(base.unet, tmp_path / f"{copy}.safetensors", sdxl=layout == "sdxl", dtype=torch.float32)
    assert len({(tmp_path / f"{copy}.safetensors").read_bytes() for copy in range(4)}) == 1
    pipe = PIPELINES[layout].from_pretrained(bases[layout], local_files_only=True)
    plain = noise_guess(pipe.unet, *ids)
    pipe.load_lora_weights(tmp_path, weight_name="0.safetensors")
    torch.testing.assert_close(noise_guess(pipe.unet, *ids), trained, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, trained, atol=1e-2)


def test_a_training_that_is_stopped_leaves_the_base_as_it_was_and_goes_on(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base = opened(bases["sd15"])
    before, names = base_sha256s(base), list(base.unet.state_dict())
    strides = [p.stride() for p in base.unet.parameters()]

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_character(base, references(), tmp_path / "stopped", small(), on_step=stop)
    assert base_sha256s(base) == before
    assert list(base.unet.state_dict()) == names
    assert [p.stride() for p in base.unet.parameters()] == strides
    assert not getattr(base.unet, "peft_config", None)
    assert not base.unet.training
    layouts: list[bool] = []

    def look(done: int, of: int) -> None:
        layouts.append(base.unet.conv_in.weight.stride(1) == 1)

    resumed = train_character(base, references(), tmp_path / "stopped", small(), on_step=look)
    whole = train_character(base, references(), tmp_path / "whole", small(), on_step=look)
    assert layouts == [True] * 6  # channels last, also after the engine that makes class pictures is closed
    assert resumed.sha256 == whole.sha256


def test_class_pictures_of_another_base_are_not_taken(bases: dict[str, Path], tmp_path: Path) -> None:
    settings = small(class_cache=tmp_path / "class", steps=1)
    base = opened(bases["sd15"])
    train_character(base, references(), tmp_path / "one", settings)
    with torch.no_grad():
        next(base.unet.parameters()).mul_(1.01)
    train_character(base, references(), tmp_path / "two", settings)
    assert len(list((tmp_path / "class").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 2}, {"rank": 32}, {"alpha": 0}, {"identifier": " "}, {"class_pictures": 0}, {"steps": 0},
     {"prior_weight": float("nan")}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingRefused):
        CharacterTraining(**wrong)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_character_training import opened, references, small, train_character
def kill(done, of):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)
settings = small(steps=14, checkpoint_every=3)
train_character(opened(Path(sys.argv[1])), references(), Path(sys.argv[2]), settings, on_step=kill)
"""


def test_killed_and_started_again_it_ends_bit_for_bit_the_same(bases: dict[str, Path], tmp_path: Path) -> None:
    base, settings = opened(bases["sd15"]), small(steps=14, checkpoint_every=3)
    whole = train_character(base, references(), tmp_path / "whole", settings)
    killed = tmp_path / "killed"
    arguments = [str(bases["sd15"]), str(killed)]
    process = Forked(arguments, program=KILLED)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "character.safetensors").exists()
    assert torch.load(killed / "character.ckpt", weights_only=True)["step"] == 6
    resumed = train_character(base, references(), killed, settings)
    assert resumed.file.read_bytes() == whole.file.read_bytes()
    assert resumed.losses == whole.losses
