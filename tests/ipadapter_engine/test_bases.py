"""Kinds of base beside plain text-to-image: what opens and says what it is, what is refused, whose schedule is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import original_layout as original
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints
from tests.ipadapter_engine.test_diffusers_parity import latents_of_diffusers, request_for

WRITERS = {"sd15": tiny.write_sd15, "sdxl": tiny.write_sdxl}
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])


@LAYOUTS
@pytest.mark.parametrize("one_file", [False, True], ids=["folder", "file"])
def test_an_inpainting_base_opens_and_says_so(tmp_path: Path, layout: str, one_file: bool) -> None:
    folder = WRITERS[layout](tmp_path / layout, as_original=True, unet_changes={"in_channels": 9})
    base = original.write_base(tmp_path / "one" / "inpainting.safetensors", folder) if one_file else folder
    checkpoint = open_checkpoint(CheckpointPaths(base))
    assert checkpoint.inpaints
    assert checkpoint.latent_channels == 4
    assert checkpoint.unet.config["in_channels"] == 9


@LAYOUTS
def test_a_plain_base_does_not_inpaint_and_takes_no_guidance(checkpoints: Checkpoints, layout: str) -> None:
    checkpoint = open_checkpoint(checkpoints.paths(layout, None))
    assert not checkpoint.inpaints
    assert checkpoint.guidance_dim is None


@pytest.mark.parametrize(("channels", "kind"), [(5, "a depth base"), (7, "an upscaling base"), (8, "an editing base")])
@pytest.mark.parametrize("one_file", [False, True], ids=["folder", "file"])
def test_bases_that_read_something_else_are_refused_by_name(
    tmp_path: Path, channels: int, kind: str, one_file: bool
) -> None:
    folder = tiny.write_sd15(tmp_path / "base", as_original=True, unet_changes={"in_channels": channels})
    base = original.write_base(tmp_path / "one" / "base.safetensors", folder) if one_file else folder
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(CheckpointPaths(base))
    assert kind in refusal.value.message
    assert f"{channels} channels" in refusal.value.message
    assert "inpainting" in refusal.value.next_step


@LAYOUTS
def test_a_base_that_takes_guidance_as_an_input_says_so(tmp_path: Path, layout: str) -> None:
    checkpoint = open_checkpoint(
        CheckpointPaths(WRITERS[layout](tmp_path / layout, unet_changes={"time_cond_proj_dim": 16}))
    )
    assert checkpoint.guidance_dim == 16
    assert (checkpoint.family.scheduler, checkpoint.family.steps) == ("lcm", 4)


@pytest.fixture(scope="module")
def zero_snr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL that predicts v and was trained to begin with pure noise (Lin et al., 2023, arXiv:2305.08891)."""
    return tiny.write_sdxl(
        tmp_path_factory.mktemp("zero") / "sdxl", prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing", as_original=True,
    )  # fmt: skip


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_v_prediction_and_zero_snr_are_kept_as_by_diffusers(zero_snr: Path, scheduler: str) -> None:
    engine = Engine.open(CheckpointPaths(zero_snr))
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(zero_snr, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    request = request_for("sdxl", (), scheduler=scheduler, width_px=64, height_px=48)
    theirs = latents_of_diffusers(pipe, engine, request, [])
    assert np.abs(engine.generate([request])[0].latents - theirs).max() <= 1e-4
    assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_a_schedule_is_the_folder_s_own(zero_snr: Path, checkpoints: Checkpoints, scheduler: str) -> None:
    """Trailing steps begin at the last timestep, where a rescaled schedule has no signal left."""
    ours, plain = (
        SCHEDULERS[scheduler].from_config(open_checkpoint(paths).scheduler_config)
        for paths in (CheckpointPaths(zero_snr), checkpoints.paths("sdxl", None))
    )
    for made in (ours, plain):
        made.set_timesteps(4)
    assert int(ours.timesteps[0]) == 999
    assert int(plain.timesteps[0]) < 999
    assert float(ours.alphas_cumprod[-1]) < 1e-6 < float(plain.alphas_cumprod[-1])
    assert ours.config.prediction_type == "v_prediction"


def test_a_file_that_predicts_v_makes_what_its_folder_makes(zero_snr: Path, tmp_path: Path) -> None:
    keys = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = original.write_base(tmp_path / "v.safetensors", zero_snr, **keys)
    request = request_for("sdxl", (), scheduler="euler", width_px=64, height_px=48)
    theirs, ours = (Engine.open(CheckpointPaths(p)).generate([request])[0].latents for p in (zero_snr, file))
    assert np.abs(ours - theirs).max() <= 1e-6
