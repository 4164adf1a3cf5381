"""Convolutions with fewer products give what torch's own give, where they are taken, and leave everything as it was."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from ipadapter_engine import winograd
from ipadapter_engine.acceleration import Acceleration
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.winograd import WinogradConv2d, convolved, put_winograd, take_winograd
from tests.ipadapter_engine.conftest import picture

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in winograd.MACHINES, reason="measured and taken on x86 alone"
)


def drawn(rows: int, channels: int, out: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A picture, weights that keep its spread, and a bias."""
    noise = torch.Generator().manual_seed(rows + channels + out + height + width)
    weights = torch.randn(out, channels, 3, 3, generator=noise) / (9 * channels) ** 0.5
    return torch.randn(rows, channels, height, width, generator=noise), weights, torch.randn(out, generator=noise)


def exact(picture: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """In double precision, by torch."""
    return nn.functional.conv2d(picture.double(), weights.double(), None if bias is None else bias.double(), padding=1)


@pytest.mark.parametrize(
    ("rows", "channels", "out", "height", "width"),
    [
        (3, 128, 128, 8, 8),
        (40, 128, 160, 16, 16),  # parts of several pictures, the last of fewer
        (2, 128, 128, 4, 64),
        (1, 128, 130, 136, 64),  # strips of one picture, the last lower
        (2, 1280, 192, 8, 12),  # blocks of weights
        (1, 3, 5, 8, 8),
    ],
    ids=["few", "many", "one tile high", "strips", "wide", "odd numbers"],
)
def test_it_gives_what_double_precision_gives(rows: int, channels: int, out: int, height: int, width: int) -> None:
    given = drawn(rows, channels, out, height, width)
    truth = exact(*given)
    error = convolved(*given) - truth
    assert float(error.abs().max()) <= 3e-5
    assert float(error.square().mean().sqrt()) <= 2e-6  # of a spread of 1; with the usual points it is more


def test_it_takes_any_layout_and_no_bias() -> None:
    picture, weights, _ = drawn(2, 32, 32, 8, 8)
    last = convolved(picture.contiguous(memory_format=torch.channels_last), weights)
    assert torch.equal(last, convolved(picture, weights.contiguous(memory_format=torch.channels_last)))
    assert float((last - exact(picture, weights, None)).abs().max()) <= 2e-5
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_row_is_the_same_in_any_batch_but_for_rounding() -> None:
    picture, weights, bias = drawn(20, 128, 128, 16, 16)
    alone = torch.cat([convolved(picture[i : i + 1], weights, bias) for i in range(20)])
    assert float((convolved(picture, weights, bias) - alone).abs().max()) <= 1e-5


def test_what_it_works_in_is_each_thread_s_own() -> None:
    given = [drawn(4, 64, 64, 16, 16 + 4 * i) for i in range(2)]
    alone = [convolved(*of) for of in given]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(20):
            for made, expected in zip(threads.map(lambda of: convolved(*of), given), alone, strict=True):
                assert torch.equal(made, expected)


def test_what_inference_worked_in_is_open_to_others_afterwards() -> None:
    given = drawn(4, 64, 64, 16, 16)
    winograd.let_go()
    with torch.inference_mode():
        expected = convolved(*given)
    assert torch.equal(convolved(*given), expected)


def layer(channels: int = 128, out: int = 128, **how: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, out, **{"kernel_size": 3, "padding": 1, **how})  # type: ignore[arg-type]


class Other(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "left",
    [
        layer(stride=2), layer(kernel_size=1, padding=0), layer(padding=0), layer(dilation=2, padding=2), layer(groups=2),
        layer(padding_mode="reflect"), layer(channels=64), layer(out=64), Other(128, 128, 3, padding=1),
    ],
    ids=["stride", "1 × 1", "no border", "dilation", "groups", "reflected", "few in", "few out", "a subclass"],
)  # fmt: skip
def test_other_convolutions_are_left_as_they_are(left: nn.Conv2d) -> None:
    kind = type(left)
    assert put_winograd(nn.Sequential(left)) == ()
    assert type(left) is kind


@pytest.mark.parametrize(("machine", "changed"), [("x86_64", 1), ("AMD64", 1), ("aarch64", 0), ("arm64", 0)])
def test_it_is_taken_on_x86_alone(machine: str, changed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert len(put_winograd(nn.Sequential(layer()))) == changed


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were convolved with fewer products, call by call."""
    met: list[int] = []

    def watched(picture: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        met.append(len(picture))
        return convolved(picture, weights, bias)

    monkeypatch.setattr(winograd, "convolved", watched)
    return met


def test_it_is_taken_where_it_is_quicker_and_nobody_asks_for_gradients(calls: list[int]) -> None:
    quick = layer()
    assert put_winograd(nn.Sequential(quick)) == (quick,)
    with torch.no_grad():
        quick(torch.zeros(8, 128, 16, 16))
        assert calls == [8]
        quick(torch.zeros(1, 128, 16, 16))  # too small
        quick(torch.zeros(8, 128, 18, 16))  # no whole tiles
        quick.bfloat16()(torch.zeros(8, 128, 16, 16, dtype=torch.bfloat16))
    quick.float()(torch.zeros(8, 128, 16, 16))
    assert calls == [8]


def test_gradients_are_torch_s(calls: list[int]) -> None:
    plain, quick = layer(), layer()
    put_winograd(nn.Sequential(quick))
    given = [torch.randn(8, 128, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for convolution, x in zip((plain, quick), given, strict=True):
        convolution(x).square().sum().backward()
    assert torch.equal(given[0].grad, given[1].grad)  # type: ignore[arg-type]
    assert torch.equal(plain.weight.grad, quick.weight.grad)  # type: ignore[arg-type]
    assert calls == []


def test_a_bias_alone_gets_its_gradient() -> None:
    quick = layer()
    put_winograd(nn.Sequential(quick))
    quick.weight.requires_grad_(False)
    quick(torch.zeros(8, 128, 16, 16)).sum().backward()
    assert quick.bias is not None
    assert torch.equal(quick.bias.grad, torch.full((128,), 8 * 256.0))  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize(("channels", "out", "side"), [(4, 128, 1), (128, 4, 3), (128, 128, 1)])
def test_a_layer_that_is_made_of_its_type_is_torch_s_own(channels: int, out: int, side: int) -> None:
    """peft makes a LoRA's layers of the type of the layer that it wraps."""
    torch.manual_seed(0)
    made, x = WinogradConv2d(channels, out, side, padding=side // 2), torch.randn(32, channels, 16, 16)
    assert torch.equal(made(x), nn.functional.conv2d(x, made.weight, made.bias, padding=side // 2))


def test_a_lora_of_convolutions_is_heard_as_without(calls: list[int]) -> None:
    made = []
    for quick in (True, False):
        torch.manual_seed(0)
        part = nn.Sequential(layer())
        if quick:
            put_winograd(part)
        wrapped = peft.get_peft_model(part, peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
        with torch.no_grad():
            made.append(wrapped(torch.randn(16, 128, 16, 16, generator=torch.Generator().manual_seed(2))))
        assert bool(calls) is quick
        calls.clear()
    assert float((made[0] - made[1]).abs().max()) <= 1e-4


@torch.no_grad()
def test_weights_that_change_are_heard() -> None:
    quick, x = layer(), torch.randn(8, 128, 16, 16)
    put_winograd(nn.Sequential(quick))
    quick(x)
    quick.weight += 1  # as a LoRA that is merged
    assert float((quick(x) - exact(x, quick.weight, quick.bias)).abs().max()) <= 1e-3  # of numbers to some 100


def test_the_studio_model_makes_the_same_pictures_and_is_left_as_it_was(calls: list[int]) -> None:
    opened = open_checkpoint(CheckpointPaths(), device="cpu", dtype=torch.float32)
    made: dict[bool, list[np.ndarray]] = {}
    for quick in (True, False):
        engine = Engine(opened, Acceleration(winograd=quick))
        seen = [engine.look_at(picture(i)) for i in range(4)]
        requests = [
            GenerationRequest(prompt="front view, waving, in the snow", seed=i, steps=4, references=(of,))
            for i, of in enumerate(seen)
        ]
        made[quick] = [p.latents for p in engine.generate(requests)]
        assert bool(calls) is quick
        calls.clear()
        engine.close()
        assert not any(isinstance(m, WinogradConv2d) for part in (opened.unet, opened.vae) for m in part.modules())
    assert max(float(np.abs(a - b).max()) for a, b in zip(made[True], made[False], strict=True)) <= 1e-4


def test_whoever_finds_it_taken_leaves_it_so() -> None:
    """A training's engine makes pictures on the way with a UNet that another engine laid out."""
    part = nn.Sequential(layer(), layer())
    outer = put_winograd(part)
    assert len(outer) == 2
    take_winograd(put_winograd(part))
    assert all(type(one) is WinogradConv2d for one in part)
    take_winograd(outer)
    assert all(type(one) is nn.Conv2d for one in part)
