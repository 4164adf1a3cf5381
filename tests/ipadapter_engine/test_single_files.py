"""Bases in one file: the same pictures as from the diffusers folder with the same weights, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ipadapter_engine.bases import open_texts
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine import original_layout as original
from tests.ipadapter_engine import tiny_checkpoints as tiny

SAME = 1e-6
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])
WRITERS = {"sd15": tiny.write_sd15, "sdxl": tiny.write_sdxl}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("original")
    return {layout: write(root / layout, as_original=True) for layout, write in WRITERS.items()}


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("files")
    return {
        layout: original.write_base(root / layout / f"{layout}.safetensors", folder)
        for layout, folder in folders.items()
    }


@pytest.fixture(scope="module")
def both(folders: dict[str, Path], files: dict[str, Path]) -> dict[str, tuple[Engine, Engine]]:
    """An engine of the folder and one of the file, by layout."""
    return {
        layout: (Engine.open(CheckpointPaths(folders[layout])), Engine.open(CheckpointPaths(files[layout])))
        for layout in folders
    }


def latents(engine: Engine, **changes: Any) -> np.ndarray:
    values: dict[str, Any] = {"prompt": "a red fox!", "seed": 7, "steps": 3, "guidance": 4.0, "scheduler": "ddim"}
    request = GenerationRequest(**{**values, "width_px": 64, "height_px": 48, **changes})
    return engine.generate([request])[0].latents


def refusal_of(paths: CheckpointPaths | Path) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(paths if isinstance(paths, CheckpointPaths) else CheckpointPaths(paths))
    assert refusal.value.next_step
    assert "\n" not in refusal.value.message
    return refusal.value


# ---------------------------------------------------------------------- as the folder


@LAYOUTS
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler", "unipc"])
def test_a_file_makes_what_its_folder_makes(
    both: dict[str, tuple[Engine, Engine]], layout: str, scheduler: str
) -> None:
    theirs, ours = (latents(engine, scheduler=scheduler, negative_prompt="a blue cat") for engine in both[layout])
    assert np.abs(ours - theirs).max() <= SAME
    assert np.abs(theirs).max() > 0.1


@LAYOUTS
def test_a_file_decodes_as_its_folder(both: dict[str, tuple[Engine, Engine]], layout: str) -> None:
    request = GenerationRequest("a red fox", seed=1, steps=2, width_px=64, height_px=64)
    theirs, ours = (engine.generate([request])[0] for engine in both[layout])
    assert np.array_equal(ours.pixels, theirs.pixels)


@LAYOUTS
def test_every_number_of_the_configuration_is_the_folder_s(both: dict[str, tuple[Engine, Engine]], layout: str) -> None:
    """What a file is opened with beside its weights: only the native side is the family's and not the tiny one's."""
    of_folder, of_file = (engine.checkpoint for engine in both[layout])
    for part in ("unet", "vae"):
        ours, theirs = (
            {k: list(v) if isinstance(v, tuple) else v for k, v in getattr(c, part).config.items() if k[0] != "_"}
            for c in (of_file, of_folder)
        )
        depths = "transformer_layers_per_block"
        if isinstance(theirs.get(depths), int):
            theirs[depths] = [theirs[depths]] * len(theirs["block_out_channels"])
        heads = "attention_head_dim"
        for config in (ours, theirs):
            config.pop("sample_size")
            if isinstance(config.get(heads), int) and part == "unet":
                config[heads] = [config[heads]] * len(config["block_out_channels"])
        assert ours == theirs
    assert of_file.family == of_folder.family
    assert of_file.zero_empty_prompt == of_folder.zero_empty_prompt
    assert [t.model.config.hidden_act for t in of_file.text] == [t.model.config.hidden_act for t in of_folder.text]


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision_makes_what_its_folder_makes(
    folders: dict[str, Path], tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    folder = tiny.copy_of(folders[layout], tmp_path / "folder")
    for weights in folder.glob("*/*.safetensors"):
        save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    file = original.write_base(tmp_path / "file" / "half.safetensors", folder, dtype=dtype)
    assert load_file(file)["model.diffusion_model.out.2.weight"].dtype == dtype
    of_folder, of_file = (Engine.open(CheckpointPaths(p)) for p in (folder, file))
    assert of_file.checkpoint.unet.dtype == torch.float32
    assert np.abs(latents(of_file) - latents(of_folder)).max() <= SAME


def test_opened_in_half_precision_sdxl_keeps_its_vae_in_single(files: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(CheckpointPaths(files["sdxl"]), dtype=torch.float16)
    assert (checkpoint.unet.dtype, checkpoint.vae.dtype) == (torch.float16, torch.float32)
    assert all(t.model.dtype == torch.float16 for t in checkpoint.text)


@LAYOUTS
def test_a_ckpt_opens_like_a_safetensors_file(
    folders: dict[str, Path], both: dict[str, tuple[Engine, Engine]], tmp_path: Path, layout: str
) -> None:
    ckpt = Engine.open(CheckpointPaths(original.write_base(tmp_path / "model.ckpt", folders[layout])))
    assert np.array_equal(latents(ckpt), latents(both[layout][1]))


@LAYOUTS
def test_an_adapter_and_an_encoder_go_with_a_file(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    state = tiny.base_adapter_state(tiny.open_unet(folders[layout]))
    adapter = tiny.write_safetensors(tmp_path / "adapter.safetensors", state)
    paths = CheckpointPaths(files[layout], adapter, tiny.write_encoder(tmp_path))
    assert open_checkpoint(paths).adapter is not None


def test_a_model_that_predicts_v_from_pure_noise_says_so_by_its_keys(folders: dict[str, Path], tmp_path: Path) -> None:
    write = original.write_base
    keys = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    both = open_checkpoint(CheckpointPaths(write(tmp_path / "v.safetensors", folders["sdxl"], **keys)))
    told = {"modelspec.prediction_type": "v"}
    only_v = open_checkpoint(CheckpointPaths(write(tmp_path / "m.safetensors", folders["sdxl"], told=told)))
    assert both.scheduler_config["prediction_type"] == "v_prediction"
    assert both.scheduler_config["rescale_betas_zero_snr"]
    assert both.scheduler_config["timestep_spacing"] == "trailing"
    assert only_v.scheduler_config["prediction_type"] == "v_prediction"
    assert "rescale_betas_zero_snr" not in only_v.scheduler_config


@LAYOUTS
def test_a_file_that_takes_guidance_as_an_input_makes_what_its_folder_makes(tmp_path: Path, layout: str) -> None:
    folder = WRITERS[layout](tmp_path / layout, as_original=True, unet_changes={"time_cond_proj_dim": 16})
    file = original.write_base(tmp_path / "files" / f"{layout}.safetensors", folder)
    theirs, ours = (Engine.open(CheckpointPaths(place)) for place in (folder, file))
    assert ours.checkpoint.guidance_dim == 16
    assert (ours.family.scheduler, ours.family.steps) == ("lcm", 4)
    same, other = latents(ours, scheduler="lcm"), latents(ours, scheduler="lcm", guidance=2.0)
    # of the first step a fifteenth is picture: reading it off the noise makes roundings fifteen times as large
    assert np.abs(same - latents(theirs, scheduler="lcm")).max() <= 30 * SAME
    assert np.abs(same - other).max() > 1e-3


# ---------------------------------------------------------------------- what lineage says


@LAYOUTS
def test_one_hash_stands_for_the_file(
    files: dict[str, Path], both: dict[str, tuple[Engine, Engine]], layout: str
) -> None:
    (model,) = both[layout][1].models
    assert (model.role, model.name) == ("checkpoint", files[layout].name)
    assert model.sha256 == hashlib.sha256(files[layout].read_bytes()).hexdigest()


def test_a_licence_that_the_file_tells_is_recorded(folders: dict[str, Path], tmp_path: Path) -> None:
    told = {"modelspec.license": "CreativeML Open RAIL-M"}
    file = original.write_base(tmp_path / "told.safetensors", folders["sd15"], told=told)
    assert open_checkpoint(CheckpointPaths(file)).base_model.licence == "CreativeML Open RAIL-M"


# ---------------------------------------------------------------------- the tokenizer


@LAYOUTS
def test_text_becomes_the_same_tokens_as_in_the_folder(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    """With the folder's own tokenizers beside, and with nothing but the vocabulary of the first."""
    file, bare = tmp_path / "model.safetensors", tmp_path / "vocabulary"
    shutil.copy(files[layout], file)
    bare.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folders[layout] / "tokenizer" / name, bare)
    wanted = open_texts(folders[layout])
    for texts in (open_texts(files[layout]), open_texts(file, bare)):
        for ours, theirs in zip(texts, wanted, strict=True):
            for prompt in ("a red fox!", "", "red ! cat !! fox " * 4):
                told = {"padding": "max_length", "max_length": tiny.LENGTH, "truncation": True}
                assert ours.tokenizer(prompt, **told)["input_ids"] == theirs.tokenizer(prompt, **told)["input_ids"]


def test_a_file_without_a_tokenizer_says_what_to_put_where(files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    shutil.copy(files["sd15"], file)
    refusal = refusal_of(file)
    assert str(tmp_path / "tokenizer") in refusal.message
    assert "ONMODEL_ENGINE__TOKENIZER" in refusal.next_step
    assert "openai/clip-vit-large-patch14" in refusal.next_step
    assert str(tmp_path / "empty") in refusal_of(CheckpointPaths(file, tokenizer=tmp_path / "empty")).message


def test_a_vocabulary_with_more_tokens_than_the_text_encoder_is_refused(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny.copy_of(folders["sd15"] / "tokenizer", tmp_path / "tokenizer")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "more</w>": len(vocabulary)}))
    assert "tokens" in refusal_of(CheckpointPaths(files["sd15"], tokenizer=folder)).message


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("cond_stage_model.model.ln_final.weight", "Stable Diffusion 2"),
        ("conditioner.embedders.0.model.ln_final.weight", "SDXL's refiner"),
        ("edm_mean", "Playground 2.5"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("lora_unet_mid_block_attentions_0.lora_down.weight", "a LoRA"),
        ("image_proj.proj.weight", "an IP-Adapter"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet alone"),
        ("encoder.down.0.block.0.conv1.weight", "a first stage alone"),
        ("something", "no UNet"),
    ],
)
def test_what_is_no_base_or_another_one_is_refused_by_its_name(tmp_path: Path, key: str, name: str) -> None:
    save_file({key: torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    refusal = refusal_of(tmp_path / "other.safetensors")
    assert name in refusal.message
    assert "Stable Diffusion 1.5 or SDXL" in refusal.next_step


@pytest.mark.parametrize(
    ("layout", "prefix", "name"),
    [
        ("sd15", "first_stage_model.", "first stage (VAE)"),
        ("sd15", "cond_stage_model.", "text encoder"),
        ("sdxl", "first_stage_model.", "first stage (VAE)"),
        ("sdxl", "conditioner.embedders.0.", "text encoder"),
        ("sdxl", "conditioner.embedders.1.", "text encoder"),
    ],
)
def test_a_file_without_all_its_parts_is_refused_by_what_it_lacks(
    files: dict[str, Path], tmp_path: Path, layout: str, prefix: str, name: str
) -> None:
    state = load_file(files[layout])
    save_file({k: v for k, v in state.items() if not k.startswith(prefix)}, tmp_path / "part.safetensors")
    refusal = refusal_of(tmp_path / "part.safetensors")
    assert f"lacks the {name}" in refusal.message
    assert "diffusers folder" in refusal.next_step


@LAYOUTS
@pytest.mark.parametrize("key", ["time_embed.0.bias", "input_blocks.1.0.in_layers.2.weight", "out.2.bias"])
@pytest.mark.parametrize("change", [lambda v: None, lambda v: v[:1].clone()], ids=["missing", "another shape"])
def test_a_damaged_unet_is_refused(
    files: dict[str, Path], tmp_path: Path, layout: str, key: str, change: Callable[[torch.Tensor], Any]
) -> None:
    state = load_file(files[layout])
    name = f"model.diffusion_model.{key}"
    changed = change(state.pop(name))
    save_file(state if changed is None else state | {name: changed}, tmp_path / "damaged.safetensors")
    assert "damaged.safetensors" in refusal_of(tmp_path / "damaged.safetensors").message


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.middle_block.9.odd.weight", "model.diffusion_model.time_embed.cond_proj.weight"]
)
def test_weights_that_no_such_model_has_are_refused(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Left out silently, they would make another picture than their author's."""
    save_file(load_file(files["sd15"]) | {name: torch.zeros(2, 2)}, tmp_path / "more.safetensors")
    assert "more.safetensors" in refusal_of(tmp_path / "more.safetensors").message


def test_a_ckpt_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callback": Path}, tmp_path / "model.ckpt")
    refusal = refusal_of(tmp_path / "model.ckpt")
    assert "not a plain file of weights" in refusal.message
    assert "safetensors" in refusal.next_step


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_truncated_file_is_refused(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    file = original.write_base(tmp_path / name, folders["sd15"])
    file.write_bytes(file.read_bytes()[:-4096])
    assert "damaged" in refusal_of(file).message


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert ".safetensors" in refusal_of(tmp_path / "model.gguf").message


def test_a_file_that_is_missing_is_told_as_a_file(tmp_path: Path) -> None:
    refusal = refusal_of(tmp_path / "model.safetensors")
    assert "no checkpoint file" in refusal.message
    assert "ONMODEL_ENGINE__BASE" in refusal.next_step
