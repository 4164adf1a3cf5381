"""What scale, weights and window of references mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine.conftest import Engines

SAME, DIFFERENT = 1e-5, 0.05
BOTH = pytest.mark.parametrize("variant", ["base", "plus"])


class Subject:
    """One request with two pictures at hand; `difference` compares what two of its variants make."""

    def __init__(self, engine: Engine, pictures: list[Image.Image]) -> None:
        self.engine = engine
        self.first, self.second = (engine.look_at(p) for p in pictures[:2])
        self.request = GenerationRequest(
            "a red fox",
            seed=3,
            references=(self.first,),
            guidance=2.0,
            width_px=32,
            height_px=32,
            steps=4,
            scheduler="ddim",
        )

    def with_references(self, *references: ReferencePrompt) -> GenerationRequest:
        return replace(self.request, references=references)

    def difference(self, one: GenerationRequest, other: GenerationRequest, on: Engine | None = None) -> float:
        made, compared = self.engine.generate([one])[0], (on or self.engine).generate([other])[0]
        return float(np.abs(made.latents - compared.latents).max())


@pytest.fixture
def subject(engines: Engines, variant: str, pictures: list[Image.Image]) -> Subject:
    return Subject(engines("sd15", variant), pictures)


@BOTH
def test_scale_zero_is_the_base_without_an_adapter(subject: Subject, engines: Engines) -> None:
    silent = replace(subject.request, scale=0.0)
    assert subject.difference(silent, subject.with_references(), on=engines("sd15", None)) <= SAME


@BOTH
def test_no_references_is_the_base_without_an_adapter(subject: Subject, engines: Engines) -> None:
    without = subject.with_references()
    assert subject.difference(without, without, on=engines("sd15", None)) <= SAME


@BOTH
@pytest.mark.parametrize("window", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_an_empty_window_is_scale_zero(subject: Subject, window: tuple[float, float]) -> None:
    unheard = replace(subject.request, window=window)
    assert subject.difference(unheard, replace(subject.request, scale=0.0)) <= SAME


@BOTH
@pytest.mark.parametrize("window", [(0.0, 0.5), (0.5, 1.0)])
def test_half_a_window_is_neither_all_nor_nothing(subject: Subject, window: tuple[float, float]) -> None:
    half = replace(subject.request, window=window)
    assert subject.difference(half, subject.request) > DIFFERENT
    assert subject.difference(half, replace(subject.request, scale=0.0)) > DIFFERENT


@BOTH
def test_a_large_scale_changes_the_picture(subject: Subject) -> None:
    assert subject.difference(replace(subject.request, scale=42.0), subject.request) > DIFFERENT


@BOTH
def test_another_reference_changes_the_picture(subject: Subject) -> None:
    assert subject.difference(subject.with_references(subject.second), subject.request) > DIFFERENT


@BOTH
def test_a_reference_of_weight_zero_is_left_out(subject: Subject) -> None:
    two = subject.with_references(subject.first, ReferencePrompt(subject.second.embedding, 0.0))
    assert subject.difference(two, subject.request) <= SAME


@BOTH
def test_a_reference_twice_is_that_reference_once(subject: Subject) -> None:
    assert subject.difference(subject.with_references(subject.first, subject.first), subject.request) <= SAME


@BOTH
def test_a_weight_changes_the_picture(subject: Subject) -> None:
    equal = subject.with_references(subject.first, subject.second)
    faint = subject.with_references(subject.first, ReferencePrompt(subject.second.embedding, 0.2))
    assert subject.difference(equal, faint) > DIFFERENT


@BOTH
def test_the_order_of_references_does_not_matter(subject: Subject) -> None:
    one = subject.with_references(subject.first, subject.second)
    assert subject.difference(one, subject.with_references(subject.second, subject.first)) <= SAME


@BOTH
@pytest.mark.parametrize("factor", [1e-300, 1e-30, 7.0, 1e300])
def test_only_the_shares_of_weights_count(subject: Subject, factor: float) -> None:
    def weighted(by: float) -> GenerationRequest:
        pairs = ((subject.first, 1.0), (subject.second, 0.25))
        return subject.with_references(*(ReferencePrompt(r.embedding, w * by) for r, w in pairs))

    assert subject.difference(weighted(factor), weighted(1.0)) <= SAME


@BOTH
def test_a_twofold_weight_is_the_reference_twice(subject: Subject) -> None:
    double = subject.with_references(ReferencePrompt(subject.first.embedding, 2.0), subject.second)
    repeated = subject.with_references(subject.first, subject.first, subject.second)
    assert subject.difference(double, repeated) <= SAME


@BOTH
def test_an_embedding_read_from_a_store_is_taken_as_it_comes(subject: Subject) -> None:
    """Read-only, double precision and not contiguous, as a database or a file gives it."""
    doubled = np.repeat(subject.first.embedding.astype(np.float64), 2, axis=-1)
    doubled.flags.writeable = False
    assert subject.difference(subject.with_references(ReferencePrompt(doubled[..., ::2])), subject.request) <= SAME
