"""Checkpoints that stay open: up to so many bytes, the least recently used going first, never one in use."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.warm import WarmEngines, bytes_on_disk, weight_bytes
from tests.ipadapter_engine.conftest import Checkpoints, Engines

Opened = list[CheckpointPaths]


@pytest.fixture
def places(checkpoints: Checkpoints) -> list[CheckpointPaths]:
    """Three checkpoints of about one size."""
    return [checkpoints.paths("sd15", variant) for variant in ("base", "plus", None)]


@pytest.fixture
def opened() -> Opened:
    return []


@pytest.fixture
def keeping(places: list[CheckpointPaths], engines: Engines, opened: Opened) -> Callable[[float], WarmEngines]:
    """Warm engines that may take so many times the largest of the three."""
    largest = max(weight_bytes(engines("sd15", variant).checkpoint) for variant in ("base", "plus", None))

    def opener(paths: CheckpointPaths) -> Engine:
        opened.append(paths)
        return Engine.open(paths)

    return lambda times: WarmEngines(int(times * largest), opener)


def use(warm: WarmEngines, *places: CheckpointPaths) -> None:
    for paths in places:
        with warm.get(paths):
            pass


def test_an_engine_is_opened_once(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths], opened: Opened
) -> None:
    warm = keeping(3)
    use(warm, places[0], places[0], CheckpointPaths(places[0].base / "." / "unet" / "..", *_rest(places[0])))
    assert len(opened) == 1


def _rest(paths: CheckpointPaths) -> tuple[Path | None, Path | None]:
    return paths.adapter, paths.encoder


def test_the_least_recently_used_makes_room(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths], opened: Opened
) -> None:
    a, b, c = places
    warm = keeping(2)
    use(warm, a, b, a, c)  # b goes
    use(warm, a)
    assert opened == [a, b, c]
    use(warm, b)
    assert opened == [a, b, c, b]
    assert warm.bytes <= warm.limit_bytes


def test_an_engine_in_use_is_never_closed(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths], opened: Opened
) -> None:
    a, b, c = places
    warm = keeping(1)
    with warm.get(a) as engine:
        use(warm, b, c)
        (made,) = engine.generate([GenerationRequest("a red fox", 1, steps=1)])
        assert made.finite
        assert engine.checkpoint.unet.attn_processors != {}
        use(warm, a)
    assert opened == [a, b, c]


def test_room_is_made_once_they_are_left(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths]
) -> None:
    a, b, _ = places
    warm = keeping(1)
    with warm.get(a), warm.get(b):
        assert warm.bytes > warm.limit_bytes
    assert 0 < warm.bytes <= warm.limit_bytes


def test_one_that_is_larger_than_the_limit_stays_until_another_is_asked_for(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths], opened: Opened
) -> None:
    a, b, _ = places
    warm = keeping(0.1)
    use(warm, a, a, b, a)
    assert opened == [a, b, a]


def test_what_is_closed_leaves_memory(keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths]) -> None:
    warm = keeping(1)
    with warm.get(places[0]) as engine:
        unet = weakref.ref(engine.checkpoint.unet)
    del engine
    use(warm, places[1])
    gc.collect()
    assert unet() is None


def test_a_checkpoint_that_is_refused_takes_no_room(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths], opened: Opened, tmp_path: Path
) -> None:
    warm = keeping(3)
    use(warm, places[0])
    with pytest.raises(CheckpointRefused), warm.get(CheckpointPaths(tmp_path)):
        pass
    use(warm, places[0])
    assert opened == [places[0], CheckpointPaths(tmp_path)]


def test_threads_that_ask_for_one_engine_share_it(
    keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths], opened: Opened
) -> None:
    warm = keeping(3)
    threads = [threading.Thread(target=use, args=(warm, places[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1


def test_closing_closes_all(keeping: Callable[[float], WarmEngines], places: list[CheckpointPaths]) -> None:
    warm = keeping(3)
    use(warm, *places)
    warm.close()
    assert warm.bytes == 0


def test_what_files_hold_is_near_what_memory_will(places: list[CheckpointPaths], engines: Engines) -> None:
    """All in float32, as the tiny files are."""
    for paths, variant in zip(places, ("base", "plus", None), strict=True):
        exact = weight_bytes(engines("sd15", variant).checkpoint)
        assert 0.9 * exact <= bytes_on_disk(paths) <= 1.2 * exact
