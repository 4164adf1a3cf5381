"""IP-Adapter files: the official layout read and written, damaged files refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipadapter_engine.adapter import Adapter, adapter_from_state, new_base_adapter
from ipadapter_engine.attention import layer_sizes
from ipadapter_engine.checkpoints import read_adapter_file
from ipadapter_engine.errors import CheckpointRefused
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints

VARIANTS = pytest.mark.parametrize("variant", ["base", "plus"])
State = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def unet(checkpoints: Checkpoints) -> UNet2DConditionModel:
    return tiny.open_unet(checkpoints.folders["sd15"])


def state_of(unet: UNet2DConditionModel, variant: str = "base") -> State:
    return tiny.base_adapter_state(unet) if variant == "base" else tiny.plus_adapter_state(unet)


def built(state: State, unet: UNet2DConditionModel) -> Adapter:
    return adapter_from_state(tiny.flat(state), unet, file="given.safetensors")


def refusal_of(state: State, unet: UNet2DConditionModel) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused, match=r"given\.safetensors") as refusal:
        built(state, unet)
    assert refusal.value.next_step
    return refusal.value


# ---------------------------------------------------------------------- reading and writing


@VARIANTS
def test_a_nested_pickle_and_a_flat_safetensors_file_are_the_same(
    unet: UNet2DConditionModel, variant: str, tmp_path: Path
) -> None:
    state = state_of(unet, variant)
    pickled = read_adapter_file(tiny.write_bin(tmp_path / "a.bin", state))
    plain = read_adapter_file(tiny.write_safetensors(tmp_path / "a.safetensors", state))
    assert pickled.keys() == plain.keys()
    assert all(torch.equal(pickled[k], plain[k]) for k in plain)


@VARIANTS
def test_what_is_read_is_what_is_written_again(unet: UNet2DConditionModel, variant: str) -> None:
    state = tiny.flat(state_of(unet, variant))
    again = adapter_from_state(state, unet, file="a").official_state()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) for k in state)


@VARIANTS
def test_saved_and_loaded_an_adapter_is_equal(unet: UNet2DConditionModel, variant: str, tmp_path: Path) -> None:
    """Files that trained adapters were saved to are often empty of `ip_adapter` keys when they are loaded."""
    adapter = built(state_of(unet, variant), unet)
    save_file(adapter.official_state(), tmp_path / "a.safetensors")
    loaded = adapter_from_state(read_adapter_file(tmp_path / "a.safetensors"), unet, file="a").official_state()
    assert loaded.keys() == adapter.official_state().keys()
    assert all(torch.equal(loaded[k], v) for k, v in adapter.official_state().items())


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_diffusers_loads_an_adapter_that_we_saved(checkpoints: Checkpoints, layout: str, tmp_path: Path) -> None:
    unet = tiny.open_unet(checkpoints.folders[layout])
    adapter = new_base_adapter(unet, tiny.EMBED)
    save_file(adapter.official_state(), tmp_path / "ip.safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints.folders["sd15"], local_files_only=True)
    pipe.register_modules(unet=unet)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors", image_encoder_folder=None)
    theirs = [p for name, p in unet.attn_processors.items() if name.endswith("attn2.processor")]
    for layer, processor in zip(adapter.by_number().values(), theirs, strict=True):
        assert torch.equal(processor.to_k_ip[0].weight, layer.to_k_ip.weight)
        assert torch.equal(processor.to_v_ip[0].weight, layer.to_v_ip.weight)


def test_a_new_adapter_starts_as_a_copy_of_the_texts_layers(unet: UNet2DConditionModel) -> None:
    adapter = new_base_adapter(unet, tiny.EMBED)
    names = list(unet.attn_processors)
    for n, layer in adapter.by_number().items():
        attn = unet.get_submodule(names[n].removesuffix(".processor"))
        assert torch.equal(layer.to_k_ip.weight, attn.to_k.weight)
        assert torch.equal(layer.to_v_ip.weight, attn.to_v.weight)


# ---------------------------------------------------------------------- another base


def test_a_wrong_number_of_layers_is_named(unet: UNet2DConditionModel) -> None:
    state = state_of(unet)
    for part in ("to_k_ip", "to_v_ip"):
        state["ip_adapter"][f"9.{part}.weight"] = torch.zeros(32, 32)
    message = refusal_of(state, unet).message
    assert "5 attention layers" in message
    assert "this base has 4" in message


def test_the_bases_that_everyone_knows_are_named(unet: UNet2DConditionModel) -> None:
    state = state_of(unet)
    state["ip_adapter"] = {f"{n}.to_k_ip.weight": torch.zeros(1, 1) for n in range(1, 140, 2)}
    assert "70 attention layers (SDXL)" in refusal_of(state, unet).message


@pytest.mark.parametrize("part", ["to_k_ip", "to_v_ip"])
def test_a_layer_of_another_width_is_named(unet: UNet2DConditionModel, part: str) -> None:
    state = state_of(unet)
    dim, hidden = layer_sizes(unet)[3]
    state["ip_adapter"][f"3.{part}.weight"] = torch.zeros(hidden, dim + 8)
    message = refusal_of(state, unet).message
    assert f"3.{part}.weight" in message
    assert str((hidden, dim)) in message
    assert str((hidden, dim + 8)) in message


def test_a_layer_without_values_is_named(unet: UNet2DConditionModel) -> None:
    state = state_of(unet)
    del state["ip_adapter"]["3.to_v_ip.weight"]
    assert "3.to_v_ip.weight is missing" in refusal_of(state, unet).message


def test_tokens_of_another_width_are_named(unet: UNet2DConditionModel) -> None:
    state = state_of(unet, "plus")
    state["image_proj"]["proj_out.weight"] = torch.zeros(40, 48)
    message = refusal_of(state, unet).message
    assert "40" in message
    assert "32" in message


@pytest.mark.parametrize("part", ["image_proj", "ip_adapter"])
def test_a_file_without_one_of_its_parts_is_refused(unet: UNet2DConditionModel, part: str) -> None:
    state = state_of(unet)
    del state[part]
    assert f"no {part} keys" in refusal_of(state, unet).message


# ---------------------------------------------------------------------- damaged and hostile files


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("base", "proj.weight", torch.zeros(7)),
        ("base", "proj.weight", torch.zeros(130, 24)),
        ("base", "norm.weight", torch.zeros(3)),
        ("base", "proj.bias", torch.zeros(3)),
        ("plus", "latents", torch.zeros(8)),
        ("plus", "proj_in.weight", torch.zeros(48)),
        ("plus", "layers.1.0.to_q.weight", torch.zeros(64, 48)),
        ("plus", "layers.0.0.to_q.weight", torch.zeros(0, 48)),
        ("plus", "layers.0.0.to_q.weight", torch.tensor(1.0)),
    ],
)
def test_a_projection_of_wrong_shapes_is_refused(
    unet: UNet2DConditionModel, variant: str, key: str, value: Tensor
) -> None:
    state = state_of(unet, variant)
    state["image_proj"][key] = value
    assert "\n" not in refusal_of(state, unet).message


@pytest.mark.parametrize("key", ["proj_in.weight", "proj_out.weight", "layers.0.1.1.weight", "norm_out.bias"])
def test_a_resampler_with_a_weight_missing_is_refused(unet: UNet2DConditionModel, key: str) -> None:
    state = state_of(unet, "plus")
    del state["image_proj"][key]
    refusal_of(state, unet)


@pytest.mark.parametrize("key", ["layers", "x.to_k_ip.weight", ""])
def test_a_strange_key_is_refused(unet: UNet2DConditionModel, key: str) -> None:
    state = state_of(unet)
    state["ip_adapter"][key] = torch.zeros(1)
    refusal_of(state, unet)


class Hostile:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({**state_of(unet), "more": Hostile(mark)}, tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Hostile(mark)))
    for name in ("a.bin", "b.bin"):
        with pytest.raises(CheckpointRefused, match=name) as refusal:
            read_adapter_file(tmp_path / name)
        assert "safetensors" in refusal.value.next_step
    assert not mark.exists()


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_truncated_file_is_refused(unet: UNet2DConditionModel, tmp_path: Path, ending: str, kept: int) -> None:
    write = tiny.write_bin if ending == "bin" else tiny.write_safetensors
    path = write(tmp_path / f"a.{ending}", state_of(unet))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointRefused, match=path.name):
        read_adapter_file(path)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"\x80\x02]q\x00.", b"version https://git-lfs.github.com/spec/v1\n"]
)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=path.name):
        read_adapter_file(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="there is no adapter file"):
        read_adapter_file(tmp_path / "a.safetensors")


def test_a_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(CheckpointRefused):
        read_adapter_file(tmp_path / "a.safetensors")


def test_half_precision_files_are_read(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    half = {k: v.half() for k, v in tiny.flat(state_of(unet)).items()}
    save_file(half, tmp_path / "a.safetensors")
    adapter = adapter_from_state(load_file(tmp_path / "a.safetensors"), unet, file="a")
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
