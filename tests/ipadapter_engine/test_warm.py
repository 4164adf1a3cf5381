"""Engines that stay open: up to so many bytes, the least recently used going first, nobody losing the one they hold."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.warm import WarmEngines, weight_bytes
from tests.ipadapter_engine.conftest import Checkpoints, Engines

VARIANTS = ("base", "plus", None)
Ask = Callable[[WarmEngines, "str | None"], Engine]


@pytest.fixture(scope="module")
def largest(engines: Engines) -> int:
    return max(weight_bytes(engines("sd15", variant)) for variant in VARIANTS)


@pytest.fixture
def opened() -> list[str | None]:
    return []


@pytest.fixture
def ask(checkpoints: Checkpoints, opened: list[str | None]) -> Ask:
    """Three checkpoints of about one size, by their adapter."""

    def one(warm: WarmEngines, variant: str | None) -> Engine:
        def opener() -> Engine:
            opened.append(variant)
            return Engine.open(checkpoints.paths("sd15", variant))

        got = warm.get(variant, opener)
        assert isinstance(got, Engine)
        return got

    return one


def test_all_weights_count_and_each_once(engines: Engines) -> None:
    engine = engines("sd15", "base")
    opened, adapter = engine.checkpoint, engine.checkpoint.adapter
    assert adapter is not None
    assert opened.encoder is not None
    parts = [opened.unet, opened.vae, *(t.model for t in opened.text), adapter, opened.encoder.model]
    assert weight_bytes(engine) >= sum(p.nbytes for part in parts for p in part.parameters())
    assert weight_bytes(engine) > weight_bytes(engines("sd15", None))


def test_the_least_recently_used_makes_room(ask: Ask, opened: list[str | None], largest: int) -> None:
    warm = WarmEngines(2 * largest)
    for variant in ("base", "plus", "base", None):  # plus goes
        ask(warm, variant)
    ask(warm, "base")
    assert opened == ["base", "plus", None]
    ask(warm, "plus")
    assert opened == ["base", "plus", None, "plus"]
    assert warm.bytes <= warm.limit_bytes


def test_who_holds_an_engine_that_made_room_goes_on_with_it(ask: Ask, opened: list[str | None], largest: int) -> None:
    warm = WarmEngines(largest)
    held = ask(warm, "base")
    ask(warm, "plus")
    (made,) = held.generate([GenerationRequest("a red fox", 1, steps=1)])
    assert made.finite
    unet = weakref.ref(held.checkpoint.unet)
    del held, made
    gc.collect()
    assert unet() is None


def test_one_that_is_larger_than_the_limit_stays_until_another_is_asked_for(
    ask: Ask, opened: list[str | None], largest: int
) -> None:
    warm = WarmEngines(largest // 10)
    for variant in ("base", "base", "plus", "base"):
        ask(warm, variant)
    assert opened == ["base", "plus", "base"]


def test_one_that_is_refused_takes_no_room(ask: Ask, opened: list[str | None], largest: int) -> None:
    warm = WarmEngines(3 * largest)
    ask(warm, "base")

    def refuse() -> Engine:
        return Engine.open(CheckpointPaths(base=CheckpointPaths().base / "nowhere"))

    with pytest.raises(CheckpointRefused):
        warm.get("nowhere", refuse)
    ask(warm, "base")
    assert opened == ["base"]


def test_threads_that_ask_for_one_engine_share_it(ask: Ask, opened: list[str | None], largest: int) -> None:
    warm = WarmEngines(3 * largest)
    threads = [threading.Thread(target=ask, args=(warm, "base")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["base"]
