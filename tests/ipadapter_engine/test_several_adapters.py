"""Several adapters at once: what each adds is summed as in diffusers, a request's own scales, any batch."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from ipadapter_engine.families.studio import STUDIO
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints, picture
from tests.ipadapter_engine.test_attention import counted

TOLERANCE, SAME, DIFFERENT = (
    1e-4,
    4e-5,
    0.01,
)  # SAME: latents reach 20, and CPUs round sums of a batch each their own way
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])
PAIRS = pytest.mark.parametrize("pair", [("base", "base"), ("base", "plus"), ("plus", "base")], ids="+".join)
PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def styles(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Adapters beside those of `checkpoints`, with other weights, by layout and variant."""
    root = tmp_path_factory.mktemp("styles")
    files = {}
    for layout, folder in checkpoints.folders.items():
        unet = tiny.open_unet(folder)
        states = {"base": tiny.base_adapter_state(unet, seed=41), "plus": tiny.plus_adapter_state(unet, seed=42)}
        for variant, state in states.items():
            files[layout, variant] = tiny.write_safetensors(root / layout / f"{variant}_style.safetensors", state)
    return files


@pytest.fixture(scope="module")
def two(checkpoints: Checkpoints, styles: dict[tuple[str, str], Path]) -> Callable[[str, tuple[str, str]], Engine]:
    """The engine with an identity adapter of the first variant and a style adapter of the second."""
    opened: dict[Any, Engine] = {}

    def open_engine(layout: str, pair: tuple[str, str]) -> Engine:
        if (layout, pair) not in opened:
            paths = replace(checkpoints.paths(layout, pair[0]), adapters={"style": styles[layout, pair[1]]})
            opened[layout, pair] = Engine.open(paths)
        return opened[layout, pair]

    return open_engine


@pytest.fixture(scope="module")
def both(two: Callable[[str, tuple[str, str]], Engine]) -> Engine:
    """The one that most tests use."""
    return two("sd15", ("base", "plus"))


def request_for(engine: Engine, **changes: Any) -> GenerationRequest:
    """With one reference an adapter."""
    values: dict[str, Any] = {
        "prompt": "a red fox", "seed": 7, "steps": 4, "guidance": 3.0, "scheduler": "ddim",
        "width_px": 32, "height_px": 32, "scale": 0.7, "scales": {"style": 0.4},
        "references": (engine.look_at(picture(0)), engine.look_at(picture(1), adapter="style")),
    }  # fmt: skip
    return GenerationRequest(**{**values, **changes})


def made(engine: Engine, request: GenerationRequest) -> np.ndarray:
    return engine.generate([request])[0].latents


def latents_of_diffusers(pipe: Any, engine: Engine, request: GenerationRequest, shown: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
    key, stride = engine.batch_key(request), engine.checkpoint.stride
    shape = (1, 4, key.height_px // stride, key.width_px // stride)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=request.prompt, width=key.width_px, height=key.height_px, num_inference_steps=key.steps,
            guidance_scale=request.guidance, output_type="latent", ip_adapter_image=shown,
            latents=torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)),
        )  # fmt: skip
    return np.asarray(out.images[0])


# ---------------------------------------------------------------------- as diffusers


@LAYOUTS
@PAIRS
@pytest.mark.parametrize("shown", [(1, 1), (2, 3)])
def test_the_engine_makes_what_diffusers_makes(
    two: Callable[[str, tuple[str, str]], Engine],
    checkpoints: Checkpoints,
    styles: dict[tuple[str, str], Path],
    pictures: list[Image.Image],
    layout: str,
    pair: tuple[str, str],
    shown: tuple[int, int],
) -> None:
    engine = two(layout, pair)
    seen = [pictures[: shown[0]], pictures[-shown[1] :]]
    references = [engine.look_at(p, adapter=a) for a, ps in zip(("identity", "style"), seen, strict=True) for p in ps]
    request = request_for(engine, references=tuple(references))

    pipe = PIPELINES[layout].from_pretrained(checkpoints.folders[layout], local_files_only=True)
    clip = checkpoints.encoder.parent
    pipe.register_modules(feature_extractor=CLIPImageProcessorPil.from_pretrained(clip / "feature_extractor"))
    files = [checkpoints.adapters[layout, pair[0]], styles[layout, pair[1]]]
    pipe.load_ip_adapter(
        [str(f.parent) for f in files], subfolder=["", ""], weight_name=[f.name for f in files],
        image_encoder_folder=str(checkpoints.encoder),
    )  # fmt: skip
    pipe.set_ip_adapter_scale([request.scale, request.scale_of("style")])
    theirs = latents_of_diffusers(pipe, engine, request, seen)
    assert np.abs(made(engine, request) - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("channels", [(32,), (32, 64), (32, 32, 64)], ids=len)
def test_a_folder_with_everything_opens_in_diffusers_unchanged(tmp_path: Path, channels: tuple[int, ...]) -> None:
    """As the embedded model's will: AutoencoderTiny, complete index, both adapters; pixels compared, too."""
    folder = tiny.write_studio(tmp_path, channels=channels)
    engine = Engine.open(CheckpointPaths(folder))
    assert engine.family == replace(STUDIO, size_px=32)
    assert (engine.reads_hidden("identity"), engine.reads_hidden("style"), engine.needs_hidden) == (False, True, True)
    side = 2 * engine.checkpoint.multiple_px
    request = request_for(engine, width_px=side, height_px=side)
    (ours,) = engine.generate([request])

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    names = ["ip_adapter.safetensors", "ip_adapter_style.safetensors"]
    pipe.load_ip_adapter([str(folder)] * 2, subfolder=["", ""], weight_name=names)
    pipe.set_ip_adapter_scale([request.scale, request.scale_of("style")])
    theirs = latents_of_diffusers(pipe, engine, request, [[picture(0)], [picture(1)]])
    assert np.abs(ours.latents - theirs).max() <= TOLERANCE
    with torch.inference_mode():
        decoded = pipe.vae.decode(torch.from_numpy(ours.latents)[None] / pipe.vae.config.scaling_factor).sample
    shown = pipe.image_processor.postprocess(decoded, output_type="np")[0]
    assert np.abs(ours.pixels / 255 - shown).max() <= 0.5 / 255 + 1e-4


# ---------------------------------------------------------------------- in a batch


def mixed(engine: Engine) -> list[GenerationRequest]:
    """References of both, of either and of no adapter, with other scales, weights and windows."""
    own = [engine.look_at(picture(seed)) for seed in range(2)]
    style = [engine.look_at(picture(seed), adapter="style") for seed in range(2, 4)]
    faint = ReferencePrompt(style[1].embedding, 0.3, "style")
    return [
        request_for(engine, seed=1, references=(own[0], style[0])),
        request_for(engine, seed=2, references=(style[0], own[1], faint)),
        request_for(engine, seed=3, references=(style[1],), scales={}),
        request_for(engine, seed=4, references=(own[1], own[0])),
        request_for(engine, seed=5, references=(), guidance=1.0),
        request_for(engine, seed=6, references=(own[0], style[0]), scale=0.0, guidance=0.0),
        request_for(engine, seed=7, references=(own[0], style[0]), scales={"style": 0.0}, window=(0.0, 0.5)),
        request_for(engine, seed=8, references=(style[1], own[0]), window=(0.5, 1.0), negative_prompt="a cat"),
    ]


@LAYOUTS
@PAIRS
@pytest.mark.parametrize("max_batch", [3, 100])
def test_a_picture_is_the_same_alone_and_in_a_mixed_batch(
    two: Callable[[str, tuple[str, str]], Engine], layout: str, pair: tuple[str, str], max_batch: int
) -> None:
    engine = two(layout, pair)
    requests = mixed(engine)
    for together, request in zip(engine.generate(requests, max_batch=max_batch), requests, strict=True):
        assert np.abs(together.latents - made(engine, request)).max() <= SAME


@pytest.mark.parametrize("steps", [1, 4])
def test_keys_and_values_of_every_adapter_are_computed_once(both: Engine, steps: int) -> None:
    layers = {
        f"{name} {n}": m
        for name, adapter in both.checkpoint.adapters.items()
        for n, m in adapter.named_modules()
        if n.endswith("_ip") or n == "projection"
    }
    with counted(layers) as calls:
        both.generate([request_for(both, steps=steps), request_for(both, steps=steps, seed=8)])
    assert calls == Counter(dict.fromkeys(layers, 1))


def test_an_adapter_that_nobody_hears_is_not_computed(both: Engine) -> None:
    style = both.checkpoint.adapters["style"]
    with counted({n: m for n, m in style.named_modules() if n}) as calls:
        both.generate([request_for(both, scales={"style": 0.0}), request_for(both, references=())])
    assert not calls


# ---------------------------------------------------------------------- what scales mean


@pytest.mark.parametrize(("silent", "left"), [({"scale": 0.0}, "style"), ({"scales": {"style": 0.0}}, "identity")])
def test_scale_zero_leaves_the_other_adapter_alone(both: Engine, silent: dict[str, Any], left: str) -> None:
    request = request_for(both)
    alone = replace(request, references=tuple(r for r in request.references if r.adapter == left))
    assert np.array_equal(made(both, replace(request, **silent)), made(both, alone))
    assert np.abs(made(both, alone) - made(both, request)).max() > DIFFERENT


def test_a_scale_that_is_not_named_is_one(both: Engine) -> None:
    assert np.array_equal(
        made(both, request_for(both, scales={})), made(both, request_for(both, scales={"style": 1.0}))
    )


def test_an_adapter_beside_it_changes_nothing_for_who_does_not_name_it(both: Engine, checkpoints: Checkpoints) -> None:
    request = request_for(both, scales={})
    own = replace(request, references=request.references[:1])
    assert np.abs(made(both, own) - made(Engine.open(checkpoints.paths("sd15", "base")), own)).max() <= SAME


def test_a_style_adapter_needs_no_identity_adapter(
    checkpoints: Checkpoints, styles: dict[tuple[str, str], Path], both: Engine
) -> None:
    paths = CheckpointPaths(
        checkpoints.folders["sd15"], None, checkpoints.encoder, adapters={"style": styles["sd15", "plus"]}
    )
    request = request_for(both)
    only = replace(request, references=request.references[1:])
    assert np.abs(made(Engine.open(paths), only) - made(both, only)).max() <= SAME


# ---------------------------------------------------------------------- names, hashes and refusals


def test_a_further_adapter_is_named_by_its_hash_where_it_has_a_part(
    both: Engine, styles: dict[tuple[str, str], Path]
) -> None:
    *others, last = both.models_of(request_for(both))
    assert tuple(others) == both.models
    assert last.role == "ip-adapter style"
    assert last.sha256 == hashlib.sha256(styles["sd15", "plus"].read_bytes()).hexdigest()
    assert both.models_of(request_for(both, scales={"style": 0.0})) == both.models
    assert both.models_of(request_for(both, window=(0.5, 0.5))) == both.models
    assert both.models_of(request_for(both, references=())) == both.models


def test_the_style_adapter_of_a_folder_is_loaded_and_its_plus_adapter_is_not(tmp_path: Path) -> None:
    folder = tiny.write_studio(tmp_path)
    plus = folder / "ip_adapter_plus.safetensors"
    tiny.write_safetensors(plus, tiny.plus_adapter_state(tiny.open_unet(folder), seed=9))
    assert list(open_checkpoint(CheckpointPaths(folder)).adapters) == ["identity", "style"]
    chosen = open_checkpoint(
        CheckpointPaths(folder, adapter=plus, adapters={"style": folder / "ip_adapter.safetensors"})
    )
    assert {name: a.variant for name, a in chosen.adapters.items()} == {"identity": "plus", "style": "base"}
    beside = open_checkpoint(CheckpointPaths(folder, adapters={"plus": plus}))
    assert sorted(beside.adapters) == ["identity", "plus", "style"]


def test_the_style_adapter_of_a_folder_stays_out_beside_another_encoder(tmp_path: Path) -> None:
    """It was trained on the folder's own: with a user's encoder and adapter it would be refused, unasked for."""
    folder = tiny.write_studio(tmp_path / "base")
    other = tiny.write_encoder(tmp_path / "other", embed=tiny.EMBED + 8, hidden=tiny.HIDDEN + 8)
    own = tiny.base_adapter_state(tiny.open_unet(folder), embed=tiny.EMBED + 8)
    theirs = CheckpointPaths(folder, tiny.write_safetensors(tmp_path / "own.safetensors", own), other)
    assert list(open_checkpoint(theirs).adapters) == ["identity"]
    named = CheckpointPaths(folder, encoder=folder / "image_encoder")
    assert list(open_checkpoint(named).adapters) == ["identity", "style"]


def test_licences_are_the_bases_only_for_what_lies_in_its_folder(
    checkpoints: Checkpoints, styles: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    folder = tiny.write_studio(tmp_path / "base")
    elsewhere = tiny.write_control_net(tmp_path / "pose", folder, stride=8)
    tiny.copy_of(elsewhere, folder / "controlnet" / "edges")
    unet = tiny.open_unet(folder)
    adapter = tiny.write_safetensors(tmp_path / "own.safetensors", tiny.base_adapter_state(unet))
    encoder = tiny.write_encoder(tmp_path / "clip")
    inside = open_checkpoint(CheckpointPaths(folder))
    outside = open_checkpoint(
        CheckpointPaths(
            folder, adapter, encoder, {"pose": elsewhere}, {"style": folder / "ip_adapter_style.safetensors"}
        )
    )
    assert {m.licence for m in (*inside.models, *inside.beside.values())} == {"test"}
    told = {m.role: m.licence for m in (*outside.models, *outside.beside.values())}
    foreign = {role for role, licence in told.items() if licence == "as its own, not told here"}
    assert foreign == {"image encoder", "ip-adapter", "controlnet pose"}
    assert {told[role] for role in set(told) - foreign} == {"test"}


@pytest.mark.parametrize("name", ["Own", "own style"])
def test_a_name_that_no_setting_can_hold_is_refused(checkpoints: Checkpoints, name: str) -> None:
    paths = checkpoints.paths("sd15", "base")
    assert paths.adapter is not None
    with pytest.raises(CheckpointRefused, match=repr(name)) as refusal:
        open_checkpoint(replace(paths, adapters={name: paths.adapter}))
    assert name.lower().replace(" ", "_") in refusal.value.next_step


def test_the_identity_adapter_is_not_given_twice(checkpoints: Checkpoints) -> None:
    paths = checkpoints.paths("sd15", "base")
    assert paths.adapter is not None
    with pytest.raises(CheckpointRefused, match="identity") as refusal:
        open_checkpoint(replace(paths, adapters={"identity": paths.adapter}))
    assert "ONMODEL_ENGINE__ADAPTER" in refusal.value.next_step


def test_a_further_adapter_of_another_base_or_encoder_is_refused(
    checkpoints: Checkpoints, styles: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    paths = checkpoints.paths("sd15", "base")
    with pytest.raises(CheckpointRefused, match="another base"):
        open_checkpoint(replace(paths, adapters={"style": styles["sdxl", "base"]}))
    wide = tiny.base_adapter_state(tiny.open_unet(checkpoints.folders["sd15"]), embed=tiny.EMBED + 8)
    with pytest.raises(CheckpointRefused, match="trained on pooled embeddings"):
        open_checkpoint(replace(paths, adapters={"style": tiny.write_safetensors(tmp_path / "a.safetensors", wide)}))


def test_an_adapter_that_is_not_loaded_is_refused_with_those_that_are(both: Engine) -> None:
    for changes in ({"references": (ReferencePrompt(np.ones(tiny.EMBED), adapter="face"),)}, {"scales": {"face": 1.0}}):
        with pytest.raises(RequestRefused, match=r"'face'; loaded are identity, style") as refusal:
            made(both, request_for(both, **changes))
        assert "ONMODEL_ENGINE__ADAPTERS__FACE" in refusal.value.next_step


def test_an_embedding_for_the_other_adapter_is_refused(both: Engine) -> None:
    own = both.look_at(picture(0))
    with pytest.raises(RequestRefused, match="plus adapter reads"):
        made(both, request_for(both, references=(replace(own, adapter="style"),)))


def test_scales_that_make_no_sense_are_refused(both: Engine) -> None:
    for scales, told in (({"identity": 0.5}, "identity"), ({"style": -1.0}, "-1.0"), ({"style": float("nan")}, "nan")):
        with pytest.raises(RequestRefused, match=told):
            request_for(both, scales=scales)


def test_references_of_one_adapter_that_all_weigh_nothing_are_refused(both: Engine) -> None:
    own, style = request_for(both).references
    with pytest.raises(RequestRefused, match="'style' have weight 0"):
        request_for(both, references=(own, replace(style, weight=0.0)))
