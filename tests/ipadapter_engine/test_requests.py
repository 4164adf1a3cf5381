"""What a request may ask for; a refusal is one sentence that names what was found, and a next step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt, nearest_name
from ipadapter_engine.requests import MAX_SEED, GeneratedImage, GenerationRequest
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Engines, picture

EMBEDDING = np.ones(tiny.EMBED, dtype=np.float32)
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 0}, "0 steps"),
        ({"steps": -1}, "-1 steps"),
        ({"steps": 1001}, "1001 steps"),
        ({"seed": -1}, "-1"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"scale": -0.1}, "-0.1"),
        ({"scale": NAN}, "nan"),
        ({"scale": INFINITE}, "inf"),
        ({"guidance": NAN}, "nan"),
        ({"guidance": INFINITE}, "inf"),
        ({"guidance": -1.0}, "-1.0"),
        ({"window": (0.6, 0.4)}, "(0.6, 0.4)"),
        ({"window": (-0.1, 1.0)}, "-0.1"),
        ({"window": (0.0, 1.1)}, "1.1"),
        ({"window": (NAN, 1.0)}, "nan"),
        ({"scale": NAN}, "not a number of 0 or more"),
        ({"references": (ReferencePrompt(EMBEDDING, 0.0),)}, "weight 0"),
        ({"scales": {"Own Style": 1.0}}, "'Own Style'"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestRefused) as refusal:
        GenerationRequest(**{"prompt": "a fox", "seed": 1, **values})
    assert named in refusal.value.message
    assert refusal.value.next_step


@pytest.mark.parametrize("weight", [-0.5, NAN, INFINITE])
def test_a_weight_below_zero_or_no_number_is_refused(weight: float) -> None:
    with pytest.raises(RequestRefused, match=f"{weight}, not a number of 0 or more"):
        ReferencePrompt(EMBEDDING, weight)


@pytest.mark.parametrize("name", ["", "Style", "own style", "own-style", "own__style"])
def test_an_adapter_that_no_setting_can_name_is_refused(name: str) -> None:
    with pytest.raises(RequestRefused, match="no name of an adapter") as refusal:
        ReferencePrompt(EMBEDDING, adapter=name)
    assert repr(nearest_name(name)) in refusal.value.next_step


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE, 1e300])
def test_an_embedding_that_is_not_finite_is_refused(value: float) -> None:
    broken = EMBEDDING.astype(np.float64)
    broken[3] = value
    with pytest.raises(RequestRefused, match="NaN or infinity"):
        ReferencePrompt(broken)


@pytest.mark.parametrize("embedding", [np.array(["a"]), np.array([None]), [0.0, 1.0]])
def test_an_embedding_that_is_no_array_of_numbers_is_refused(embedding: Any) -> None:
    with pytest.raises(RequestRefused, match="array of numbers"):
        ReferencePrompt(embedding)


@pytest.mark.parametrize("side", [0, -32, 1, 33, 40, 4112])
@pytest.mark.parametrize("name", ["width", "height"])
def test_a_size_that_the_model_cannot_make_is_refused(engine: Engine, name: str, side: int) -> None:
    request = replace(GenerationRequest("a fox", seed=1), **{f"{name}_px": side})  # type: ignore[arg-type]
    with pytest.raises(RequestRefused, match=f"{name} of {side} px") as refusal:
        engine.generate([request])
    assert "multiple of 16" in refusal.value.next_step


def test_an_unknown_scheduler_is_refused_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(RequestRefused, match="'ddpm'") as refusal:
        engine.generate([GenerationRequest("a fox", seed=1, scheduler="ddpm")])
    assert "dpmpp_2m" in refusal.value.next_step


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_reference_without_an_adapter_is_refused(engines: Engines, scale: float) -> None:
    with pytest.raises(RequestRefused, match="no adapter is loaded"):
        engines("sd15", None).generate(
            [GenerationRequest("a fox", seed=1, references=(ReferencePrompt(EMBEDDING),), scale=scale)]
        )


def test_a_scale_without_an_adapter_is_refused_by_its_own_setting(engines: Engines) -> None:
    with pytest.raises(RequestRefused, match="names the adapter 'style'; no adapter is loaded") as refusal:
        engines("sd15", None).generate([GenerationRequest("a fox", seed=1, scales={"style": 1.0})])
    assert "ONMODEL_ENGINE__ADAPTERS__STYLE" in refusal.value.next_step


@pytest.mark.parametrize(
    ("variant", "shape"),
    [
        ("base", (tiny.EMBED + 1,)),
        ("base", (1, tiny.EMBED)),
        ("base", (tiny.PATCHES + 1, tiny.HIDDEN)),
        ("base", ()),
        ("plus", (tiny.EMBED,)),
        ("plus", (tiny.PATCHES, tiny.HIDDEN)),
        ("plus", (tiny.PATCHES + 1, tiny.HIDDEN + 1)),
    ],
)
def test_an_embedding_of_another_shape_is_refused(engines: Engines, variant: str, shape: tuple[int, ...]) -> None:
    request = GenerationRequest(
        "a fox", seed=1, references=(ReferencePrompt(np.ones(shape, np.float32)),), width_px=32, height_px=32
    )
    with pytest.raises(RequestRefused, match=variant) as refusal:
        engines("sd15", variant).generate([request])
    assert str(shape) in refusal.value.message


def test_one_refused_request_is_refused_before_any_picture_is_made(engine: Engine) -> None:
    good = GenerationRequest("a fox", seed=1, width_px=32, height_px=32, steps=1)
    bad = GenerationRequest("a fox", seed=1, width_px=16, height_px=16, references=(ReferencePrompt(np.ones(3)),))
    steps: list[int] = []
    with pytest.raises(RequestRefused):
        engine.generate([good, bad], on_step=lambda done, _: steps.append(done))
    assert steps == []


def test_hidden_states_that_were_not_asked_for_are_named(engines: Engines) -> None:
    engine = engines("sd15", "plus")
    (encoded,) = engine.encoder.encode([picture(0)])
    with pytest.raises(RequestRefused, match="hidden states"):
        engine.reference(encoded)


def test_a_checkpoint_without_an_encoder_says_so(engines: Engines) -> None:
    with pytest.raises(RequestRefused, match="no image encoder"):
        _ = engines("sd15", None).encoder


def test_what_a_request_leaves_open_is_the_familys(engine: Engine) -> None:
    key, family = engine.batch_key(GenerationRequest("a fox", seed=1)), engine.family
    assert (key.width_px, key.height_px, key.steps, key.scheduler) == (512, 512, family.steps, family.scheduler)


def test_a_picture_has_the_size_that_was_asked_for(engine: Engine) -> None:
    (made,) = engine.generate([GenerationRequest("a fox", seed=1, width_px=48, height_px=32, steps=1)])
    assert made.image.size == (48, 32)
    assert made.latents.shape == (4, 4, 6)
    assert made.pixels.dtype == np.uint8


@pytest.mark.parametrize(("value", "finite"), [(0.0, True), (NAN, False), (INFINITE, False)])
def test_latents_that_are_no_numbers_are_seen(value: float, finite: bool) -> None:
    latents = np.array([0.0, value], np.float32)
    assert GeneratedImage(GenerationRequest("a fox", seed=1), np.zeros((1, 1, 3), np.uint8), latents).finite is finite
