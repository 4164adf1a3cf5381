"""ControlNets in one file steer as their folders do; what is none, or another one, is refused by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ControlPrompt
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine import original_layout as original
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import picture

SAME = 1e-6
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of stride 8, as the names of a ControlNet's own layout are made for."""
    root = tmp_path_factory.mktemp("bases")
    return {
        "sd15": tiny.write_sd15(root / "sd15", as_original=True),
        "sdxl": tiny.write_sdxl(root / "sdxl", as_original=True),
    }


@pytest.fixture(scope="module")
def nets(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("nets")
    return {layout: tiny.write_control_net(root / layout, base, stride=8) for layout, base in bases.items()}


@pytest.fixture(scope="module")
def files(nets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """By layout and kind: the authors' names, the same without their prefix, diffusers' names, and a .pth."""
    root = tmp_path_factory.mktemp("control files")
    out = {}
    for layout, folder in nets.items():
        theirs = original.write_control(root / layout / "original.safetensors", folder)
        torch.save(load_file(theirs), root / layout / "original.pth")
        out[layout] = {
            "original": theirs,
            "bare": original.write_control(root / layout / "bare.safetensors", folder, prefix=""),
            "diffusers": folder / WEIGHTS,
            "pickled": root / layout / "original.pth",
        }
    return out


@pytest.fixture(scope="module")
def steered(bases: dict[str, Path], nets: dict[str, Path], files: dict[str, dict[str, Path]]) -> dict[str, Engine]:
    """An engine a layout with the folder and every file of the same ControlNet."""
    return {
        layout: Engine.open(CheckpointPaths(base, controls={"folder": nets[layout], **files[layout]}))
        for layout, base in bases.items()
    }


def request_for(kind: str | None, **changes: Any) -> GenerationRequest:
    controls = () if kind is None else (ControlPrompt(np.asarray(picture(50, 32)), kind),)
    values: dict[str, Any] = {"prompt": "a red fox", "seed": 7, "steps": 2, "guidance": 3.0, "scheduler": "ddim"}
    return GenerationRequest(**{**values, "width_px": 32, "height_px": 32, "controls": controls, **changes})


def refusal_of(base: Path, control: Path) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(CheckpointPaths(base, controls={"edges": control}))
    assert refusal.value.next_step
    assert "\n" not in refusal.value.message
    return refusal.value


@LAYOUTS
@pytest.mark.parametrize("kind", ["original", "bare", "diffusers", "pickled"])
def test_a_file_steers_as_its_folder(steered: dict[str, Engine], layout: str, kind: str) -> None:
    theirs, ours, plain = (steered[layout].generate([request_for(k)])[0].latents for k in ("folder", kind, None))
    assert np.abs(ours - theirs).max() <= SAME
    assert np.abs(theirs - plain).max() > 1e-3


def test_a_smaller_control_net_without_attention_opens_from_a_file(bases: dict[str, Path], tmp_path: Path) -> None:
    small = {
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": 1,
    }  # fmt: skip
    partly = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "transformer_layers_per_block": [1, 1]}
    controls = {}
    for name, changes in (("small", small), ("mid", partly)):
        folder = tiny.write_control_net(tmp_path / name, bases["sdxl"], stride=8, **changes)
        controls |= {name: folder, f"{name}_file": folder / WEIGHTS}
    engine = Engine.open(CheckpointPaths(bases["sdxl"], controls=controls))
    for name in ("small", "mid"):
        theirs, ours = (engine.generate([request_for(k)])[0].latents for k in (name, f"{name}_file"))
        assert np.abs(ours - theirs).max() <= SAME


@LAYOUTS
def test_a_file_is_named_by_its_hash(
    steered: dict[str, Engine], files: dict[str, dict[str, Path]], layout: str
) -> None:
    told = {m.role: m for m in steered[layout].models_of(request_for("original"))}["controlnet original"]
    file = files[layout]["original"]
    assert (told.name, told.sha256) == (file.name, hashlib.sha256(file.read_bytes()).hexdigest())


def test_a_control_net_of_latents_fits_an_inpainting_base(tmp_path: Path) -> None:
    base = tiny.write_sd15(tmp_path / "base", as_original=True, unet_changes={"in_channels": 9})
    folder = tiny.write_control_net(tmp_path / "edges", base, stride=8, in_channels=4)
    paths = CheckpointPaths(base, controls={"edges": folder, "file": folder / WEIGHTS})
    assert sorted(open_checkpoint(paths).controls) == ["edges", "file"]


@pytest.mark.parametrize(("layout", "of"), [("sd15", "sdxl"), ("sdxl", "sd15")])
@pytest.mark.parametrize("kind", ["original", "diffusers"])
def test_a_file_for_another_base_is_refused(
    bases: dict[str, Path], files: dict[str, dict[str, Path]], layout: str, of: str, kind: str
) -> None:
    assert "does not fit" in refusal_of(bases[layout], files[of][kind]).message


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lora_controlnet", "a LoRA of a ControlNet"),
        ("difference", "the difference to a base"),
        ("task_embedding", "union"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("body.0.block1.weight", "a T2I-Adapter"),
        ("something", "no ControlNet"),
    ],
)
def test_what_is_no_control_net_is_refused_by_its_name(
    bases: dict[str, Path], tmp_path: Path, key: str, name: str
) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert name in refusal_of(bases["sd15"], tmp_path / "other.safetensors").message


@pytest.mark.parametrize("key", ["input_blocks.0.0.weight", "zero_convs.0.0.bias", "input_hint_block.14.weight"])
def test_a_file_that_lacks_weights_is_refused(
    bases: dict[str, Path], files: dict[str, dict[str, Path]], tmp_path: Path, key: str
) -> None:
    state = load_file(files["sd15"]["original"])
    del state[f"control_model.{key}"]
    save_file(state, tmp_path / "part.safetensors")
    assert "part.safetensors" in refusal_of(bases["sd15"], tmp_path / "part.safetensors").message
