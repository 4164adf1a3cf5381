"""Opening checkpoints: what a folder is, what it is made of, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipadapter_engine.bases import open_base
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families.sd15 import SD15
from ipadapter_engine.families.sdxl import SDXL
from ipadapter_engine.families.studio import STUDIO
from ipadapter_engine.hashing import sha256_of_weights
from ipadapter_engine.schedulers import sha256_of_schedule
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints, Engines

LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy of the Stable Diffusion 1.5 folder that a test may damage."""
    return tiny.copy_of(checkpoints.folders["sd15"], tmp_path / "base")


@pytest.fixture
def sdxl_folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return tiny.copy_of(checkpoints.folders["sdxl"], tmp_path / "sdxl")


def refusal_of(paths: CheckpointPaths | Path) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(paths if isinstance(paths, CheckpointPaths) else CheckpointPaths(paths))
    assert refusal.value.next_step
    assert "\n" not in refusal.value.message
    return refusal.value


# ---------------------------------------------------------------------- what opens


@LAYOUTS
@pytest.mark.parametrize("variant", [None, "base", "plus"])
def test_both_layouts_open_with_and_without_adapters(engines: Engines, layout: str, variant: str | None) -> None:
    checkpoint = engines(layout, variant).checkpoint
    assert (checkpoint.adapter.variant if checkpoint.adapter else None) == variant
    assert not checkpoint.unet.training


@pytest.mark.parametrize(("layout", "family", "encoders"), [("sd15", SD15, 1), ("sdxl", SDXL, 2)])
def test_the_family_is_what_the_configuration_shows(
    engines: Engines, layout: str, family: object, encoders: int
) -> None:
    checkpoint = engines(layout, None).checkpoint
    assert checkpoint.family is family
    assert len(checkpoint.text) == encoders


def test_a_family_that_the_folder_declares_goes_first(folder: Path) -> None:
    tiny.change_json(folder / "model_index.json", _onmodel_family="studio")
    assert open_checkpoint(CheckpointPaths(folder)).family.name == STUDIO.name


@pytest.mark.parametrize(("layout", "stride"), [("sd15", 8), ("sdxl", 4)])
def test_the_stride_is_that_of_the_first_stage(engines: Engines, layout: str, stride: int) -> None:
    checkpoint = engines(layout, None).checkpoint
    with torch.inference_mode():
        pixels = checkpoint.vae.decode(torch.zeros(1, 4, 3, 5)).sample
    assert checkpoint.stride == stride
    assert pixels.shape[2:] == (3 * stride, 5 * stride)


def test_a_folder_with_its_own_adapter_and_encoder_needs_no_other(checkpoints: Checkpoints, folder: Path) -> None:
    for part in ("image_encoder", "feature_extractor"):
        tiny.copy_of(checkpoints.encoder.parent / part, folder / part)
    (folder / "ip_adapter.safetensors").write_bytes(checkpoints.adapters["sd15", "base"].read_bytes())
    checkpoint = open_checkpoint(CheckpointPaths(folder))
    assert checkpoint.adapter is not None
    assert checkpoint.encoder is not None


def test_sdxl_in_half_precision_keeps_its_vae_in_single(checkpoints: Checkpoints) -> None:
    """SDXL's own VAE overflows in float16 and gives black pictures; diffusers raises it, too."""
    checkpoint = open_checkpoint(checkpoints.paths("sdxl", None), dtype=torch.float16)
    assert (checkpoint.unet.dtype, checkpoint.vae.dtype) == (torch.float16, torch.float32)


# ---------------------------------------------------------------------- hashes


@LAYOUTS
def test_models_are_named_by_the_hashes_of_their_files(engines: Engines, checkpoints: Checkpoints, layout: str) -> None:
    base, adapter = checkpoints.folders[layout], checkpoints.adapters[layout, "base"]
    expected = {
        "unet": sha256(base / "unet" / "diffusion_pytorch_model.safetensors"),
        "vae": sha256(base / "vae" / "diffusion_pytorch_model.safetensors"),
        "text_encoder": sha256(base / "text_encoder" / "model.safetensors"),
        "image encoder": sha256(checkpoints.encoder / "model.safetensors"),
        "ip-adapter": sha256(adapter),
        "scheduler": sha256_of_schedule(json.loads((base / "scheduler" / "scheduler_config.json").read_text())),
    }
    if layout == "sdxl":
        expected["text_encoder_2"] = sha256(base / "text_encoder_2" / "model.safetensors")
    assert {m.role: m.sha256 for m in engines(layout, "base").models} == expected


@LAYOUTS
def test_a_noise_schedule_of_its_own_is_named_by_its_hash(tmp_path: Path, layout: str) -> None:
    """No weight says it, and other pictures come of it: they are other jobs."""
    write = {"sd15": tiny.write_sd15, "sdxl": tiny.write_sdxl}[layout]
    folder = write(tmp_path / "base", as_original=True)
    file = folder / "scheduler" / "scheduler_config.json"

    def hashes() -> dict[str, str]:
        return {m.role: m.sha256 for m in open_base(folder, tokenizer=None, dtype=torch.float32).models}

    of_the_family = hashes()
    assert "scheduler" not in of_the_family
    tiny.change_json(file, _diffusers_version="0.0.1", trained_betas=None)  # says nothing else
    assert hashes() == of_the_family
    tiny.change_json(file, prediction_type="v_prediction")
    own = hashes()
    assert own.keys() - of_the_family.keys() == {"scheduler"}
    tiny.change_json(file, steps_offset=0)
    assert hashes()["scheduler"] != own["scheduler"]


def test_copies_beside_the_weights_have_no_part_in_their_hash(folder: Path) -> None:
    before = sha256_of_weights(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    assert sha256_of_weights(folder / "unet") == before


def test_shards_are_hashed_together(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    both = "".join(sha256(tmp_path / name) for name in names)
    assert sha256_of_weights(tmp_path) == hashlib.sha256(both.encode()).hexdigest()


# ---------------------------------------------------------------------- what is refused


def test_a_folder_that_is_none_of_diffusers_is_refused(tmp_path: Path) -> None:
    refusal = refusal_of(tmp_path)
    assert "model_index.json" in refusal.message
    assert "save_pretrained" in refusal.next_step


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_index_is_refused(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text)
    assert "model_index.json" in refusal_of(folder).message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_only_pickled_are_refused(folder: Path, part: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.rename(weights.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"))
    assert part in refusal_of(folder).message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(folder: Path, part: str) -> None:
    (folder / part).rename(folder / "elsewhere")
    assert part in refusal_of(folder).message


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_sdxl_without_its_second_encoder_is_refused(sdxl_folder: Path, part: str) -> None:
    (sdxl_folder / part).rename(sdxl_folder / "elsewhere")
    refusal = refusal_of(sdxl_folder)
    assert part in refusal.message
    assert "SDXL" in refusal.next_step


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights_are_refused(folder: Path, part: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-64])
    assert part in refusal_of(folder).message


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("text_encoder", "text_model.final_layer_norm.bias"),
    ],
)
def test_a_weight_that_is_missing_is_named(folder: Path, part: str, key: str) -> None:
    """diffusers and transformers would fill it with random numbers and go on."""
    (weights,) = (folder / part).glob("*.safetensors")
    state = load_file(weights)
    found = key if key in state else key.removeprefix("text_model.")
    del state[found]
    save_file(state, weights, metadata={"format": "pt"})
    assert found.removeprefix("text_model.") in refusal_of(folder).message


def test_text_encoders_of_another_width_are_refused(folder: Path, checkpoints: Checkpoints) -> None:
    (folder / "unet").rename(folder / "unet_before")
    tiny.copy_of(checkpoints.folders["sdxl"] / "unet", folder / "unet")
    tiny.change_json(folder / "model_index.json", _onmodel_family="sd15")
    refusal = refusal_of(folder)
    assert "width 64" in refusal.message
    assert "give 32" in refusal.message


def test_a_first_stage_of_an_unknown_kind_is_named(folder: Path) -> None:
    tiny.change_json(folder / "vae" / "config.json", _class_name="AsymmetricAutoencoderKL")
    assert "AsymmetricAutoencoderKL" in refusal_of(folder).message


# ---------------------------------------------------------------------- parts that do not fit each other


def test_an_adapter_without_an_encoder_is_refused(checkpoints: Checkpoints) -> None:
    refusal = refusal_of(CheckpointPaths(checkpoints.folders["sd15"], checkpoints.adapters["sd15", "base"]))
    assert "needs an image encoder" in refusal.message
    assert str(tiny.EMBED) in refusal.next_step


@pytest.mark.parametrize(("need", "given", "model"), [(1024, 1280, "ViT-H"), (1280, 1024, "ViT-bigG")])
def test_the_wrong_encoder_is_refused_and_the_right_one_named(
    checkpoints: Checkpoints, tmp_path: Path, need: int, given: int, model: str
) -> None:
    base = checkpoints.folders["sd15"]
    adapter = tiny.write_safetensors(
        tmp_path / "a.safetensors", tiny.base_adapter_state(tiny.open_unet(base), embed=need)
    )
    refusal = refusal_of(CheckpointPaths(base, adapter, tiny.write_encoder(tmp_path, embed=given)))
    assert str(need) in refusal.message
    assert str(given) in refusal.message
    assert model in refusal.next_step


def test_a_plus_adapter_is_checked_against_hidden_states(checkpoints: Checkpoints, tmp_path: Path) -> None:
    encoder = tiny.write_encoder(tmp_path, hidden=tiny.HIDDEN + 8)
    refusal = refusal_of(CheckpointPaths(checkpoints.folders["sd15"], checkpoints.adapters["sd15", "plus"], encoder))
    assert "hidden states" in refusal.message


@pytest.mark.parametrize(("layout", "of"), [("sd15", "sdxl"), ("sdxl", "sd15")])
@pytest.mark.parametrize("variant", ["base", "plus"])
def test_an_adapter_of_another_base_is_refused(checkpoints: Checkpoints, layout: str, of: str, variant: str) -> None:
    paths = CheckpointPaths(checkpoints.folders[layout], checkpoints.adapters[of, variant], checkpoints.encoder)
    refusal = refusal_of(paths)
    assert "another base" in refusal.message
    assert "trained for this base" in refusal.next_step


def test_the_file_that_is_missing_is_named_with_its_path(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    assert str(folder / "vae" / "config.json") in refusal_of(folder).message
