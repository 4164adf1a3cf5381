"""One set of tiny checkpoints and open engines for all tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.pipeline import Engine
from tests.ipadapter_engine import tiny_checkpoints as tiny

if TYPE_CHECKING:
    from tests.ipadapter_engine.native_engines import NativeEngines

PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@dataclass(frozen=True)
class Checkpoints:
    """Files by what they are; `adapters` by (layout, variant)."""

    folders: dict[str, Path]
    encoder: Path
    adapters: dict[tuple[str, str], Path]

    def paths(self, layout: str, variant: str | None) -> CheckpointPaths:
        if variant is None:
            return CheckpointPaths(self.folders[layout])
        return CheckpointPaths(self.folders[layout], self.adapters[layout, variant], self.encoder)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and sums come out in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {"sd15": tiny.write_sd15(root / "sd15"), "sdxl": tiny.write_sdxl(root / "sdxl")}
    adapters = {}
    for layout, folder in folders.items():
        unet = tiny.open_unet(folder)
        base, plus = tiny.base_adapter_state(unet), tiny.plus_adapter_state(unet)
        adapters[layout, "base"] = tiny.write_safetensors(root / layout / "base.safetensors", base)
        adapters[layout, "plus"] = tiny.write_bin(root / layout / "plus.bin", plus)
    return Checkpoints(folders, tiny.write_encoder(root / "clip"), adapters)


class Engines:
    """Opens each engine once."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._open: dict[tuple[str, str | None], Engine] = {}

    def __call__(self, layout: str, variant: str | None) -> Engine:
        if (layout, variant) not in self._open:
            self._open[layout, variant] = Engine.open(self._checkpoints.paths(layout, variant))
        return self._open[layout, variant]


@pytest.fixture(scope="session")
def engines(checkpoints: Checkpoints) -> Engines:
    return Engines(checkpoints)


@pytest.fixture(scope="session")
def pipeline_of(checkpoints: Checkpoints) -> Callable[[str, str | None], Any]:
    made: dict[tuple[str, str | None], Any] = {}

    def open_pipeline(layout: str, variant: str | None) -> Any:
        if (layout, variant) not in made:
            pipe = PIPELINES[layout].from_pretrained(checkpoints.folders[layout], local_files_only=True)
            if variant is not None:
                file, clip = checkpoints.adapters[layout, variant], checkpoints.encoder.parent
                pipe.register_modules(
                    feature_extractor=CLIPImageProcessorPil.from_pretrained(clip / "feature_extractor")
                )
                pipe.load_ip_adapter(
                    str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=str(checkpoints.encoder)
                )
            pipe.set_progress_bar_config(disable=True)
            made[layout, variant] = pipe
        return made[layout, variant]

    return open_pipeline


@pytest.fixture(scope="session")
def engine(engines: Engines) -> Engine:
    """The one that most tests use: Stable Diffusion 1.5 with a base adapter."""
    return engines("sd15", "base")


def picture(seed: int, side_px: int = tiny.SIDE_PX) -> Image.Image:
    """Coarse random colours, so that resizing leaves something of them."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((side_px, side_px), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [picture(seed) for seed in range(4)]


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeEngines]:
    """Tiny engines of the families that diffusers' pipelines run, opened once; their references are small, too."""
    from tests.ipadapter_engine.native_engines import NativeEngines, small_references  # most tests go without them

    with small_references():
        yield NativeEngines(tmp_path_factory.mktemp("native"))
