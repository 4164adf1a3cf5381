"""Every published variant of the IP-Adapter is read, in every layout, projects as in diffusers and is written again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.adapter import Adapter, adapter_from_state
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint, read_adapter_file
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_adapters as variants
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints

EXACT, TOLERANCE = 1e-6, 1e-4
VARIANTS = pytest.mark.parametrize("variant", variants.STATES)
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])
READS = {
    "base": "pooled", "plus": "hidden", "full-face": "hidden", "faceid": "face", "faceid portrait": "face",
    "faceid plus": "face_and_hidden", "faceid plus v2": "face_and_hidden",
}  # fmt: skip


@pytest.fixture(scope="module")
def unets(checkpoints: Checkpoints) -> dict[str, UNet2DConditionModel]:
    return {layout: tiny.open_unet(folder) for layout, folder in checkpoints.folders.items()}


@pytest.fixture(scope="module")
def unet(unets: dict[str, UNet2DConditionModel]) -> UNet2DConditionModel:
    return unets["sd15"]


def built(state: dict[str, Tensor], unet: UNet2DConditionModel, variant: str) -> Adapter:
    return adapter_from_state(state, unet, file=f"{variants.FILES[variant]}.bin").eval()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in other)


def told(adapter: Adapter, seed: int = 3) -> tuple[Tensor, Tensor | None]:
    """Two references' embeddings and faces, as the adapter reads them."""
    draw, reads = tiny.Draw(seed), adapter.reads
    faces = draw(2, reads.face) * reads.face**0.5 if reads.face else None
    if reads.kind == "face":
        assert faces is not None
        return faces, None
    shape = (2, reads.embed) if reads.kind == "pooled" else (2, tiny.PATCHES + 1, reads.embed)
    return draw(*shape) * reads.embed**0.5, faces


# ---------------------------------------------------------------------- what is read and written


@LAYOUTS
@VARIANTS
def test_a_variant_is_told_by_its_file_and_written_as_it_was_read(
    unets: dict[str, UNet2DConditionModel], layout: str, variant: str
) -> None:
    state = tiny.flat(variants.STATES[variant](unets[layout]))
    adapter = built(state, unets[layout], variant)
    assert (adapter.variant, adapter.reads.kind) == (variant, READS[variant])
    assert same(adapter.official_state(), state)


@LAYOUTS
@VARIANTS
def test_references_are_projected_as_diffusers_projects_them(
    unets: dict[str, UNet2DConditionModel], layout: str, variant: str
) -> None:
    state = variants.STATES[variant](unets[layout])
    adapter = built(tiny.flat(state), unets[layout], variant)
    theirs = unets[layout]._convert_ip_adapter_image_proj_to_diffusers(state["image_proj"], low_cpu_mem_usage=False)
    embeddings, faces = told(adapter)
    with torch.inference_mode():
        if faces is None:
            expected = theirs(embeddings)
        else:
            theirs.clip_embeds, theirs.shortcut = embeddings[:, None], variant.endswith("v2")
            expected = theirs(faces)
        ours = adapter.project(embeddings, faces)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= EXACT * expected.abs().max()


@pytest.mark.parametrize("layout", variants.LAYOUTS)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@VARIANTS
def test_layouts_of_trainings_and_forks_are_the_same_adapter(
    unet: UNet2DConditionModel, tmp_path: Path, layout: str, ending: str, variant: str
) -> None:
    state = variants.STATES[variant](unet)
    file = tmp_path / f"{variants.FILES[variant]}.{ending}"
    saved = variants.LAYOUTS[layout](state, unet)
    save_file(saved, file) if ending == "safetensors" else torch.save({"state_dict": saved}, file)
    assert same(built(read_adapter_file(file), unet, variant).official_state(), tiny.flat(state))


def test_weights_that_accelerate_shared_out_between_two_names_are_put_together(unet: UNet2DConditionModel) -> None:
    state = variants.STATES["base"](unet)
    whole, shared = variants.as_trained(state, unet), variants.as_shared(state, unet)
    halves = [k for k in whole if k.startswith("adapter_modules.")][::2]
    mixed = {k: v for k, v in whole.items() if k not in halves}
    mixed |= {k: v for k, v in shared.items() if k.endswith("to_k_ip.weight")}
    assert same(built(mixed, unet, "base").official_state(), tiny.flat(state))


def test_what_nothing_is_depends_on_what_is_read(unet: UNet2DConditionModel) -> None:
    black = np.full((tiny.PATCHES + 1, tiny.HIDDEN), 0.5, dtype=np.float32)
    for variant, kind in READS.items():
        adapter = built(tiny.flat(variants.STATES[variant](unet)), unet, variant)
        embedding, face = adapter.nothing(lambda: black)
        hidden = kind in ("hidden", "face_and_hidden")
        assert embedding.abs().sum() == (black.sum() if hidden else 0)
        assert embedding.shape[-1] == adapter.embed_dim
        assert (face is not None) == (kind == "face_and_hidden")
        assert adapter.pooled == (not hidden)
        assert torch.isfinite(adapter.project(embedding[None], None if face is None else face[None])).all()


def test_faces_are_not_left_out_of_an_adapter_that_reads_both(unet: UNet2DConditionModel) -> None:
    adapter = built(tiny.flat(variants.STATES["faceid plus"](unet)), unet, "faceid plus")
    with pytest.raises(ValueError, match="faces"):
        adapter.project(told(adapter)[0])


# ---------------------------------------------------------------------- what weights do not tell


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ip-adapter-faceid-plus_sd15.bin", "faceid plus"),
        ("ip-adapter-faceid-plusv2_sdxl.bin", "faceid plus v2"),
        ("FaceID_Plus_v2.safetensors", "faceid plus v2"),
        ("ip_adapter_faceid_plusv2_sd15/ip_adapter.bin", "faceid plus v2"),
    ],
)
def test_the_version_of_faceid_plus_is_told_by_the_name(unet: UNet2DConditionModel, name: str, variant: str) -> None:
    state = tiny.flat(variants.face_plus_state(unet))
    assert adapter_from_state(state, unet, file=name).variant == variant


def test_the_version_of_a_published_file_is_told_by_its_hash_whatever_its_name(unet: UNet2DConditionModel) -> None:
    state = tiny.flat(variants.face_plus_state(unet))
    published = "26d0d86a1d60d6cc811d3b8862178b461e1eeb651e6fe2b72ba17aa95411e313"
    assert adapter_from_state(state, unet, file="face-plus.bin", sha256=published).variant == "faceid plus v2"


def test_a_version_that_nothing_tells_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(CheckpointRefused, match="version 1 or 2") as refusal:
        adapter_from_state(tiny.flat(variants.face_plus_state(unet)), unet, file="face.bin")
    assert "plusv2" in refusal.value.next_step


def test_only_the_unnorm_file_reads_faces_of_any_length(unet: UNet2DConditionModel) -> None:
    state = tiny.flat(variants.STATES["faceid portrait"](unet))
    names = ("ip-adapter-faceid-portrait_sd15.bin", "ip-adapter-faceid-portrait_sdxl_unnorm.bin")
    assert [adapter_from_state(state, unet, file=n).reads.unit_face for n in names] == [True, False]


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_training_whose_layers_were_not_saved_is_refused_in_its_own_words(
    unet: UNet2DConditionModel, prefix: str
) -> None:
    saved = variants.as_trained(variants.STATES["base"](unet), unet)
    empty = {f"{prefix}{k}": v for k, v in saved.items() if not k.startswith("adapter_modules.")}
    with pytest.raises(CheckpointRefused, match="training's checkpoint") as refusal:
        adapter_from_state(empty, unet, file="model.safetensors")
    assert "safe_serialization=False" in refusal.value.next_step


def test_a_training_on_another_base_is_refused(unets: dict[str, UNet2DConditionModel]) -> None:
    saved = variants.as_shared(variants.STATES["base"](unets["sdxl"]), unets["sdxl"])
    with pytest.raises(CheckpointRefused, match="another base"):
        adapter_from_state(saved, unets["sd15"], file="model.safetensors")


def test_a_projection_of_no_known_variant_is_refused(unet: UNet2DConditionModel) -> None:
    state = {"image_proj": {"something.weight": torch.zeros(2)}, "ip_adapter": tiny.key_values(unet, tiny.Draw(1))}
    with pytest.raises(CheckpointRefused, match="something.weight") as refusal:
        adapter_from_state(tiny.flat(state), unet, file="a.bin")
    assert "FaceID" in refusal.value.next_step


@pytest.mark.parametrize("variant", ["full-face", "faceid", "faceid plus"])
def test_a_projection_of_wrong_shapes_or_without_a_weight_is_refused(unet: UNet2DConditionModel, variant: str) -> None:
    whole = variants.STATES[variant](unet)
    for key in whole["image_proj"]:
        for value in (None, torch.zeros(7), torch.tensor(1.0), torch.zeros(0, 3)):
            proj = {k: v for k, v in whole["image_proj"].items() if k != key}
            proj |= {} if value is None else {key: value}
            with pytest.raises(CheckpointRefused) as refusal:
                built(tiny.flat({**whole, "image_proj": proj}), unet, variant)
            assert "\n" not in refusal.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("0.to_q_lora.down.weight", None),
        ("0.to_q_lora.down.weight", torch.zeros(variants.RANK, 7)),
        ("1.to_out_lora.up.weight", torch.zeros(7)),
        ("99.to_q_lora.down.weight", torch.zeros(3, 32)),
        ("0.to_q_lora.alpha", torch.tensor(4.0)),
        ("0.to_z_lora.down.weight", torch.zeros(3, 32)),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(unet: UNet2DConditionModel, key: str, value: Tensor | None) -> None:
    state = variants.STATES["faceid"](unet)
    layers = {k: v for k, v in state["ip_adapter"].items() if k != key} | ({} if value is None else {key: value})
    with pytest.raises(CheckpointRefused, match="LoRA that does not fit"):
        built(tiny.flat({**state, "ip_adapter": layers}), unet, "faceid")


def test_the_lora_of_a_faceid_file_names_the_layers_of_the_unet(unet: UNet2DConditionModel) -> None:
    adapter = built(tiny.flat(variants.STATES["faceid"](unet)), unet, "faceid")
    named = adapter.lora_layers(unet)
    layers = {k.split(".lora_")[0] for k in named}
    assert len(layers) == 4 * len(unet.attn_processors)
    for layer in layers:
        down, up = named[f"{layer}.lora_A.weight"], named[f"{layer}.lora_B.weight"]
        assert (up @ down).shape == unet.get_submodule(layer).weight.shape


# ---------------------------------------------------------------------- encoders


def refusal_of(paths: CheckpointPaths) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(paths)
    return refusal.value


def test_1280_is_not_taken_for_the_other_1280(
    checkpoints: Checkpoints, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    """ViT-H's hidden states have as many numbers as ViT-bigG's pooled embeddings."""
    base = checkpoints.folders["sd15"]
    big = tiny.write_encoder(tmp_path / "big", embed=1280)
    plus = tiny.write_safetensors(tmp_path / "plus.safetensors", tiny.plus_adapter_state(unet, hidden=1280))
    refusal = refusal_of(CheckpointPaths(base, plus, big))
    assert "trained on hidden states of 1280 numbers" in refusal.message
    assert "its pooled embeddings have 1280" in refusal.message
    assert "ViT-H/14" in refusal.next_step
    pooled = tiny.write_safetensors(tmp_path / "base.safetensors", tiny.base_adapter_state(unet, embed=1280))
    refusal = refusal_of(CheckpointPaths(base, pooled, checkpoints.encoder))
    assert "ViT-bigG/14" in refusal.next_step


@pytest.mark.parametrize("variant", ["full-face", "faceid plus", "faceid plus v2"])
def test_hidden_states_of_another_encoder_are_refused(
    checkpoints: Checkpoints, unet: UNet2DConditionModel, tmp_path: Path, variant: str
) -> None:
    file = tiny.write_bin(tmp_path / f"{variants.FILES[variant]}.bin", variants.STATES[variant](unet))
    other = tiny.write_encoder(tmp_path / "other", hidden=tiny.HIDDEN + 8)
    refusal = refusal_of(CheckpointPaths(checkpoints.folders["sd15"], file, other))
    assert f"hidden states of {tiny.HIDDEN}" in refusal.message


def test_a_faceid_adapter_needs_no_image_encoder(
    checkpoints: Checkpoints, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    file = tiny.write_bin(tmp_path / "faceid.bin", variants.STATES["faceid"](unet))
    opened = open_checkpoint(CheckpointPaths(checkpoints.folders["sd15"], file))
    assert opened.adapter is not None
    assert opened.adapter.variant == "faceid"


def test_a_folder_of_invokeai_is_opened_and_its_encoder_named(
    checkpoints: Checkpoints, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    folder = variants.write_invoke(tmp_path / "ip_adapter_plus", variants.STATES["plus"](unet))
    paths = CheckpointPaths(checkpoints.folders["sd15"], folder, checkpoints.encoder)
    opened = open_checkpoint(paths)
    assert opened.adapter is not None
    assert opened.adapter.variant == "plus"
    assert opened.models[-1].name == "ip_adapter_plus/ip_adapter.bin"
    refusal = refusal_of(replace(paths, encoder=tiny.write_encoder(tmp_path / "other", hidden=tiny.HIDDEN + 8)))
    assert "InvokeAI/ip_adapter_sd_image_encoder" in refusal.next_step


# ---------------------------------------------------------------------- as diffusers


def request_for(references: tuple[ReferencePrompt, ...]) -> GenerationRequest:
    return GenerationRequest(
        prompt="a red fox", seed=7, steps=3, guidance=3.0, scheduler="ddim", width_px=32, height_px=32, scale=0.7,
        references=references,
    )  # fmt: skip


@pytest.fixture
def pipe_of(checkpoints: Checkpoints, tmp_path: Path) -> Callable[..., Any]:
    def opened(layout: str, file: Path, encoder: bool) -> Any:
        kind = StableDiffusionPipeline if layout == "sd15" else StableDiffusionXLPipeline
        pipe = kind.from_pretrained(checkpoints.folders[layout], local_files_only=True)
        clip = checkpoints.encoder.parent
        pipe.register_modules(feature_extractor=CLIPImageProcessorPil.from_pretrained(clip / "feature_extractor"))
        pipe.load_ip_adapter(
            str(file.parent), subfolder="", weight_name=file.name,
            image_encoder_folder=str(checkpoints.encoder) if encoder else None,
        )  # fmt: skip
        pipe.set_ip_adapter_scale(0.7)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
        return pipe

    return opened


def latents_of(pipe: Any, engine: Engine, request: GenerationRequest, **shown: Any) -> np.ndarray:
    side = 32 // engine.checkpoint.stride
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(request.seed))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=request.prompt, width=32, height=32, num_inference_steps=3, guidance_scale=3.0, latents=noise,
            output_type="latent", **shown,
        )  # fmt: skip
    return np.asarray(out.images[0])


@LAYOUTS
@pytest.mark.parametrize("shown", [1, 2])
def test_full_face_makes_what_diffusers_makes(
    checkpoints: Checkpoints,
    unets: dict[str, UNet2DConditionModel],
    pictures: list[Image.Image],
    pipe_of: Callable[..., Any],
    tmp_path: Path,
    layout: str,
    shown: int,
) -> None:
    file = tiny.write_bin(tmp_path / "full-face.bin", variants.full_face_state(unets[layout]))
    engine = Engine.open(CheckpointPaths(checkpoints.folders[layout], file, checkpoints.encoder))
    request = request_for(tuple(engine.look_at(p) for p in pictures[:shown]))
    theirs = latents_of(pipe_of(layout, file, True), engine, request, ip_adapter_image=[pictures[:shown]])
    assert np.abs(engine.generate([request])[0].latents - theirs).max() <= TOLERANCE


@LAYOUTS
@pytest.mark.parametrize("faces", [1, 3])
@pytest.mark.parametrize("tokens", [4, 16], ids=["faceid", "portrait"])
def test_faceid_without_a_lora_makes_what_diffusers_makes(
    checkpoints: Checkpoints,
    unets: dict[str, UNet2DConditionModel],
    pipe_of: Callable[..., Any],
    tmp_path: Path,
    layout: str,
    faces: int,
    tokens: int,
) -> None:
    state = variants.face_state(unets[layout], tokens=tokens, lora=False)
    file = tiny.write_bin(tmp_path / "faceid.bin", state)
    engine = Engine.open(CheckpointPaths(checkpoints.folders[layout], file))
    seen = tiny.Draw(5)(faces, variants.FACE)
    request = request_for(tuple(ReferencePrompt(face.numpy()) for face in seen))
    halves = torch.stack([torch.zeros_like(seen), seen])
    theirs = latents_of(pipe_of(layout, file, False), engine, request, ip_adapter_image_embeds=[halves])
    assert np.abs(engine.generate([request])[0].latents - theirs).max() <= TOLERANCE
