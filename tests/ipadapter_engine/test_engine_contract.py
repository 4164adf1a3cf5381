"""What every engine answers: one suite for our own attention and for the families that diffusers' pipelines make."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ipadapter_engine.engines import PictureEngine, denoiser_of, open_engine
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.native.engine import NativeEngine
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine.conftest import Checkpoints, Engines, picture
from tests.ipadapter_engine.native_engines import NativeEngines

SAME = 1e-5
OWN = ("sd15",)
HEAR = ("sd15", "kontext", "flux2", "flux-adapter", "sd3-adapter")


@pytest.fixture(params=HEAR)
def engine(request: pytest.FixtureRequest, native: NativeEngines, engines: Engines) -> PictureEngine:
    return engines(request.param, "base") if request.param in OWN else native(request.param)


def asked(engine: PictureEngine, seed: int = 3, *, shown: int = 1, **changes: Any) -> GenerationRequest:
    told: dict[str, Any] = {"width_px": 64, "height_px": 64, "steps": 2, **changes}
    return GenerationRequest("a red fox", seed, (engine.look_at(picture(shown, 96)),), **told)


def test_it_is_an_engine(engine: PictureEngine) -> None:
    answered = {name for name in vars(PictureEngine) if not name.startswith("_")}
    assert {"generate", "batch_key", "models_of"} <= answered <= set(dir(engine))
    assert denoiser_of(engine).device.type == "cpu"


def test_a_picture_is_the_same_alone_and_beside_others(engine: PictureEngine) -> None:
    requests = [asked(engine), asked(engine, 4, shown=2), asked(engine, steps=3), asked(engine, 5, height_px=32)]
    together = engine.generate(requests, max_batch=4)
    for request, made in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert made.request is request
        assert np.abs(made.latents - alone.latents).max() <= SAME * max(1.0, float(np.abs(alone.latents).max()))


def test_a_picture_has_the_size_that_was_asked_for(engine: PictureEngine) -> None:
    (made,) = engine.generate([asked(engine, height_px=32)])
    assert (made.pixels.shape, made.pixels.dtype, made.image.size) == ((32, 64, 3), np.uint8, (64, 32))
    assert (made.latents.ndim, made.latents.dtype, made.finite) == (3, np.float32, True)
    assert made.latents.shape[2] == 2 * made.latents.shape[1]


@pytest.mark.parametrize("change", [{"seed": 9}, {"prompt": "a blue cat"}, {"steps": 3}])
def test_what_a_request_says_changes_its_picture(engine: PictureEngine, change: dict[str, Any]) -> None:
    request = asked(engine)
    one, other = engine.generate([request, replace(request, **change)])
    assert np.abs(one.latents - other.latents).max() > SAME


def test_another_reference_changes_a_picture(engine: PictureEngine) -> None:
    one, other = engine.generate([asked(engine, shown=1), asked(engine, shown=2)])
    assert np.abs(one.latents - other.latents).max() > SAME


def test_every_step_is_told(engine: PictureEngine) -> None:
    told: list[tuple[int, int]] = []
    engine.generate([asked(engine, steps=3)], on_step=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_is_refused_is_refused_before_anything_is_made(engine: PictureEngine) -> None:
    told: list[int] = []
    with pytest.raises(RequestRefused, match=re.escape(engine.family.title)):
        engine.generate([asked(engine), asked(engine, width_px=63)], on_step=lambda done, _: told.append(done))
    assert not told


def test_a_batch_key_tells_the_family_numbers_where_a_request_has_none(engine: PictureEngine) -> None:
    plain = asked(engine, width_px=None, height_px=None, steps=None)
    key, family = engine.batch_key(plain), engine.family
    assert (key.width_px, key.height_px, key.steps) == (family.size_px, family.size_px, family.steps)
    assert key.scheduler == family.scheduler
    assert engine.batch_key(replace(plain, scheduler=family.scheduler)) == key


def test_every_part_is_named_by_its_hash(engine: PictureEngine) -> None:
    roles = [m.role for m in engine.models]
    assert len(roles) == len(set(roles)) >= 3
    assert all(re.fullmatch("[0-9a-f]{64}", m.sha256) and m.name and m.licence for m in engine.models)
    assert engine.models_of(asked(engine)) == engine.models


def test_a_stopped_generation_leaves_the_engine_as_it_was(engine: PictureEngine) -> None:
    (before,) = engine.generate([asked(engine)])

    def stop(done: int, of: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.generate([asked(engine, 8, shown=2)], on_step=stop)
    (after,) = engine.generate([asked(engine)])
    assert np.abs(before.latents - after.latents).max() <= SAME * max(1.0, float(np.abs(after.latents).max()))


def test_a_folder_opens_the_engine_that_it_needs(native: NativeEngines, checkpoints: Checkpoints) -> None:
    assert isinstance(open_engine(checkpoints.paths("sd15", "base")), Engine)
    assert isinstance(open_engine(native.paths("flux")), NativeEngine)
