"""A request makes the same picture alone and in any batch, and the results come in the order of the requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine.conftest import Checkpoints, Engines, picture

TOLERANCE = 4e-5  # the latents reach 10 to 20, so this is a few units in the last place of single precision
PROMPTS = ["a red fox", "a blue cat", "", "fox, cat and fox beside a red cat"]


def make(engine: Engine, requests: list[GenerationRequest], **kwargs: Any) -> list[np.ndarray]:
    return [made.latents for made in engine.generate(requests, **kwargs)]


def assert_same_alone(engine: Engine, requests: list[GenerationRequest], **kwargs: Any) -> None:
    together = engine.generate(requests, **kwargs)
    assert [made.request for made in together] == requests
    for made, request in zip(together, requests, strict=True):
        assert np.abs(made.latents - make(engine, [request])[0]).max() <= TOLERANCE


def mixed(engine: Engine, schedulers: tuple[str | None, ...] = (None,)) -> list[GenerationRequest]:
    """Eight requests that differ in everything that a request can say."""
    seen = [engine.look_at(picture(seed)) for seed in range(3)]
    references: list[tuple[ReferencePrompt, ...]] = [
        (seen[0],), (), (seen[1], seen[2]), (seen[2], ReferencePrompt(seen[0].embedding, 0.3), seen[1]),
        (seen[1],), (seen[0],), (ReferencePrompt(seen[1].embedding, 0.0), seen[0]), (seen[2],),
    ]  # fmt: skip
    scales, guidances = (1.0, 1.0, 0.6, 0.3, 0.0, 2.0, 0.8, 1.0), (2.0, 2.0, 1.0, 1.5, 2.0, 0.0, 0.5, 1.0)
    windows = ((0, 1), (0, 1), (0, 0.5), (0.4, 1), (0, 1), (0.3, 0.6), (0, 0), (0.2, 1))
    sides = ((32, 32), (32, 32), (32, 32), (32, 48), (32, 32), (48, 32), (32, 32), (32, 48))
    return [
        GenerationRequest(
            prompt=PROMPTS[i % 4],
            negative_prompt="" if i % 3 else "a blue cat",
            seed=100 + i,
            references=references[i],
            scale=scales[i],
            guidance=guidances[i],
            window=windows[i],
            width_px=sides[i][0],
            height_px=sides[i][1],
            steps=3 + (i == 5),
            scheduler=schedulers[i % len(schedulers)],
        )
        for i in range(8)
    ]


@pytest.mark.parametrize(
    ("layout", "variant", "scheduler"),
    [
        ("sd15", "base", "ddim"),
        ("sd15", "base", "dpmpp_2m"),
        ("sd15", "base", "unipc"),
        ("sd15", "plus", "euler"),
        ("sdxl", "base", "euler"),
        ("sdxl", "plus", "dpmpp_2m"),
    ],
)
def test_a_picture_is_the_same_alone_and_in_a_mixed_batch(
    engines: Engines, layout: str, variant: str, scheduler: str
) -> None:
    engine = engines(layout, variant)
    assert_same_alone(engine, mixed(engine, (scheduler,)))


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_with_strong_guidance_only_rounding_differs(checkpoints: Checkpoints, layout: str) -> None:
    """Guidance of 10 multiplies rounding by 19, so that it is asked for in double precision."""
    engine = Engine.open(checkpoints.paths(layout, "base"), dtype=torch.float64)
    assert_same_alone(engine, [replace(request, guidance=10.0) for request in mixed(engine, ("ddim", "euler"))])


def test_text_only_requests_are_the_same_alone_and_in_a_batch(engines: Engines) -> None:
    requests = [
        GenerationRequest(p, seed=i, guidance=1.0 + i / 3, width_px=32, height_px=32, steps=3)
        for i, p in enumerate(PROMPTS)
    ]
    assert_same_alone(engines("sd15", None), requests)


def test_one_batch_of_every_scheduler_keeps_the_order(engine: Engine) -> None:
    assert_same_alone(engine, mixed(engine, ("euler", "ddim", None)))


@pytest.mark.parametrize("max_batch", [1, 2, 3, 100])
def test_the_size_of_batches_changes_no_picture(engine: Engine, max_batch: int) -> None:
    assert_same_alone(engine, mixed(engine, ("ddim",)), max_batch=max_batch)


def test_references_of_one_batch_are_not_mixed_up(engine: Engine, pictures: list[Image.Image]) -> None:
    """diffusers' own pipelines fail this without an exception: two prompts with two references share all of them."""
    requests = [
        GenerationRequest(
            "a fox", seed=1, references=(engine.look_at(p),), guidance=2.0, width_px=32, height_px=32, steps=3
        )
        for p in pictures
    ]
    together = make(engine, requests)
    assert_same_alone(engine, requests)
    for i, one in enumerate(together):
        for other in together[:i]:
            assert np.abs(one - other).max() > 0.01


@st.composite
def requests_of(draw: st.DrawFn, embeddings: list[np.ndarray]) -> GenerationRequest:
    window = sorted(draw(st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), min_size=2, max_size=2)))
    indices = draw(st.lists(st.integers(0, len(embeddings) - 1), max_size=3))
    weights = [draw(st.sampled_from([1.0, 0.5, 3.0, 1e-30])) for _ in indices]
    return GenerationRequest(
        prompt=draw(st.sampled_from(PROMPTS)),
        negative_prompt=draw(st.sampled_from(["", "a cat"])),
        seed=draw(st.integers(0, 2**63 - 1)),
        references=tuple(ReferencePrompt(embeddings[i], w) for i, w in zip(indices, weights, strict=True)),
        scale=draw(st.floats(0, 2)),
        window=(window[0], window[1]),
        guidance=draw(st.sampled_from([0.0, 1.0, 2.0])),
        width_px=draw(st.sampled_from([16, 32])),
        height_px=32,
        steps=2,
        scheduler=draw(st.sampled_from(["ddim", "dpmpp_2m"])),
    )


@settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_any_mix_is_the_same_alone(engine: Engine, data: st.DataObject) -> None:
    embeddings = [engine.look_at(picture(seed)).embedding for seed in range(3)]
    assert_same_alone(engine, data.draw(st.lists(requests_of(embeddings), min_size=2, max_size=6)))


def test_no_requests_make_no_pictures(engine: Engine) -> None:
    assert engine.generate([]) == []


def test_every_step_of_a_batch_is_reported(engine: Engine) -> None:
    steps: list[tuple[int, int]] = []
    request = GenerationRequest("a fox", seed=1, width_px=32, height_px=32, steps=3)
    engine.generate([request, request], on_step=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
