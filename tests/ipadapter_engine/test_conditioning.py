"""Where, when and how references speak: each feature against diffusers, or against the formula that it stands for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor

from ipadapter_engine.attention import _sides
from ipadapter_engine.emphasis import OTHERS, SD15_PRESETS, SDXL_PRESETS, AdapterSettings, factors
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import Array, ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine.conftest import Checkpoints, Engines, picture
from tests.ipadapter_engine.test_diffusers_parity import TOLERANCE, request_for

SAME = 4e-5  # the latents reach 20: a few units in the last place of single precision
DIFFERENT = 1e-3
ADAPTED = [("sd15", "base"), ("sd15", "plus"), ("sdxl", "base"), ("sdxl", "plus")]
each_adapter = pytest.mark.parametrize(("layout", "variant"), ADAPTED)
Opened = Callable[[str, str | None], Any]


def latents(engine: Engine, request: GenerationRequest) -> Array:
    return engine.generate([request])[0].latents


def gap(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max())


def theirs(pipe: Any, engine: Engine, request: GenerationRequest, **kwargs: Any) -> Array:
    """Final latents of diffusers' pipeline for the request's words and numbers, and what `kwargs` say besides."""
    key, before = engine.batch_key(request), pipe.scheduler
    pipe.scheduler = SCHEDULERS[key.scheduler].from_config(before.config)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = pipe(
                prompt=request.prompt, width=key.width_px, height=key.height_px, num_inference_steps=key.steps,
                guidance_scale=request.guidance, generator=torch.Generator().manual_seed(request.seed),
                output_type="latent", **kwargs,
            )  # fmt: skip
    finally:
        pipe.scheduler = before
    return np.asarray(out.images[0])


# ---------------------------------------------------------------------- blocks

BLOCKS = {
    "sd15": ({"down": 0.5, "up": {"block_1": [0.2, 0.9]}}, {"down_blocks": 0.5, "up_blocks.1.attentions.0": 0.2,
                                                           "up_blocks.1.attentions.1": 0.9}),
    "sdxl": ({"down": {"block_1": [0.0]}, "up": {"block_0": [1.0, 0.3]}}, {"up_blocks.0.attentions.0": 1.0,
                                                                           "up_blocks.0.attentions.1": 0.3}),
}  # fmt: skip


@each_adapter
def test_factors_of_blocks_agree_with_diffusers(
    engines: Engines,
    pipeline_of: Opened,
    layout: str,
    variant: str,
) -> None:
    engine, pipe = engines(layout, variant), pipeline_of(layout, variant)
    named, ours = BLOCKS[layout]
    request = request_for(
        layout, (engine.look_at(picture(0)),), scale=1.0, settings={"identity": AdapterSettings(blocks=ours)}
    )
    pipe.set_ip_adapter_scale(named)
    assert gap(latents(engine, request), theirs(pipe, engine, request, ip_adapter_image=[[picture(0)]])) <= TOLERANCE
    assert gap(latents(engine, request), latents(engine, replace(request, settings={}))) > DIFFERENT


@pytest.mark.parametrize(("presets", "count"), [(SD15_PRESETS, 16), (SDXL_PRESETS, 70)])
def test_presets_name_blocks_of_the_real_unets(presets: dict[str, Any], count: int, real_paths: dict[int, Any]) -> None:
    for blocks in presets.values():
        assert len(factors(dict(blocks), real_paths[count], presets)) == count


@pytest.fixture(scope="module")
def real_paths() -> dict[int, tuple[str, ...]]:
    """The cross-attention layers of Stable Diffusion 1.5 and SDXL by their number, written as diffusers names them."""
    sd15 = [(f"down_blocks.{b}.attentions.{a}", 1) for b in range(3) for a in range(2)]
    sd15 += [(f"up_blocks.{b}.attentions.{a}", 1) for b in (1, 2, 3) for a in range(3)] + [
        ("mid_block.attentions.0", 1)
    ]
    sdxl = [(f"down_blocks.1.attentions.{a}", 2) for a in range(2)] + [
        (f"down_blocks.2.attentions.{a}", 10) for a in range(2)
    ]
    sdxl += [(f"up_blocks.0.attentions.{a}", 10) for a in range(3)] + [
        (f"up_blocks.1.attentions.{a}", 2) for a in range(3)
    ]
    sdxl += [("mid_block.attentions.0", 10)]
    return {
        count: tuple(f"{path}.transformer_blocks.{n}.attn2" for path, deep in layers for n in range(deep))
        for count, layers in ((16, sd15), (70, sdxl))
    }


def test_style_is_one_block_of_sdxl_and_composition_another(real_paths: dict[int, tuple[str, ...]]) -> None:
    paths = real_paths[70]
    for preset, block in (("style", "up_blocks.0.attentions.1."), ("composition", "down_blocks.2.attentions.1.")):
        assert factors(preset, paths, SDXL_PRESETS) == [float(p.startswith(block)) for p in paths]


def test_the_longest_name_holds_and_others_stands_for_the_rest() -> None:
    paths = ("down_blocks.0.attentions.0.a", "down_blocks.0.attentions.1.a", "mid_block.a")
    assert factors({"down_blocks": 0.5, "down_blocks.0.attentions.1": 2.0, OTHERS: 0.1}, paths, {}) == [0.5, 2.0, 0.1]
    assert factors({"down_blocks.0": 0.5}, paths, {}) == [0.5, 0.5, 0.0]


def test_a_block_that_no_layer_lies_under_is_refused_with_those_that_are(engine: Engine) -> None:
    request = request_for("sd15", (), settings={"identity": AdapterSettings(blocks={"up_blocks.7": 1.0})})
    with pytest.raises(RequestRefused, match=r"up_blocks\.7") as refusal:
        engine.generate([request])
    assert "up_blocks.1.attentions.0" in refusal.value.next_step


def test_a_factor_below_zero_leads_away_from_the_reference(engines: Engines) -> None:
    """Without guidance there is nothing to lead away from; with it, it is the reference as the negative one there."""
    engine = engines("sd15", "base")
    seen = engine.look_at(picture(0))
    against = {"identity": AdapterSettings(blocks={OTHERS: -0.8})}
    request = request_for("sd15", (seen,), scale=1.0, settings=against)
    alone = replace(request, guidance=1.0)
    assert gap(latents(engine, alone), latents(engine, replace(alone, references=(), settings={}))) <= SAME
    both_ways = request_for("sd15", (seen,), scale=0.8, settings={})
    zero = replace(request, scale=0.0)
    away, plain, toward = (latents(engine, r) for r in (request, zero, both_ways))
    assert float(((away - plain) * (toward - plain)).mean()) < 0 < gap(away, plain) - DIFFERENT


# ---------------------------------------------------------------------- regions


def halves(width: int, height: int) -> tuple[Array, Array]:
    left = np.zeros((height, width), dtype=np.uint8)
    left[:, : width // 2] = 255
    return left, 255 - left


@each_adapter
def test_regions_agree_with_diffusers(engines: Engines, pipeline_of: Opened, layout: str, variant: str) -> None:
    """Halves whose edge lies between positions of every layer: only there is diffusers' bicubic mask a mask."""
    engine, pipe = engines(layout, variant), pipeline_of(layout, variant)
    side = 128 if layout == "sd15" else 64
    left, right = halves(side, side)
    a, b = (replace(engine.look_at(picture(i)), region=name) for i, name in enumerate(("left", "right")))
    request = request_for(
        layout, (a, b), width_px=side, height_px=side, scale=0.7, regions={"left": left, "right": right}
    )
    masks = IPAdapterMaskProcessor().preprocess([left / 255.0, right / 255.0], height=side, width=side)
    pipe.set_ip_adapter_scale([[0.7, 0.7]])
    shown = [[picture(0), picture(1)]]
    found = theirs(
        pipe, engine, request, ip_adapter_image=shown,
        cross_attention_kwargs={"ip_adapter_masks": [masks.reshape(1, 2, side, side)]},
    )  # fmt: skip
    assert gap(latents(engine, request), found) <= TOLERANCE
    assert (
        gap(latents(engine, request), latents(engine, replace(request, regions={"left": right, "right": left})))
        > DIFFERENT
    )


def test_a_region_of_everything_is_no_region(engine: Engine) -> None:
    seen = engine.look_at(picture(0))
    everywhere = {"all": np.full((48, 64), 255, dtype=np.uint8)}
    request = request_for("sd15", (replace(seen, region="all"),), regions=everywhere)
    assert gap(latents(engine, request), latents(engine, request_for("sd15", (seen,)))) <= SAME


def test_grey_in_a_region_is_a_lower_scale(engine: Engine) -> None:
    seen = engine.look_at(picture(0))
    grey = {"all": np.full((48, 64), 51, dtype=np.uint8)}
    request = request_for("sd15", (replace(seen, region="all"),), scale=1.0, regions=grey)
    assert gap(latents(engine, request), latents(engine, request_for("sd15", (seen,), scale=0.2))) <= SAME


@pytest.mark.parametrize("side", [(8, 6), (9, 7), (13, 20), (128, 96)])
@pytest.mark.parametrize("halved", range(4))
def test_every_layer_s_size_is_found_from_its_positions(side: tuple[int, int], halved: int) -> None:
    height, width = side
    for _ in range(halved):
        height, width = -(-height // 2), -(-width // 2)
    assert _sides(side, height * width) == (height, width)


def test_regions_that_make_no_sense_are_refused(engine: Engine) -> None:
    seen = engine.look_at(picture(0))
    inside = np.full((48, 64), 255, dtype=np.uint8)
    for changes, told in (
        ({"regions": {"a": np.zeros((48, 64), np.uint8)}}, "is empty"),
        ({"regions": {"a": inside.astype(np.float32)}}, "no array uint8"),
        ({"references": (replace(seen, region="b"),), "regions": {"a": inside}}, "it has a"),
    ):
        with pytest.raises(RequestRefused, match=told):
            request_for("sd15", changes.pop("references", ()), **changes)
    with pytest.raises(RequestRefused, match="another shape"):
        engine.generate(
            [request_for("sd15", (replace(seen, region="a"),), regions={"a": np.full((48, 20), 255, np.uint8)})]
        )


# ---------------------------------------------------------------------- over the steps


@each_adapter
def test_factors_of_steps_are_scales_of_steps(engines: Engines, layout: str, variant: str) -> None:
    engine = engines(layout, variant)
    seen = (engine.look_at(picture(0)),)
    request = request_for(layout, seen, steps=4)

    def with_steps(*steps: float) -> Array:
        return latents(engine, replace(request, settings={"identity": AdapterSettings(steps=steps)}))

    assert gap(with_steps(1.0, 1.0, 1.0, 1.0), latents(engine, request)) <= SAME
    assert gap(with_steps(1.0, 0.0), latents(engine, replace(request, window=(0.0, 0.5)))) <= SAME
    assert gap(with_steps(0.5), latents(engine, replace(request, scale=request.scale / 2))) <= SAME
    assert gap(with_steps(0.2, 1.0, 1.0, 0.2), latents(engine, request)) > DIFFERENT


def test_an_adapter_s_own_window_goes_before_the_request_s(engine: Engine) -> None:
    request = request_for("sd15", (engine.look_at(picture(0)),), window=(0.0, 0.4))
    own = {"identity": AdapterSettings(window=(0.4, 1.0))}
    late = replace(request, settings=own)
    assert gap(latents(engine, late), latents(engine, replace(request, window=(0.4, 1.0)))) <= SAME


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_guidance_that_ends_early_agrees_with_diffusers_where_its_callback_is_right(
    engines: Engines,
    pipeline_of: Opened,
    layout: str,
) -> None:
    """Its cutoff callback trims the text's unconditional half and forgets the image's: compared without references.

    The callback acts after the step that it names: its 2 means that the fourth of six steps is the first without.
    """
    if layout == "sdxl":
        pytest.importorskip("diffusers")
        from diffusers.callbacks import SDXLCFGCutoffCallback as Cutoff
    else:
        from diffusers.callbacks import SDCFGCutoffCallback as Cutoff
    engine, pipe = engines(layout, None), pipeline_of(layout, None)
    request = request_for(layout, (), steps=6, guidance_window=(0.0, 0.5))
    cutoff = Cutoff(cutoff_step_ratio=None, cutoff_step_index=2)
    found = theirs(
        pipe, engine, request, callback_on_step_end=cutoff, callback_on_step_end_tensor_inputs=cutoff.tensor_inputs
    )
    assert gap(latents(engine, request), found) <= TOLERANCE


@each_adapter
def test_a_guidance_window_is_guidance_within_and_none_outside(engines: Engines, layout: str, variant: str) -> None:
    """Trap 2 of diffusers' callback: past its end the image prompt's two halves would be merged."""
    engine = engines(layout, variant)
    request = request_for(layout, (engine.look_at(picture(0)),), steps=4)
    never, always = replace(request, guidance_window=(0.5, 0.5)), replace(request, guidance_window=(0.0, 1.0))
    assert gap(latents(engine, never), latents(engine, replace(request, guidance=1.0))) <= SAME
    assert gap(latents(engine, always), latents(engine, request)) == 0
    halfway = replace(request, guidance_window=(0.0, 0.5))
    assert min(gap(latents(engine, halfway), latents(engine, r)) for r in (request, never)) > DIFFERENT


# ---------------------------------------------------------------------- what references become together


@each_adapter
def test_a_negative_reference_is_the_negative_half_of_diffusers_embeddings(
    engines: Engines,
    pipeline_of: Opened,
    layout: str,
    variant: str,
) -> None:
    engine, pipe = engines(layout, variant), pipeline_of(layout, variant)
    positive, negative = (engine.look_at(picture(i)) for i in range(2))
    request = request_for(layout, (positive, replace(negative, negative=True)))
    pipe.set_ip_adapter_scale(request.scale)
    both = torch.from_numpy(np.stack([negative.embedding, positive.embedding]))[:, None]
    found = theirs(pipe, engine, request, ip_adapter_image_embeds=[both])
    assert gap(latents(engine, request), found) <= TOLERANCE
    assert gap(latents(engine, request), latents(engine, replace(request, references=(positive,)))) > DIFFERENT


def combined(arrays: list[Array], weights: list[float], how: str) -> Array:
    """What ComfyUI_IPAdapter_plus makes of embeddings, each first multiplied by its weight."""
    if how == "norm_average":
        arrays = list(np.stack(arrays) / np.linalg.norm(np.stack(arrays), axis=0))
    scaled = [w * a for w, a in zip(weights, arrays, strict=True)]
    if how == "subtract":
        return np.asarray(scaled[0] - np.mean(scaled[1:], axis=0))
    total = sum(weights) if how.endswith("average") else 1.0
    return np.asarray(np.sum(scaled, axis=0) / total)


@pytest.mark.parametrize("how", ["add", "subtract", "average", "norm_average"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.5, 0.25]])
@pytest.mark.parametrize("variant", ["base", "plus"])
def test_combined_references_are_the_one_that_the_formula_gives(
    engines: Engines, variant: str, weights: list[float], how: Any
) -> None:
    engine = engines("sd15", variant)
    seen = [engine.look_at(picture(i)) for i in range(3)]
    request = request_for(
        "sd15", tuple(replace(s, weight=w) for s, w in zip(seen, weights, strict=True)),
        settings={"identity": AdapterSettings(combine=how)},
    )  # fmt: skip
    one = ReferencePrompt(
        combined([s.embedding for s in seen if s.embedding is not None], weights, how).astype(np.float32)
    )
    assert gap(latents(engine, request), latents(engine, replace(request, references=(one,), settings={}))) <= SAME
    side_by_side = replace(request, settings={})
    assert gap(latents(engine, request), latents(engine, side_by_side)) > DIFFERENT


@pytest.mark.parametrize("how", ["concat", "average", "norm_average"])
def test_a_duplicated_reference_equals_one(engine: Engine, how: Any) -> None:
    seen = engine.look_at(picture(0))
    settings = {"identity": AdapterSettings(combine="concat" if how == "concat" else "average")}
    twice = request_for("sd15", (seen, seen), settings=settings)
    assert gap(latents(engine, twice), latents(engine, request_for("sd15", (seen,)))) <= SAME


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, told in (
        ({"combine": "multiply"}, "combined by 'multiply'"),
        ({"blocks": "stile"}, "no preset 'stile'"),
        ({"blocks": {"mid_block": float("nan")}}, "no number"),
        ({"steps": (1.0, -1.0)}, "of a step"),
        ({"window": (0.6, 0.4)}, "window"),
    ):
        with pytest.raises(RequestRefused, match=told):
            AdapterSettings(**wrong)


# ---------------------------------------------------------------------- all of it in one batch


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
@pytest.mark.parametrize("variant", ["base", "plus"])
def test_every_feature_is_the_same_alone_and_in_one_mixed_batch(engines: Engines, layout: str, variant: str) -> None:
    engine = engines(layout, variant)
    seen = [engine.look_at(picture(i)) for i in range(4)]
    base = request_for(layout, (seen[0],), steps=4)
    size = (base.height_px or 0, base.width_px or 0)
    left, right = halves(size[1], size[0])
    start = np.asarray(picture(9, 64).resize((size[1], size[0])))
    from ipadapter_engine.prompts import SourcePicture

    requests = [
        base,
        replace(base, seed=2, references=(seen[1], seen[2]), settings={"identity": AdapterSettings(combine="average")}),
        replace(base, seed=3, settings={"identity": AdapterSettings(blocks={"up_blocks": 1.0, OTHERS: -0.5})}),
        replace(
            base,
            seed=4,
            references=(replace(seen[1], region="a"), replace(seen[2], region="b")),
            regions={"a": left, "b": right},
        ),
        replace(base, seed=5, references=(seen[0], replace(seen[3], negative=True)), guidance_window=(0.25, 0.75)),
        replace(base, seed=6, guidance=1.0, settings={"identity": AdapterSettings(steps=(0.1, 1.0))}),
        replace(base, seed=7, source=SourcePicture(start, 0.5)),
        replace(base, seed=8, references=(), source=SourcePicture(start, 0.75, left), guidance_window=(0.0, 0.4)),
        replace(base, seed=9, references=(replace(seen[3], weight=0.4), seen[1]), window=(0.5, 1.0)),
    ]
    for scheduler in ("ddim", "dpmpp_2m"):
        wanted = [replace(r, scheduler=scheduler) for r in requests]
        for made, request in zip(engine.generate(wanted, max_batch=16), wanted, strict=True):
            assert gap(made.latents, latents(engine, request)) <= SAME


def test_a_request_without_guidance_hears_no_negative_reference_in_any_batch(engine: Engine) -> None:
    away = replace(engine.look_at(picture(1)), negative=True)
    plain = request_for("sd15", (away,), guidance=1.0)
    closed = request_for("sd15", (away,), guidance_window=(0.5, 0.5))
    guided = request_for("sd15", (engine.look_at(picture(0)),), seed=8)
    for request in (plain, closed):
        together = engine.generate([request, guided])[0].latents
        assert gap(together, latents(engine, request)) <= SAME
        assert gap(together, latents(engine, replace(request, references=()))) <= SAME


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_guidance_below_one_is_none_as_in_diffusers(engines: Engines, pipeline_of: Opened, guidance: float) -> None:
    engine = engines("sd15", None)
    request = request_for("sd15", (), guidance=guidance)
    assert gap(latents(engine, request), theirs(pipeline_of("sd15", None), engine, request)) <= TOLERANCE
    assert gap(latents(engine, request), latents(engine, replace(request, guidance=1.0))) == 0


def test_nothing_of_a_request_is_left_for_the_next(engine: Engine, checkpoints: Checkpoints) -> None:
    """Trap 3 of diffusers: its cutoff callback leaves scale 0 behind."""
    plain = request_for("sd15", (engine.look_at(picture(0)),))
    before = latents(engine, plain)
    engine.generate(
        [replace(plain, window=(0.0, 0.2), settings={"identity": AdapterSettings(blocks="composition", steps=(0.0,))})]
    )
    assert np.array_equal(latents(engine, plain), before)
