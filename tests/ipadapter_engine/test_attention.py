"""Our processors: installed and ejected without a trace, keys and values computed once a generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ipadapter_engine.attention import Conditioning, DecoupledAttention, Installed, cross_attention_layers
from ipadapter_engine.checkpoints import open_checkpoint
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints, Engines

LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])


def noise_guess(unet: nn.Module) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 5, tiny.WIDTH, generator=random)
    with torch.inference_mode():
        return unet(x, 10, encoder_hidden_states=text).sample  # type: ignore[no-any-return]


def test_installed_without_an_adapter_the_unet_guesses_as_before(checkpoints: Checkpoints) -> None:
    unet = tiny.open_unet(checkpoints.folders["sd15"])
    before = noise_guess(unet)
    Installed(unet)
    assert (noise_guess(unet) - before).abs().max() <= 1e-5


def test_ejected_the_unet_is_as_it_was(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(checkpoints.paths("sd15", "base"))
    processors, guess = dict(checkpoint.unet.attn_processors), noise_guess(checkpoint.unet)
    weights = list(checkpoint.unet.state_dict())
    engine = Engine(checkpoint)
    assert any(isinstance(p, DecoupledAttention) for p in checkpoint.unet.attn_processors.values())
    engine.close()
    assert checkpoint.unet.attn_processors == processors
    assert list(checkpoint.unet.state_dict()) == weights
    assert torch.equal(noise_guess(checkpoint.unet), guess)


def test_ejecting_twice_is_no_error(checkpoints: Checkpoints) -> None:
    unet = tiny.open_unet(checkpoints.folders["sd15"])
    processors, installed = dict(unet.attn_processors), Installed(unet)
    installed.eject()
    installed.eject()
    assert unet.attn_processors == processors


def test_self_attention_is_left_alone(engine: Engine) -> None:
    ours = {n for n, p in engine.checkpoint.unet.attn_processors.items() if isinstance(p, DecoupledAttention)}
    assert ours == {n for n in engine.checkpoint.unet.attn_processors if n.endswith("attn2.processor")}


@LAYOUTS
def test_layers_have_the_numbers_that_the_authors_gave_them(engines: Engines, layout: str) -> None:
    unet = engines(layout, "base").checkpoint.unet
    numbers = cross_attention_layers(unet)
    assert list(numbers) == list(range(1, 2 * len(numbers), 2))
    parts = [name.split("_")[0] for name in numbers.values()]
    assert parts == sorted(parts, key=["down", "up", "mid"].index)


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[Counter[str]]:
    calls: Counter[str] = Counter()
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in modules.items()]
    yield calls
    for hook in hooks:
        hook.remove()


def key_value_layers(engine: Engine) -> dict[str, nn.Module]:
    text = {n: m for n, m in engine.checkpoint.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    assert engine.checkpoint.adapter is not None
    return text | {n: m for n, m in engine.checkpoint.adapter.layers.named_modules() if "_ip" in n}


@LAYOUTS
@pytest.mark.parametrize("steps", [1, 4])
def test_keys_and_values_are_computed_once_a_batch(
    engines: Engines, pictures: list[Image.Image], layout: str, steps: int
) -> None:
    engine = engines(layout, "base")
    requests = [
        GenerationRequest("a fox", seed=i, references=(engine.look_at(p),), width_px=32, height_px=32, steps=steps)
        for i, p in enumerate(pictures)
    ]
    layers = key_value_layers(engine)
    with counted(layers) as calls:
        engine.generate(requests, max_batch=2)
    assert calls == Counter(dict.fromkeys(layers, 2))


def test_the_projection_runs_once_a_batch(engine: Engine, pictures: list[Image.Image]) -> None:
    assert engine.checkpoint.adapter is not None
    request = GenerationRequest(
        "a fox", seed=1, references=(engine.look_at(pictures[0]),), width_px=32, height_px=32, steps=4
    )
    with counted({"projection": engine.checkpoint.adapter.projection}) as calls:
        engine.generate([request, request])
    assert calls["projection"] == 1


def test_what_was_kept_of_one_generation_is_not_seen_by_the_next(engine: Engine, pictures: list[Image.Image]) -> None:
    one, other = (
        GenerationRequest(p, seed=1, references=(engine.look_at(picture),), width_px=32, height_px=32, steps=2)
        for p, picture in zip(("a fox", "a cat"), pictures[:2], strict=True)
    )
    first = engine.generate([one])[0]
    engine.generate([other])
    assert np.array_equal(engine.generate([one])[0].latents, first.latents)


def test_what_overflows_in_one_row_stays_there(checkpoints: Checkpoints, pictures: list[Image.Image]) -> None:
    """The adapter speaks in the first row; the second has a window between two steps, the third no reference."""
    engine = Engine.open(checkpoints.paths("sd15", "base"))
    assert engine.checkpoint.adapter is not None
    with torch.no_grad():
        for layer in engine.checkpoint.adapter.by_number().values():
            layer.to_v_ip.weight.fill_(float("inf"))
    spoken = GenerationRequest(
        "a fox", seed=1, references=(engine.look_at(pictures[0]),), width_px=32, height_px=32, steps=4
    )
    silent, plain = replace(spoken, window=(0.8, 0.9)), replace(spoken, references=())
    broken, *others = engine.generate([spoken, silent, plain])
    assert not broken.finite
    (alone,) = engine.generate([plain])
    for other in others:
        assert np.abs(other.latents - alone.latents).max() <= 4e-5


def test_two_generations_at_once_on_one_unet_are_refused(checkpoints: Checkpoints) -> None:
    installed = Installed(tiny.open_unet(checkpoints.folders["sd15"]))
    with installed.slot.holding(Conditioning()), pytest.raises(RuntimeError), installed.slot.holding(Conditioning()):
        pass


def test_a_generation_that_fails_leaves_the_engine_usable(engine: Engine) -> None:
    request = GenerationRequest("a fox", seed=1, width_px=32, height_px=32, steps=2)

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([request], on_step=interrupt)
    assert engine.generate([request])[0].finite
