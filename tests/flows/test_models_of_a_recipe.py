"""A recipe names the models that the engine names for its request: one rule for which of them have a part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flows import recipes
from flows.brief import Making
from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ControlPrompt, ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine import tiny_checkpoints as tiny


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With a style adapter and two ControlNets."""
    base = tiny.write_studio(tmp_path_factory.mktemp("base"))
    for kind in ("edges", "pose"):
        tiny.write_control_net(base / "controlnet" / kind, base, stride=8)
    return Engine.open(CheckpointPaths(base))


@pytest.mark.parametrize("scale", [0.0, 0.7])
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.4, 0.4)])
@pytest.mark.parametrize("adapters", [[], ["style"], ["identity", "style", "style"]], ids=" ".join)
@pytest.mark.parametrize(
    "controls",
    [
        [],
        [("pose", 1.0, (0.0, 1.0)), ("edges", 0.3, (0.5, 1.0))],
        [("pose", 0.0, (0.0, 1.0)), ("edges", 1.0, (0.5, 0.5))],
    ],
    ids=["none", "heard", "unheard"],
)
def test_a_recipe_and_its_request_name_the_same_models(
    engine: Engine, scale: float, window: tuple[float, float], adapters: list[str], controls: list[Any]
) -> None:
    request = GenerationRequest(
        "a fox", seed=1, scale=scale, window=window,
        references=tuple(ReferencePrompt(np.zeros(1), adapter=a) for a in adapters),
        controls=tuple(ControlPrompt(np.zeros((1, 1, 3), np.uint8), k, s, w) for k, s, w in controls),
    )  # fmt: skip
    entries = [
        {"id": str(i), "key": a, "sha256": a, "weight": 1.0} | ({"adapter": a} if a != "identity" else {})
        for i, a in enumerate(adapters)
    ]
    recipe = recipes.recipe_of(engine, "a fox", 1, Making(scale=scale, window=window), entries)
    recipe["controls"] = [{"kind": k, "strength": s, "window": list(w), "sha256": k} for k, s, w in controls]
    assert tuple(recipes.models_of(engine, recipe)) == engine.models_of(request)
    assert len(engine.models_of(replace(request, references=(), controls=()))) == len(engine.models)
