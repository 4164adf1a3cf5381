"""LoRAs of kohya's layout, of peft's folders and several at once: exactly what diffusers adds, and nothing left after."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from ipadapter_engine.adapter import adapter_from_state
from ipadapter_engine.characters import Characters
from ipadapter_engine.checkpoints import CheckpointPaths, read_adapter_file
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.lora_files import sha256_of_lora
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import CharacterModel, ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_adapters as variants
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine import tiny_loras as loras
from tests.ipadapter_engine.conftest import Checkpoints, Engines

TOLERANCE, EXACT, DIFFERENT = 1e-4, 1e-5, 0.01
REQUEST = GenerationRequest("a red fox", 7, steps=3, guidance=3.0, scheduler="ddim", width_px=32, height_px=32)
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])


def model_of(file: Path, strength: float = 1.0) -> CharacterModel:
    return CharacterModel(file, sha256_of_lora(file), strength)


def characters_of(engine: Engine, **settings: Any) -> Characters:
    checkpoint = engine.checkpoint
    return Characters(checkpoint.unet, [t.model for t in checkpoint.text], base="tiny", **settings)


def models_in(engine: Engine) -> dict[str, nn.Module]:
    texts = {f"text_encoder{'_2' if i else ''}": t.model for i, t in enumerate(engine.checkpoint.text)}
    return {"unet": engine.checkpoint.unet, **texts}


def made(engine: Engine, models: Sequence[CharacterModel], request: GenerationRequest = REQUEST) -> np.ndarray:
    with characters_of(engine).playing(models):
        return engine.generate([request])[0].latents


def by_diffusers(engine: Engine, base: Path, files: dict[Path, float]) -> np.ndarray:
    kind = StableDiffusionPipeline if len(engine.checkpoint.text) == 1 else StableDiffusionXLPipeline
    pipe = kind.from_pretrained(base, local_files_only=True)
    for i, file in enumerate(files):
        pipe.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True, adapter_name=f"lora_{i}")
    pipe.set_adapters([f"lora_{i}" for i in range(len(files))], list(files.values()))
    return latents_of(pipe, engine)


def latents_of(pipe: Any, engine: Engine, **shown: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
    side = 32 // engine.checkpoint.stride
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(REQUEST.seed))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=REQUEST.prompt, width=32, height=32, num_inference_steps=3, guidance_scale=3.0, latents=noise,
            output_type="latent", **shown,
        )  # fmt: skip
    return np.asarray(out.images[0])


# ---------------------------------------------------------------------- as diffusers


@pytest.mark.parametrize(
    ("layout", "pattern", "stability"),
    [
        ("sd15", loras.ATTENTION, False),
        ("sd15", rf"{loras.ATTENTION}|conv1|conv2|time_emb_proj|conv_shortcut", False),
        ("sdxl", loras.ATTENTION, False),
        ("sdxl", loras.ATTENTION, True),
        ("sdxl", rf"{loras.ATTENTION}|conv1|conv2|time_emb_proj|conv_shortcut", True),
    ],
    ids=["sd15", "sd15 locon", "sdxl", "sdxl of stability", "sdxl of stability locon"],
)
def test_a_lora_of_kohyas_layout_makes_what_diffusers_makes(
    engines: Engines, checkpoints: Checkpoints, tmp_path: Path, layout: str, pattern: str, stability: bool
) -> None:
    base, engine = checkpoints.folders[layout], engines(layout, None)
    file = loras.write_kohya(tmp_path / "kohya.safetensors", base, pattern=pattern, stability=stability)
    ours = made(engine, [model_of(file, 0.7)])
    assert np.abs(ours - by_diffusers(engine, base, {file: 0.7})).max() <= TOLERANCE
    assert np.abs(ours - engine.generate([REQUEST])[0].latents).max() > DIFFERENT


@LAYOUTS
def test_two_at_once_add_as_diffusers_weighs_them(
    engines: Engines, checkpoints: Checkpoints, tmp_path: Path, layout: str
) -> None:
    base, engine = checkpoints.folders[layout], engines(layout, None)
    one = loras.write_kohya(tmp_path / "one.safetensors", base)
    other = tiny.write_character(tmp_path / "other", base)
    ours = made(engine, [model_of(one, 0.7), model_of(other, 0.4)])
    assert np.abs(ours - by_diffusers(engine, base, {one: 0.7, other: 0.4})).max() <= TOLERANCE
    assert np.abs(ours - made(engine, [model_of(one, 0.7)])).max() > DIFFERENT
    assert np.abs(ours - made(engine, [model_of(other, 0.4)])).max() > DIFFERENT


# ---------------------------------------------------------------------- exactly


@pytest.mark.parametrize(("layout", "stability"), [("sd15", False), ("sdxl", False), ("sdxl", True)])
def test_every_layer_adds_its_pair_by_alpha_over_rank(
    engines: Engines, checkpoints: Checkpoints, tmp_path: Path, layout: str, stability: bool
) -> None:
    """Layers of all kinds, each with a rank and an alpha of its own."""
    base, engine = checkpoints.folders[layout], engines(layout, None)
    file = loras.write_kohya(
        tmp_path / "a.safetensors", base, pattern=loras.EVERYTHING, sizes=loras.varied, stability=stability
    )
    draw, models = tiny.Draw(41), models_in(engine)
    with torch.inference_mode(), characters_of(engine).playing([model_of(file, 0.5)]):
        layers = loras.layers_of(base, loras.EVERYTHING)
        for number, (model, path, plain) in enumerate(layers):
            rank, alpha = loras.varied(number)
            down, up = loras.pair(plain, rank, draw)
            into = plain.weight.shape[1]
            x = tiny.Draw(9)(2, into, 6, 6) if plain.weight.ndim == 4 else tiny.Draw(9)(2, 3, into)
            if plain.weight.ndim == 4:
                lower = nn.functional.conv2d(x, down, stride=plain.stride, padding=plain.padding)
                added = nn.functional.conv2d(lower, up)
            else:
                added = nn.functional.linear(nn.functional.linear(x, down), up)
            now = models[model].get_submodule(path)
            assert (now(x) - plain(x) - 0.5 * alpha / rank * added).abs().max() <= EXACT, path
    assert len(layers) > 60


@pytest.mark.parametrize("model", ["unet", "text_encoder", "text_encoder_2"])
def test_a_peft_folder_is_what_peft_makes_of_it(
    engines: Engines, checkpoints: Checkpoints, tmp_path: Path, model: str
) -> None:
    engine = engines("sdxl", None)
    folder = loras.write_peft(tmp_path / "trained", checkpoints.folders["sdxl"], model)
    state = load_file(folder / "adapter_model.safetensors")
    plain = dict(models_in(engine)[model].named_modules())
    with torch.inference_mode(), characters_of(engine).playing([model_of(folder)]):
        for key in [k for k in state if k.endswith("lora_A.weight")]:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            down, up = state[key], state[key.replace("lora_A", "lora_B")]
            alpha = 2.0 if path.endswith(("to_v", "v_proj")) else 6.0
            x = tiny.Draw(9)(2, 3, down.shape[1])
            added = models_in(engine)[model].get_submodule(path)(x) - plain[path](x)
            assert (added - alpha / 2 * x @ down.T @ up.T).abs().max() <= EXACT


def test_alphas_beside_diffusers_weights_are_heard(engines: Engines, checkpoints: Checkpoints, tmp_path: Path) -> None:
    file = tiny.write_character(tmp_path, checkpoints.folders["sd15"], text=False, rank=2, alpha=2)
    state = load_file(file)
    told = {k.split(".lora")[0] + ".alpha": torch.tensor(1.0) for k in state}
    save_file(state | told, tmp_path / "told.safetensors")
    engine = engines("sd15", None)
    heard, half = made(engine, [model_of(tmp_path / "told.safetensors")]), made(engine, [model_of(file, 0.5)])
    assert np.abs(heard - half).max() <= EXACT


@LAYOUTS
def test_the_lora_of_a_faceid_file_is_applied_as_in_diffusers(
    checkpoints: Checkpoints, tmp_path: Path, layout: str
) -> None:
    base = checkpoints.folders[layout]
    unet = tiny.open_unet(base)
    file = tiny.write_bin(tmp_path / "faceid.bin", variants.face_state(unet))
    plain = tiny.write_bin(tmp_path / "plain.bin", variants.without_lora(variants.face_state(unet)))
    engine = Engine.open(CheckpointPaths(base, plain))
    face = tiny.Draw(5)(1, variants.FACE)
    request = GenerationRequest(
        "a red fox", 7, (ReferencePrompt(face[0].numpy()),), scale=0.7, steps=3, guidance=3.0, scheduler="ddim",
        width_px=32, height_px=32,
    )  # fmt: skip
    adapter = adapter_from_state(read_adapter_file(file), engine.checkpoint.unet, file=file.name)
    characters = characters_of(engine, adapters={"identity": adapter})
    assert characters.adapters == {"identity"}
    with characters.playing((), adapters=["identity", "style"]):
        ours = engine.generate([request])[0].latents

    kind = StableDiffusionPipeline if layout == "sd15" else StableDiffusionXLPipeline
    pipe = kind.from_pretrained(base, local_files_only=True)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    halves = torch.stack([torch.zeros_like(face), face])
    assert np.abs(ours - latents_of(pipe, engine, ip_adapter_image_embeds=[halves])).max() <= TOLERANCE
    assert np.abs(ours - engine.generate([request])[0].latents).max() > DIFFERENT


# ---------------------------------------------------------------------- before and after


def modules_of(engine: Engine) -> dict[str, tuple[int, ...]]:
    return {
        f"{name} {path}": (id(m), *(id(c) for c in m.children()))
        for name, model in models_in(engine).items()
        for path, m in model.named_modules()
    }


@pytest.fixture
def pair(checkpoints: Checkpoints, tmp_path: Path) -> list[Path]:
    base = checkpoints.folders["sd15"]
    return [loras.write_kohya(tmp_path / f"{i}.safetensors", base, seed=41 + i) for i in range(2)]


def test_after_several_the_base_is_what_it_was(engines: Engines, pair: list[Path]) -> None:
    engine = engines("sd15", None)
    characters, before = characters_of(engine), modules_of(engine)
    plain = engine.generate([REQUEST])[0].latents
    for order in (pair, pair[::-1], pair[:1]):  # kept layers hold nothing of each other
        models = [model_of(f) for f in order]
        with characters.playing(models):
            first = engine.generate([REQUEST])[0].latents
        assert modules_of(engine) == before
        assert np.array_equal(engine.generate([REQUEST])[0].latents, plain)
        assert np.abs(first - made(engine, models)).max() <= EXACT


def test_a_failure_while_the_second_is_loaded_leaves_the_base_as_it_was(engines: Engines, pair: list[Path]) -> None:
    engine = engines("sd15", None)
    before = modules_of(engine)
    gone = model_of(pair[1])
    pair[1].unlink()
    with (
        pytest.raises(CheckpointRefused, match="does not open"),
        characters_of(engine).playing([model_of(pair[0]), gone]),
    ):
        raise AssertionError
    assert modules_of(engine) == before


def test_a_model_named_twice_has_both_strengths(engines: Engines, pair: list[Path]) -> None:
    engine = engines("sd15", None)
    twice = made(engine, [model_of(pair[0], 0.3), model_of(pair[1]), model_of(pair[0], 0.4)])
    assert np.abs(twice - made(engine, [model_of(pair[0], 0.7), model_of(pair[1])])).max() <= EXACT


def test_those_that_take_too_much_memory_are_let_go_the_last_one_kept(engines: Engines, pair: list[Path]) -> None:
    engine = engines("sd15", None)
    size = sum(v.numel() * 4 for k, v in load_file(pair[0]).items() if "lora_" in k.split(".", 1)[1])
    for room, kept in ((2 * size, 2), (2 * size - 1, 1), (1, 1)):
        characters = characters_of(engine, kept_bytes=room)
        for file in pair:
            characters.load(model_of(file))
        assert characters.kept_bytes == 2 * size
        characters.trim()
        assert characters.kept_bytes == kept * size


# ---------------------------------------------------------------------- what is refused


@pytest.fixture
def refusal_of(engines: Engines, tmp_path: Path) -> Callable[..., CheckpointRefused]:
    def refusal(file: Path) -> CheckpointRefused:
        with pytest.raises(CheckpointRefused) as refused:
            characters_of(engines("sd15", None)).load(model_of(file))
        assert str(file) in refused.value.message
        assert "\n" not in refused.value.message
        return refused.value

    return refusal


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("dora_scale", "DoRA"),
        ("lora_mid.weight", "Tucker"),
        ("diff", "difference"),
    ],
)
def test_other_kinds_are_refused_by_name(
    refusal_of: Callable[..., CheckpointRefused], pair: list[Path], tmp_path: Path, rest: str, kind: str
) -> None:
    state = load_file(pair[0])
    layer = next(iter(state)).split(".")[0]
    save_file(state | {f"{layer}.{rest}": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert kind in refusal_of(tmp_path / "other.safetensors").message


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("lora_unet_no_such_layer.lora_down.weight", torch.zeros(2, 2), "no_such_layer is a layer that the base"),
        ("lora_te2_text_model_final.lora_down.weight", torch.zeros(2, 2), "text_encoder_2"),
        ("lora_unet_conv_in.strange", torch.zeros(2), "strange"),
        ("unet.conv_in.lora_A.weight", torch.zeros(2), "conv_in"),
        ("lora_unet_conv_in.alpha", torch.tensor(1.0), "not a pair"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", torch.tensor(float("nan")), "alpha"),
    ],
)
def test_what_does_not_fit_is_refused(
    refusal_of: Callable[..., CheckpointRefused], pair: list[Path], tmp_path: Path, key: str, value: Any, told: str
) -> None:
    save_file(load_file(pair[0]) | {key: value}, tmp_path / "odd.safetensors")
    assert told in refusal_of(tmp_path / "odd.safetensors").message


def test_a_lora_of_sdxl_is_refused_on_another_base(
    refusal_of: Callable[..., CheckpointRefused], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    file = loras.write_kohya(tmp_path / "xl.safetensors", checkpoints.folders["sdxl"], text=False, stability=True)
    assert "does not fit this base" in refusal_of(file).message


def test_a_peft_folder_is_named_by_its_settings_as_well(
    refusal_of: Callable[..., CheckpointRefused], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = loras.write_peft(tmp_path / "trained", checkpoints.folders["sd15"], "unet")
    before = model_of(folder)
    assert "name the folder" in refusal_of(folder / "adapter_model.safetensors").next_step
    tiny.change_json(folder / "adapter_config.json", lora_alpha=60)
    assert sha256_of_lora(folder) != before.sha256
    tiny.change_json(folder / "adapter_config.json", peft_type="LOHA")
    assert "LOHA" in refusal_of(folder).message
