"""ControlNet: the engine follows control pictures as diffusers does, in any batch, and only where it is asked to."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.controls import check_shape, fitted
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ControlPrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints, picture

TOLERANCE, SAME, DIFFERENT = (
    1e-4,
    4e-5,
    0.01,
)  # SAME: latents reach 20, and CPUs round sums of a batch each their own way
STRIDES = {"sd15": 8, "sdxl": 4}
PIPELINES = {"sd15": StableDiffusionControlNetPipeline, "sdxl": StableDiffusionXLControlNetPipeline}
KINDS = ("edges", "pose")
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])


@pytest.fixture(scope="module")
def nets(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Folders by layout and kind."""
    root = tmp_path_factory.mktemp("controlnets")
    return {
        (layout, kind): tiny.write_control_net(root / layout / kind, folder, stride=STRIDES[layout], seed=21 + i)
        for layout, folder in checkpoints.folders.items()
        for i, kind in enumerate(KINDS)
    }


@pytest.fixture(scope="module")
def steered(checkpoints: Checkpoints, nets: dict[tuple[str, str], Path]) -> dict[str, Engine]:
    """An engine a layout with a base adapter and both ControlNets."""
    return {
        layout: Engine.open(
            replace(checkpoints.paths(layout, "base"), controls={kind: nets[layout, kind] for kind in KINDS})
        )
        for layout in checkpoints.folders
    }


def control(kind: str = "edges", seed: int = 50, side_px: int = 32, **changes: Any) -> ControlPrompt:
    return ControlPrompt(np.asarray(picture(seed, side_px)), kind, **changes)


def request_for(*controls: ControlPrompt, **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "prompt": "a red fox", "seed": 7, "steps": 4, "guidance": 3.0, "scheduler": "ddim",
        "width_px": 32, "height_px": 32, "controls": controls,
    }  # fmt: skip
    return GenerationRequest(**{**values, **changes})


def made(engine: Engine, request: GenerationRequest) -> np.ndarray:
    return engine.generate([request])[0].latents


# ---------------------------------------------------------------------- as diffusers


@pytest.fixture(scope="module")
def pipeline_of(checkpoints: Checkpoints, nets: dict[tuple[str, str], Path]) -> Callable[[str, tuple[str, ...]], Any]:
    opened: dict[Any, Any] = {}

    def open_pipeline(layout: str, kinds: tuple[str, ...]) -> Any:
        if (layout, kinds) not in opened:
            models = [ControlNetModel.from_pretrained(nets[layout, kind]) for kind in kinds]
            pipe = PIPELINES[layout].from_pretrained(
                checkpoints.folders[layout], controlnet=models if len(models) > 1 else models[0], local_files_only=True
            )
            file, clip = checkpoints.adapters[layout, "base"], checkpoints.encoder.parent
            pipe.register_modules(feature_extractor=CLIPImageProcessorPil.from_pretrained(clip / "feature_extractor"))
            pipe.load_ip_adapter(
                str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=str(checkpoints.encoder)
            )
            pipe.set_progress_bar_config(disable=True)
            opened[layout, kinds] = pipe
        return opened[layout, kinds]

    return open_pipeline


def latents_of_diffusers(
    pipe: Any, engine: Engine, request: GenerationRequest, shown: Image.Image, scale: float
) -> np.ndarray:
    key, one = engine.batch_key(request), len(request.controls) == 1
    pipe.scheduler = SCHEDULERS[key.scheduler].from_config(pipe.scheduler.config)
    pipe.set_ip_adapter_scale(scale)
    stride = engine.checkpoint.stride
    noise = torch.randn(
        (1, 4, key.height_px // stride, key.width_px // stride),
        generator=torch.Generator().manual_seed(request.seed),
    )
    told = {
        "image": [Image.fromarray(c.picture) for c in request.controls],
        "controlnet_conditioning_scale": [c.strength for c in request.controls],
        "control_guidance_start": [c.window[0] for c in request.controls],
        "control_guidance_end": [c.window[1] for c in request.controls],
    }
    named = {name: value[0] if one else value for name, value in told.items()}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe(
            prompt=request.prompt, width=key.width_px, height=key.height_px, num_inference_steps=key.steps,
            guidance_scale=request.guidance, latents=noise, output_type="latent", ip_adapter_image=[[shown]], **named,
        )  # fmt: skip
    return np.asarray(out.images[0])


@LAYOUTS
@pytest.mark.parametrize(
    ("controls", "changes"),
    [
        ((control(),), {}),
        ((control(strength=0.6),), {"scheduler": "euler"}),
        ((control(window=(0.25, 0.75)),), {}),
        ((control(),), {"guidance": 1.0}),
        ((control(side_px=61),), {"width_px": 48, "height_px": 48}),
        ((control("edges", strength=0.8), control("pose", 51, strength=1.3, window=(0.0, 0.5))), {}),
    ],
    ids=["plain", "strength", "window", "unguided", "resized", "two kinds"],
)
@pytest.mark.parametrize("scale", [0.0, 0.8])
def test_the_engine_makes_what_diffusers_makes(
    steered: dict[str, Engine],
    pipeline_of: Callable[[str, tuple[str, ...]], Any],
    layout: str,
    controls: tuple[ControlPrompt, ...],
    changes: dict[str, Any],
    scale: float,
) -> None:
    """Alone and beside a reference: scale 0 silences the adapter that the pipeline has."""
    engine, shown = steered[layout], picture(1)
    request = request_for(*controls, references=(engine.look_at(shown),), scale=scale, **changes)
    theirs = latents_of_diffusers(pipeline_of(layout, tuple(c.kind for c in controls)), engine, request, shown, scale)
    ours = made(engine, request)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert np.abs(ours - made(engine, replace(request, controls=()))).max() > DIFFERENT


@LAYOUTS
def test_another_picture_makes_another(steered: dict[str, Engine], layout: str) -> None:
    """Without it, an engine that shows its ControlNets the same picture always would pass the tests above."""
    one, other = (made(steered[layout], request_for(control(seed=seed))) for seed in (50, 51))
    assert np.abs(one - other).max() > DIFFERENT


def test_a_control_net_that_reads_blue_first_is_shown_blue_first(checkpoints: Checkpoints, tmp_path: Path) -> None:
    base = checkpoints.folders["sd15"]
    rgb, bgr = (
        tiny.write_control_net(tmp_path / order, base, stride=8, controlnet_conditioning_channel_order=order)
        for order in ("rgb", "bgr")
    )
    engine = Engine.open(CheckpointPaths(base, controls={"rgb": rgb, "bgr": bgr}))
    shown = np.asarray(picture(50))
    blue_first = made(engine, request_for(ControlPrompt(shown, "bgr")))
    turned = np.ascontiguousarray(shown[..., ::-1])
    assert np.abs(blue_first - made(engine, request_for(ControlPrompt(turned, "rgb")))).max() <= SAME
    assert np.abs(blue_first - made(engine, request_for(ControlPrompt(shown, "rgb")))).max() > DIFFERENT


# ---------------------------------------------------------------------- in a batch


def mixed(engine: Engine) -> list[GenerationRequest]:
    """Requests with none, one, two of a kind and both kinds, other strengths, windows, guidance and references."""
    seen, shared = [engine.look_at(picture(seed)) for seed in range(2)], control(seed=52)
    return [
        request_for(seed=1),
        request_for(control(), seed=2, references=(seen[0],), guidance=1.0),
        request_for(shared, control("pose", 53, strength=0.4), seed=3, window=(0.0, 0.5), references=(seen[1],)),
        request_for(control(seed=54), control(seed=55, strength=0.7), seed=4, negative_prompt="a cat"),
        request_for(control("pose", 56, window=(0.5, 1.0)), seed=5, guidance=0.0),
        request_for(shared, seed=6, references=(seen[0], seen[1]), scale=0.5),
        request_for(control(strength=0.0), seed=7),
        request_for(control(side_px=48, window=(0.3, 0.8)), seed=8, width_px=48, height_px=48),
        request_for(control(window=(0.3, 0.3)), seed=9),
    ]


@LAYOUTS
@pytest.mark.parametrize("max_batch", [3, 100])
def test_a_picture_is_the_same_alone_and_in_a_mixed_batch(
    steered: dict[str, Engine], layout: str, max_batch: int
) -> None:
    engine = steered[layout]
    requests = mixed(engine)
    for together, request in zip(engine.generate(requests, max_batch=max_batch), requests, strict=True):
        assert np.abs(together.latents - made(engine, request)).max() <= SAME


@pytest.mark.parametrize("unheard", [{"strength": 0.0}, {"window": (0.5, 0.5)}, {"window": (1.0, 1.0)}])
def test_a_control_that_is_not_heard_changes_nothing(steered: dict[str, Engine], unheard: dict[str, Any]) -> None:
    assert np.array_equal(made(steered["sd15"], request_for(control(**unheard))), made(steered["sd15"], request_for()))


def test_the_order_of_controls_does_not_matter(steered: dict[str, Engine]) -> None:
    one, other = control(), control("pose", 51)
    difference = made(steered["sd15"], request_for(one, other)) - made(steered["sd15"], request_for(other, one))
    assert np.abs(difference).max() <= SAME


def test_what_overflows_in_one_row_stays_there(checkpoints: Checkpoints, nets: dict[tuple[str, str], Path]) -> None:
    """A window between two steps: the ControlNet runs on the row, as another one hears it, and nothing is added."""
    engine = Engine.open(CheckpointPaths(checkpoints.folders["sd15"], controls={"edges": nets["sd15", "edges"]}))
    with torch.no_grad():
        engine.checkpoint.controls["edges"].model.controlnet_mid_block.bias.fill_(float("inf"))
    broken, silent = engine.generate([request_for(control()), request_for(control(window=(0.8, 0.9)), seed=8)])
    assert not broken.finite
    assert np.abs(silent.latents - made(engine, request_for(seed=8))).max() <= SAME


@contextmanager
def rows_of(module: nn.Module) -> Iterator[list[int]]:
    """How many rows each call of a module had."""
    calls: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    yield calls
    hook.remove()


def test_pictures_are_embedded_once_and_equal_ones_together(steered: dict[str, Engine]) -> None:
    same = control()
    net = steered["sd15"].checkpoint.controls["edges"]
    with rows_of(net.embedding) as calls:
        steered["sd15"].generate([request_for(same), request_for(same, seed=8), request_for(control(seed=59))])
    assert calls == [2]


def test_a_control_net_runs_on_the_rows_and_steps_that_hear_it_only(steered: dict[str, Engine]) -> None:
    net = steered["sd15"].checkpoint.controls["edges"]
    first, last = control(window=(0.0, 0.25)), control(seed=51, window=(0.75, 1.0))
    with rows_of(net.model.conv_in) as calls:
        steered["sd15"].generate([request_for(first), request_for(), request_for(last), request_for()])
    assert calls == [2, 2]  # one of four rows, both halves of guidance, at the first step and another at the last
    with rows_of(net.model.conv_in) as calls:
        steered["sd15"].generate([request_for(control("pose"), control(strength=0.0), control(window=(0.5, 0.5)))])
    assert calls == []


def test_text_keys_and_values_of_a_control_net_are_computed_once(steered: dict[str, Engine]) -> None:
    net = steered["sd15"].checkpoint.controls["edges"]
    (layer, *_) = [m for n, m in net.model.named_modules() if n.endswith("attn2.to_k")]
    with rows_of(layer) as calls:
        made(steered["sd15"], request_for(control()))
    assert calls == [2]


# ---------------------------------------------------------------------- what is refused


def test_a_kind_that_is_not_loaded_is_refused_with_those_that_are(steered: dict[str, Engine]) -> None:
    with pytest.raises(RequestRefused, match="edges, pose") as refusal:
        made(steered["sd15"], request_for(control("depth")))
    assert "ONMODEL_ENGINE__CONTROLS__DEPTH" in refusal.value.next_step


def test_a_control_without_any_control_net_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestRefused, match="no ControlNet is loaded"):
        made(engine, request_for(control(strength=0.0)))


def test_a_picture_of_another_shape_is_refused(steered: dict[str, Engine]) -> None:
    with pytest.raises(
        RequestRefused, match=r"\(edges\) of 32 × 32 px has another shape than the picture of 48 × 32"
    ) as refusal:
        made(steered["sd15"], request_for(control(), width_px=48))
    assert "48:32" in refusal.value.next_step


@pytest.mark.parametrize(("width", "fits"), [(100, True), (110, True), (91, True), (111, False), (90, False)])
def test_a_shape_may_be_a_tenth_off(width: int, fits: bool) -> None:
    prompt = ControlPrompt(np.zeros((100, width, 3), np.uint8), "edges")
    if fits:
        check_shape("it", prompt.picture.shape[:2], 64, 64)
        assert fitted(prompt, 64, 64).shape == (64, 64, 3)
    else:
        with pytest.raises(RequestRefused):
            check_shape("it", prompt.picture.shape[:2], 64, 64)
        with pytest.raises(RequestRefused):
            fitted(prompt, 64, 64)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), None],
)
def test_a_picture_that_is_none_is_refused(pixels: Any) -> None:
    with pytest.raises(RequestRefused, match="uint8"):
        ControlPrompt(pixels, "edges")


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_below_zero_or_no_number_is_refused(strength: float) -> None:
    with pytest.raises(RequestRefused, match=f"{strength} of a control .* is not a number of 0 or more"):
        control(strength=strength)


@pytest.mark.parametrize("kind", ["", "Edges", "soft edges", "soft-edges", "soft__edges", "_edges", "é"])
def test_a_kind_that_no_setting_can_name_is_refused(checkpoints: Checkpoints, kind: str) -> None:
    with pytest.raises(RequestRefused, match="no name of a kind of control"):
        control(kind)
    with pytest.raises(CheckpointRefused, match="is called"):
        open_checkpoint(CheckpointPaths(checkpoints.folders["sd15"], controls={kind: Path("anywhere")}))


def test_a_folder_that_no_setting_can_name_is_to_be_renamed(
    checkpoints: Checkpoints, nets: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    base = tiny.copy_of(checkpoints.folders["sd15"], tmp_path / "base")
    tiny.copy_of(nets["sd15", "edges"], base / "controlnet" / "Soft-Edges")
    with pytest.raises(CheckpointRefused, match="'Soft-Edges'") as refusal:
        open_checkpoint(CheckpointPaths(base))
    assert refusal.value.next_step == f"rename the folder {base / 'controlnet' / 'Soft-Edges'} to soft_edges"


@pytest.mark.parametrize("window", [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_a_window_out_of_range_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(RequestRefused, match="window"):
        control(window=window)


def refusal_of(base: Path, folder: Path) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(CheckpointPaths(base, controls={"edges": folder}))
    assert "\n" not in refusal.value.message
    assert str(folder) in refusal.value.message
    return refusal.value


def test_a_control_net_of_another_base_is_refused(checkpoints: Checkpoints, nets: dict[tuple[str, str], Path]) -> None:
    refusal = refusal_of(checkpoints.folders["sd15"], nets["sdxl", "edges"])
    assert "cross_attention_dim is 64, the UNet's 32" in refusal.message
    assert "ControlNet (edges) that was trained for Stable Diffusion 1.5" in refusal.next_step


def test_a_control_net_of_another_first_stage_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    base = checkpoints.folders["sd15"]
    refusal = refusal_of(base, tiny.write_control_net(tmp_path, base, stride=16))
    assert "16 times smaller" in refusal.message
    assert "8 times smaller" in refusal.message
    assert "4 entries" in refusal.next_step


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers_per_block": 2}, "layers_per_block"),
        ({"in_channels": 9}, "in_channels"),
        ({"conditioning_channels": 1}, "1 channels"),
        ({"global_pool_conditions": True}, "global_pool_conditions"),
    ],
)
def test_a_control_net_of_another_make_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    base = checkpoints.folders["sd15"]
    assert told in refusal_of(base, tiny.write_control_net(tmp_path, base, stride=8, **change)).message


def test_a_folder_that_holds_something_else_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    base = checkpoints.folders["sd15"]
    assert "no config.json" in refusal_of(base, tmp_path).message
    assert "UNet2DConditionModel" in refusal_of(base, base / "unet").message


# ---------------------------------------------------------------------- where they come from


def test_control_nets_in_the_base_folder_are_loaded_and_given_ones_go_first(
    checkpoints: Checkpoints, nets: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    base = tiny.copy_of(checkpoints.folders["sd15"], tmp_path / "base")
    for kind in KINDS:
        tiny.copy_of(nets["sd15", kind], base / "controlnet" / kind)
    (base / "controlnet" / "notes").mkdir()
    other = tiny.write_control_net(tmp_path / "other", base, stride=8, seed=77)
    found = CheckpointPaths(base, controls={"pose": other}).resolved().controls
    assert dict(found) == {"edges": base / "controlnet" / "edges", "pose": other}
    assert sorted(Engine.open(CheckpointPaths(base)).checkpoint.controls) == sorted(KINDS)


def test_a_control_net_is_named_by_its_hash_where_it_has_a_part(
    steered: dict[str, Engine], nets: dict[tuple[str, str], Path]
) -> None:
    engine = steered["sd15"]
    weights = nets["sd15", "edges"] / "diffusion_pytorch_model.safetensors"
    unheard = (control("pose", strength=0.0), control("pose", window=(0.5, 0.5)))
    named = {m.role: m.sha256 for m in engine.models_of(request_for(control(), *unheard))}
    assert named.pop("controlnet edges") == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert named == {m.role: m.sha256 for m in engine.models}
    assert engine.models_of(request_for()) == engine.models


def test_closed_the_control_net_has_its_own_processors(
    checkpoints: Checkpoints, nets: dict[tuple[str, str], Path]
) -> None:
    paths = replace(checkpoints.paths("sd15", None), controls={"edges": nets["sd15", "edges"]})
    checkpoint = open_checkpoint(paths)
    before = dict(checkpoint.controls["edges"].model.attn_processors)
    Engine(checkpoint).close()
    assert checkpoint.controls["edges"].model.attn_processors == before


@pytest.mark.parametrize(("channels", "stride"), [((32,), 8), ((32,), 16), ((32, 64), 16), ((32, 32, 64), 8)])
def test_any_number_of_resolutions_and_either_stride(tmp_path: Path, channels: tuple[int, ...], stride: int) -> None:
    base = tiny.write_studio(tmp_path / "base", channels=channels, stride=stride)
    tiny.write_control_net(base / "controlnet" / "pose", base, stride=stride)
    engine = Engine.open(CheckpointPaths(base))
    multiple = stride * min(2, len(channels))
    assert engine.checkpoint.multiple_px == multiple
    request = request_for(width_px=3 * multiple, height_px=3 * multiple)
    steered_by = replace(request, controls=(control("pose", side_px=3 * multiple),))
    assert np.abs(made(engine, steered_by) - made(engine, request)).max() > 1e-4
    with pytest.raises(RequestRefused, match=f"{multiple + multiple // 2} px") as refusal:
        made(engine, replace(request, width_px=multiple + multiple // 2))
    assert f"multiple of {multiple} px" in refusal.value.next_step
