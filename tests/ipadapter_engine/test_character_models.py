"""Character models: as diffusers loads them, beside everything else, and the base is untouched after."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from ipadapter_engine.attention import DecoupledAttention
from ipadapter_engine.characters import KEPT
from ipadapter_engine.errors import CheckpointRefused, GenerationFailed, RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import CharacterModel, ControlPrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints, Engines, picture

TOLERANCE, SAME, DIFFERENT = (
    1e-4,
    4e-5,
    0.01,
)  # SAME: latents reach 20, and CPUs round sums of a batch each their own way
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])


def model_of(file: Path, strength: float = 1.0) -> CharacterModel:
    return CharacterModel(file, hashlib.sha256(file.read_bytes()).hexdigest(), strength)


@pytest.fixture(scope="module")
def files(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """By layout, several characters: the first of the UNet alone, the others of the text encoder as well."""
    root = tmp_path_factory.mktemp("characters")
    return {
        layout: [tiny.write_character(root / layout / str(i), folder, seed=31 + i, text=i > 0) for i in range(KEPT + 1)]
        for layout, folder in checkpoints.folders.items()
    }


@pytest.fixture
def pip(files: dict[str, list[Path]]) -> CharacterModel:
    return model_of(files["sd15"][1])


def request_for(character: CharacterModel | None = None, **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "prompt": "a red fox", "seed": 7, "steps": 3, "guidance": 3.0, "scheduler": "ddim",
        "width_px": 32, "height_px": 32, "character": character,
    }  # fmt: skip
    return GenerationRequest(**{**values, **changes})


def made(engine: Engine, request: GenerationRequest) -> np.ndarray:
    return engine.generate([request])[0].latents


# ---------------------------------------------------------------------- as diffusers


@LAYOUTS
@pytest.mark.parametrize("number", [0, 1], ids=["unet", "unet and text"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_engine_makes_what_diffusers_makes(
    engines: Engines,
    checkpoints: Checkpoints,
    files: dict[str, list[Path]],
    layout: str,
    number: int,
    strength: float,
) -> None:
    assert_as_diffusers(engines(layout, "base"), checkpoints.folders[layout], layout, files[layout][number], strength)


def assert_as_diffusers(engine: Engine, base: Path, layout: str, file: Path, strength: float) -> None:
    request = request_for(model_of(file, strength))
    kind = StableDiffusionPipeline if layout == "sd15" else StableDiffusionXLPipeline
    pipe = kind.from_pretrained(base, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
    side = 32 // engine.checkpoint.stride
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(request.seed))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=request.prompt, width=32, height=32, num_inference_steps=3, guidance_scale=3.0, latents=noise,
            output_type="latent", cross_attention_kwargs={"scale": strength},
        )  # fmt: skip
    ours = made(engine, request)
    assert np.abs(ours - np.asarray(out.images[0])).max() <= TOLERANCE
    assert np.abs(ours - made(engine, request_for())).max() > DIFFERENT


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}], ids=" ".join)
def test_a_character_of_other_settings_is_what_diffusers_makes_of_it(
    engine: Engine, checkpoints: Checkpoints, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """DoRA for the UNet alone, as transformers 5.23 drops its magnitudes of a text encoder."""
    base = checkpoints.folders["sd15"]
    file = tiny.write_character(tmp_path, base, text="use_dora" not in settings, **settings)
    assert_as_diffusers(engine, base, "sd15", file, 0.7)


# ---------------------------------------------------------------------- the base stays as it was


def state_of(engine: Engine) -> dict[str, Any]:
    """A hash of every weight by name, what is trained, and which modules and processors there are."""
    models: dict[str, nn.Module] = {"unet": engine.checkpoint.unet}
    models |= {f"text {i}": t.model for i, t in enumerate(engine.checkpoint.text)}
    return {
        name: (
            {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in model.state_dict().items()},
            {k: p.requires_grad for k, p in model.named_parameters()},
            [(k, type(m), id(m)) for k, m in model.named_modules()],
            sorted(vars(model)),
        )
        for name, model in models.items()
    }


@LAYOUTS
def test_after_a_character_the_base_is_what_it_was(
    checkpoints: Checkpoints, files: dict[str, list[Path]], layout: str
) -> None:
    engine = Engine.open(checkpoints.paths(layout, "base"))
    plain, before = made(engine, request_for()), state_of(engine)
    character = model_of(files[layout][1])
    for _ in range(2):  # loaded, and taken from what is kept
        made(engine, request_for(character))
        assert state_of(engine) == before
        assert np.array_equal(made(engine, request_for()), plain)
    assert any(isinstance(p, DecoupledAttention) for p in engine.checkpoint.unet.attn_processors.values())


def test_a_generation_that_fails_leaves_the_base_as_it_was(engine: Engine, pip: CharacterModel) -> None:
    before = state_of(engine)

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([request_for(pip)], on_step=interrupt)
    assert state_of(engine) == before


def test_no_random_number_is_drawn_for_a_character(checkpoints: Checkpoints, pip: CharacterModel) -> None:
    """peft draws new weights before it reads the file's, unless told not to: a training beside would change."""
    engine = Engine.open(checkpoints.paths("sd15", None))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made(engine, request_for(pip))
    assert torch.equal(torch.rand(1), expected)


def test_strength_zero_is_no_character(engine: Engine, pip: CharacterModel) -> None:
    silent = request_for(replace(pip, strength=0.0))
    assert np.array_equal(made(engine, silent), made(engine, request_for()))
    assert engine.batch_key(silent) == engine.batch_key(request_for())


def test_strength_is_how_far_the_picture_is_from_the_base(engine: Engine, pip: CharacterModel) -> None:
    plain = made(engine, request_for())
    far = [np.abs(made(engine, request_for(replace(pip, strength=s))) - plain).mean() for s in (0.1, 0.5, 1.0)]
    assert far == sorted(far)
    assert far[0] > 0


# ---------------------------------------------------------------------- in batches


def test_characters_strengths_and_none_of_one_call_are_not_mixed_up(
    engine: Engine, files: dict[str, list[Path]]
) -> None:
    one, other = (model_of(f) for f in files["sd15"][:2])
    seen = engine.look_at(picture(0))
    requests = [
        request_for(one, seed=1),
        request_for(seed=2),
        request_for(other, seed=3, references=(seen,)),
        request_for(replace(one, strength=0.5), seed=4),
        request_for(one, seed=5, references=(seen,), scale=0.4),
        request_for(replace(other, strength=0.0), seed=6),
    ]
    for together, request in zip(engine.generate(requests), requests, strict=True):
        assert np.abs(together.latents - made(engine, request)).max() <= SAME


def test_requests_with_the_same_character_go_together(engine: Engine, files: dict[str, list[Path]]) -> None:
    one, other = (model_of(f) for f in files["sd15"][:2])
    elsewhere = replace(one, file=files["sd15"][0].parent / "a copy of it")
    key = engine.batch_key(request_for(one))
    assert engine.batch_key(request_for(elsewhere, seed=9)) == key
    assert engine.batch_key(request_for(other)) != key
    assert engine.batch_key(request_for(replace(one, strength=0.9))) != key
    assert engine.batch_key(request_for()) != key


def test_a_character_a_control_and_a_reference_work_together(
    checkpoints: Checkpoints, pip: CharacterModel, tmp_path: Path
) -> None:
    net = tiny.write_control_net(tmp_path, checkpoints.folders["sd15"], stride=8)
    engine = Engine.open(replace(checkpoints.paths("sd15", "base"), controls={"pose": net}))
    everything = request_for(
        pip,
        references=(engine.look_at(picture(0)),),
        controls=(ControlPrompt(np.asarray(picture(1)), "pose"),),
    )
    all_three = made(engine, everything)
    for without in ({"character": None}, {"references": ()}, {"controls": ()}):
        assert np.abs(made(engine, replace(everything, **without)) - all_three).max() > DIFFERENT  # type: ignore[arg-type]
    together = engine.generate([everything, request_for(pip, seed=8), everything])
    assert np.abs(together[0].latents - all_three).max() <= SAME
    assert np.abs(together[2].latents - all_three).max() <= SAME


def test_the_last_few_characters_are_kept(
    checkpoints: Checkpoints, files: dict[str, list[Path]], tmp_path: Path
) -> None:
    engine = Engine.open(checkpoints.paths("sd15", None))
    file = tmp_path / "pip.safetensors"
    file.write_bytes(files["sd15"][0].read_bytes())
    first = model_of(file)
    expected = made(engine, request_for(first))
    file.unlink()
    assert np.array_equal(made(engine, request_for(first)), expected)  # not read again
    engine.generate([request_for(model_of(f)) for f in files["sd15"][1:]])
    with pytest.raises(CheckpointRefused, match="does not open"):
        made(engine, request_for(first))


def test_more_characters_than_are_kept_are_read_once_in_one_call(
    checkpoints: Checkpoints, files: dict[str, list[Path]], tmp_path: Path
) -> None:
    engine = Engine.open(checkpoints.paths("sd15", None))
    copies = [tmp_path / f"{i}.safetensors" for i in range(KEPT + 1)]
    for file, copy in zip(files["sd15"], copies, strict=True):
        copy.write_bytes(file.read_bytes())
    requests = [request_for(model_of(c)) for c in copies]

    def unlink(done: int, of: int) -> None:
        for copy in copies:
            copy.unlink(missing_ok=True)

    pictures = engine.generate(requests, on_step=unlink)
    for together, file in zip(pictures, files["sd15"], strict=True):
        assert np.abs(together.latents - made(engine, request_for(model_of(file)))).max() <= SAME


def test_a_call_keeps_no_more_characters_than_the_last_few(
    checkpoints: Checkpoints, files: dict[str, list[Path]]
) -> None:
    engine = Engine.open(checkpoints.paths("sd15", None))
    *_, last = requests = [request_for(model_of(f)) for f in files["sd15"]]
    engine.generate(requests)
    gone, kept = (
        replace(r, character=CharacterModel(Path("gone"), r.character.sha256))
        for r in (requests[0], last)
        if r.character is not None
    )
    assert engine.generate([kept])[0].finite
    with pytest.raises(CheckpointRefused, match="does not open"):
        engine.generate([gone])


def test_a_character_is_named_by_its_hash(engine: Engine, pip: CharacterModel) -> None:
    *others, last = engine.models_of(request_for(pip))
    assert (last.role, last.sha256) == ("character", pip.sha256)
    assert tuple(others) == engine.models
    assert engine.models_of(request_for(replace(pip, strength=0.0))) == engine.models


# ---------------------------------------------------------------------- what is refused


def refusal_of(engine: Engine, character: CharacterModel) -> CheckpointRefused:
    before = state_of(engine)
    steps: list[int] = []
    with pytest.raises(CheckpointRefused) as refusal:
        engine.generate([request_for(), request_for(character)], on_step=lambda done, _: steps.append(done))
    assert steps == []  # before anything is made
    assert state_of(engine) == before
    assert "\n" not in refusal.value.message
    assert str(character.file) in refusal.value.message
    return refusal.value


def test_another_file_than_was_asked_for_is_refused(engine: Engine, files: dict[str, list[Path]]) -> None:
    one, other = (model_of(f) for f in files["sd15"][:2])
    message = refusal_of(engine, CharacterModel(one.file, other.sha256[::-1])).message
    assert "sha256" in message
    assert one.sha256[:12] in message


def test_a_missing_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    assert "does not open" in refusal_of(engine, CharacterModel(tmp_path / "no.safetensors", "0" * 64)).message


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(engine: Engine, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "character.safetensors"
    file.write_bytes(content)
    assert "no safetensors file" in refusal_of(engine, model_of(file)).message


@pytest.mark.parametrize(("layout", "of"), [("sd15", "sdxl"), ("sdxl", "sd15")])
@pytest.mark.parametrize("number", [0, 1])
def test_a_character_of_another_base_is_refused(
    engines: Engines, files: dict[str, list[Path]], layout: str, of: str, number: int
) -> None:
    refusal = refusal_of(engines(layout, "base"), model_of(files[of][number]))
    assert ("it has weights for 'text_encoder_2'" if (of, number) == ("sdxl", 1) else "does not fit") in refusal.message
    assert "trained on this base" in refusal.next_step


@pytest.fixture
def changed(files: dict[str, list[Path]], tmp_path: Path) -> Callable[..., CharacterModel]:
    """A character file with its weights rewritten."""

    def write(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> CharacterModel:
        file = tmp_path / "changed.safetensors"
        save_file(change(load_file(files["sd15"][0])), file)
        return model_of(file)

    return write


def test_half_a_pair_is_refused(engine: Engine, changed: Callable[..., CharacterModel]) -> None:
    broken = changed(lambda state: dict(list(state.items())[1:]))
    assert "not a pair" in refusal_of(engine, broken).message


def test_keys_of_another_layout_are_refused(engine: Engine, changed: Callable[..., CharacterModel]) -> None:
    kohya = changed(lambda state: {k.replace("unet.", "lora_unet_").replace(".", "_"): v for k, v in state.items()})
    refusal = refusal_of(engine, kohya)
    assert "lora_unet_" in refusal.message
    assert "save_lora_weights" in refusal.next_step


@pytest.mark.parametrize(
    "told", ["[1]", '"four"', '{"unet.r": "four"}', '{"unet.r": 3}', '{"unet.r": 2, "unet.alpha_pattern": {"(": 1}}']
)
def test_ranks_that_make_no_sense_are_refused(
    engine: Engine, files: dict[str, list[Path]], tmp_path: Path, told: str
) -> None:
    file = tmp_path / "told.safetensors"
    save_file(load_file(files["sd15"][0]), file, metadata={"lora_adapter_metadata": told})
    assert "does not load" in refusal_of(engine, model_of(file)).message


@pytest.mark.parametrize("metadata", [None, {"lora_adapter_metadata": "[" * 100_000}, {"lora_adapter_metadata": "{"}])
def test_metadata_that_is_none_or_cannot_be_read(
    engine: Engine, files: dict[str, list[Path]], tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    content = files["sd15"][0].read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({**json.loads(content[8:end]), "__metadata__": metadata}).encode()
    file = tmp_path / "told.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    if metadata is None:  # then ranks and alphas are equal, as diffusers takes them to be
        assert np.abs(made(engine, request_for(model_of(file))) - made(engine, request_for())).max() > DIFFERENT
    else:
        assert "no safetensors file" in refusal_of(engine, model_of(file)).message


@pytest.fixture
def retold(files: dict[str, list[Path]], tmp_path: Path) -> Callable[..., CharacterModel]:
    """A character whose file says other things of how one of its models was trained."""

    def write(part: str, **settings: Any) -> CharacterModel:
        content = files["sd15"][1].read_bytes()
        told = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        changed = json.loads(told["lora_adapter_metadata"]) | {f"{part}.{k}": v for k, v in settings.items()}
        file = tmp_path / "retold.safetensors"
        save_file(load_file(files["sd15"][1]), file, metadata={"lora_adapter_metadata": json.dumps(changed)})
        return model_of(file)

    return write


PARTS = pytest.mark.parametrize("part", ["unet", "text_encoder"])


@PARTS
@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"modules_to_save": ["conv_in", "final_layer_norm"]},
        {"target_modules": ["conv_in", "fc1"]},
        {"target_modules": 3},
        {"exclude_modules": ["to_k", "q_proj"]},
        {"bias": "all"},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"no_such_setting": 1},
    ],
    ids=lambda settings: " ".join(map(str, next(iter(settings.items())))),
)
def test_how_it_was_trained_changes_neither_the_base_nor_the_picture(
    engine: Engine, pip: CharacterModel, retold: Callable[..., CharacterModel], part: str, settings: dict[str, Any]
) -> None:
    expected, before = made(engine, request_for(pip)), state_of(engine)
    assert np.array_equal(made(engine, request_for(retold(part, **settings))), expected)
    assert state_of(engine) == before


@PARTS
@pytest.mark.parametrize(("setting", "weight"), [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")])
def test_weights_that_the_metadata_tells_of_and_the_file_lacks_are_named(
    engine: Engine, retold: Callable[..., CharacterModel], part: str, setting: str, weight: str
) -> None:
    message = refusal_of(engine, retold(part, **{setting: True})).message
    assert "it lacks" in message
    assert weight in message


def test_weights_that_the_metadata_does_not_tell_of_are_refused(
    engine: Engine, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    file = tiny.write_character(tmp_path, checkpoints.folders["sd15"], use_dora=True)
    content = file.read_bytes()
    told = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    plain = json.loads(told["lora_adapter_metadata"]) | {"unet.use_dora": False}
    save_file(load_file(file), tmp_path / "plain.safetensors", {"lora_adapter_metadata": json.dumps(plain)})
    assert "lora_magnitude_vector" in refusal_of(engine, model_of(tmp_path / "plain.safetensors")).message


def test_memory_that_runs_out_is_not_the_files_fault(
    checkpoints: Checkpoints, pip: CharacterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to see who is told: its error comes from the layer that peft reads the weights into."""

    def full(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = Engine.open(checkpoints.paths("sd15", None))
    before = state_of(engine)
    with monkeypatch.context() as patched:
        patched.setattr(type(engine.checkpoint.unet), "load_state_dict", full)
        for ask in (lambda: engine.generate([request_for(pip)]), lambda: engine.load_character(pip)):
            with pytest.raises(GenerationFailed, match="ran out of memory while"):
                ask()
    assert state_of(engine) == before
    assert engine.generate([request_for(pip)])[0].finite


def test_an_empty_file_is_refused(engine: Engine, changed: Callable[..., CharacterModel]) -> None:
    assert "empty" in refusal_of(engine, changed(lambda state: {})).message


def test_a_whole_model_is_refused(engine: Engine, checkpoints: Checkpoints) -> None:
    weights = checkpoints.folders["sd15"] / "unet" / "diffusion_pytorch_model.safetensors"
    assert "no character model" in refusal_of(engine, model_of(weights)).message


@pytest.mark.parametrize("sha256", ["", "abc", "Z" * 64, "0" * 63])
def test_what_is_no_hash_is_refused(sha256: str) -> None:
    with pytest.raises(RequestRefused, match="sha256"):
        CharacterModel(Path("pip.safetensors"), sha256)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_below_zero_or_no_number_is_refused(strength: float) -> None:
    with pytest.raises(RequestRefused, match=str(strength)):
        CharacterModel(Path("pip.safetensors"), "0" * 64, strength)


def test_the_tiny_characters_have_an_alpha_of_their_own(files: dict[str, list[Path]]) -> None:
    """Without it, a loader that ignores alpha would pass for one that does not."""
    content = files["sd15"][1].read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    settings = json.loads(header["lora_adapter_metadata"])
    assert settings["unet.lora_alpha"] != settings["unet.r"]
