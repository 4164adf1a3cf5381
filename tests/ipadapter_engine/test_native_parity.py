"""Each family's pictures are those of diffusers' own pipeline, opened and called as its documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.native.engine import NativeEngine
from ipadapter_engine.native.families import FAMILIES
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine import tiny_native
from tests.ipadapter_engine.conftest import picture
from tests.ipadapter_engine.native_engines import NativeEngines

TOLERANCE = 1e-4
WIDTH, HEIGHT, STEPS, SEED = 64, 48, 3, 71


class Pipelines:
    """diffusers' own pipelines, each part opened by its own class and put together once."""

    def __init__(self, native: NativeEngines) -> None:
        self._native = native
        self._open: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = self._opened(name)
        return self._open[name]

    def _opened(self, name: str) -> Any:
        folder, paths = self._native.folder(name), self._native.paths(name)
        index = json.loads((folder / "model_index.json").read_text())
        parts = {}
        for part, told in index.items():
            if isinstance(told, list):
                library = {"diffusers": diffusers, "transformers": transformers}[told[0]]
                # the processor of FLUX.2 asks for torchvision, to read pictures that its prompts do not have
                kind = transformers.AutoTokenizer if told[1] == "PixtralProcessor" else getattr(library, told[1])
                parts[part] = _qwen_processor(folder) if part == "processor" else kind.from_pretrained(folder / part)
        options = {"is_distilled": True} if index.get("is_distilled") else {}
        pipe = getattr(diffusers, index["_class_name"])(**parts, **options)
        pipe.set_progress_bar_config(disable=True)
        if paths.adapter is not None:
            other = "image_encoder_pretrained_model_name_or_path" if name.startswith("flux") else "image_encoder_folder"
            pipe.load_ip_adapter(str(paths.adapter.parent), weight_name=paths.adapter.name, **{other: None})
        return pipe


def _qwen_processor(folder: Path) -> Any:
    """transformers' own, without the half that reads videos, which asks for torchvision as it is opened."""
    processor = transformers.Qwen2VLProcessor.__new__(transformers.Qwen2VLProcessor)
    processor.tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor")
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = processor.tokenizer.convert_tokens_to_ids(
        [processor.image_token, processor.video_token]
    )
    return processor


@pytest.fixture(scope="module")
def pipelines(native: NativeEngines) -> Pipelines:
    return Pipelines(native)


def theirs(pipe: Any, **asked: Any) -> tuple[np.ndarray, np.ndarray]:
    """The latents after the last step as the pipeline lays them out, and its pixels, 0 to 1; of its own noise."""
    last = {}

    def keep(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        last.update(given)
        return given

    made = pipe(
        prompt="a red fox", width=WIDTH, height=HEIGHT, num_inference_steps=STEPS, output_type="np",
        generator=torch.Generator().manual_seed(SEED), callback_on_step_end=keep, **asked,
    ).images[0]  # fmt: skip
    return last["latents"].numpy(), made


def ours(engine: NativeEngine, pictures: list[Image.Image], **changes: Any) -> Any:
    shown = tuple(engine.look_at(p) for p in pictures)
    asked = {"width_px": WIDTH, "height_px": HEIGHT, "steps": STEPS, **changes}
    return engine.generate([GenerationRequest("a red fox", SEED, shown, **asked)])[0]


def packed(latents: np.ndarray) -> np.ndarray:
    """(c, h, w) as FLUX and Qwen pack them: patches of 2 × 2 become rows."""
    c, h, w = latents.shape
    return latents.reshape(c, h // 2, 2, w // 2, 2).transpose(1, 3, 0, 2, 4).reshape(1, h * w // 4, c * 4)


def rows(latents: np.ndarray) -> np.ndarray:
    """(c, h, w) as FLUX.2's pipeline returns them: patches become channels, positions rows."""
    c, h, w = latents.shape
    patches = latents.reshape(c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3).reshape(c * 4, -1)
    return patches.T[None]


def plain(latents: np.ndarray) -> np.ndarray:
    """As Stable Diffusion 3's pipeline returns them."""
    return latents[None]


ONE, TWO = [1], [1, 2]
KONTEXT = {"guidance_scale": 2.5, "max_area": WIDTH * HEIGHT}
CASES: list[Any] = [
    ("flux", [], {"guidance_scale": 2.0}, {"guidance": 2.0}, packed),
    ("flux-schnell", [], {"max_sequence_length": 256}, {}, packed),
    ("kontext", [], KONTEXT, {}, packed),
    ("kontext", ONE, KONTEXT, {}, packed),
    ("flux2", [], {"guidance_scale": 4.0}, {}, rows),
    ("flux2", TWO, {"guidance_scale": 3.0}, {"guidance": 3.0}, rows),
    ("flux2-klein", ONE, {"guidance_scale": 2.0}, {"guidance": 2.0}, rows),
    ("flux2-klein-distilled", TWO, {"guidance_scale": 1.0}, {}, rows),
    ("sd3", [], {"negative_prompt": "a blue cat"}, {"negative_prompt": "a blue cat"}, plain),
    ("sd3", [], {"guidance_scale": 1.0}, {"guidance": 1.0}, plain),
    ("qwen-edit", ONE, {"true_cfg_scale": 4.0, "negative_prompt": " "}, {}, packed),
    ("qwen-edit", ONE, {"true_cfg_scale": 3.0, "negative_prompt": "blue"},
     {"guidance": 3.0, "negative_prompt": "blue"}, packed),
    ("qwen-edit-plus", TWO, {"true_cfg_scale": 4.0, "negative_prompt": " "}, {}, packed),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "seen", "asked", "changes", "layout"), CASES, ids=[f"{c[0]}-{len(c[1])}-{i}" for i, c in enumerate(CASES)]
)
def test_a_picture_is_that_of_the_pipeline_called_directly(
    native: NativeEngines, pipelines: Pipelines, name: str, seen: list[int], asked: dict[str, Any],
    changes: dict[str, Any], layout: Callable[[np.ndarray], np.ndarray],
) -> None:  # fmt: skip
    pictures = [picture(seed, 96) for seed in seen]
    several = len(pictures) > 1 or name == "qwen-edit-plus"
    shown = {"image": pictures if several else pictures[0]} if pictures else {}
    latents, pixels = theirs(pipelines(name), **shown, **asked)
    made = ours(native(name), pictures, **changes)
    assert np.abs(layout(made.latents) - latents).max() <= TOLERANCE
    assert np.abs(made.pixels / 255 - pixels).max() <= 0.5 / 255 + TOLERANCE


@pytest.mark.parametrize("scale", [0.6, 1.5])
def test_flux_hears_references_as_its_pipeline_with_the_adapter_does(
    native: NativeEngines, pipelines: Pipelines, scale: float
) -> None:
    engine, seen, pipe = native("flux-adapter"), [picture(1), picture(2)], pipelines("flux-adapter")
    embeds = torch.from_numpy(np.stack([e.pooled for e in clip_of(engine).encode(seen)]))[None]
    pipe.set_ip_adapter_scale(scale)
    latents, _ = theirs(
        pipe, ip_adapter_image_embeds=[embeds], negative_ip_adapter_image_embeds=[torch.zeros_like(embeds)]
    )
    assert np.abs(packed(ours(engine, seen, scale=scale).latents) - latents).max() <= TOLERANCE


def test_flux_hears_an_embedding_as_its_picture(native: NativeEngines) -> None:
    engine = native("flux-adapter")
    said = engine.reference(clip_of(engine).encode([picture(1)])[0])
    by_picture = ours(engine, [picture(1)])
    (by_embedding,) = engine.generate(
        [GenerationRequest("a red fox", SEED, (said,), width_px=WIDTH, height_px=HEIGHT, steps=STEPS)]
    )
    assert np.abs(by_picture.latents - by_embedding.latents).max() <= 1e-5


def clip_of(engine: NativeEngine) -> ImageEncoder:
    adapter = engine.checkpoint.adapter
    assert adapter is not None
    assert isinstance(adapter.sight, ImageEncoder)
    return adapter.sight


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_sd3_hears_a_reference_as_its_pipeline_with_the_adapter_does(
    native: NativeEngines, pipelines: Pipelines, guidance: float
) -> None:
    engine, seen, pipe = native("sd3-adapter"), picture(1), pipelines("sd3-adapter")
    siglip = transformers.SiglipVisionModel.from_pretrained(native.paths("sd3-adapter").encoder)
    processor = SiglipImageProcessorPil.from_pretrained(native.paths("sd3-adapter").encoder)
    pixels = processor(images=seen, return_tensors="pt").pixel_values
    with torch.no_grad():
        hidden = siglip(pixels, output_hidden_states=True).hidden_states[-2]
    pipe.set_ip_adapter_scale(0.7)
    embeds = torch.cat([torch.zeros_like(hidden), hidden]) if guidance > 1 else hidden
    latents, _ = theirs(pipe, ip_adapter_image_embeds=embeds, guidance_scale=guidance)
    made = ours(engine, [seen], scale=0.7, guidance=guidance)
    assert np.abs(plain(made.latents) - latents).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_at_scale_0_a_loaded_adapter_is_as_none(native: NativeEngines, name: str) -> None:
    with_one, without = native(f"{name}-adapter"), native(name)
    heard = ours(with_one, [picture(1)], scale=1.0)
    silent = ours(with_one, [picture(1)], scale=0.0)
    alone = ours(without, [])
    assert np.abs(silent.latents - alone.latents).max() <= 1e-5
    assert np.abs(heard.latents - alone.latents).max() > 1e-3


def test_all_families_have_a_tiny_folder() -> None:
    assert {f.family.name for f in FAMILIES} == set(tiny_native.WRITERS)
