"""Rows of convolutions on a CPU: our way with fewer products against torch's own, in turn, and how far each is from exact."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.rows import Row, seconds
from ipadapter_engine.winograd import convolved

# (whose layer, rows, channels, out, side): rows are pictures of a batch, twice with guidance
LAYERS = (
    ("embedded model, 16 pictures", 32, 128, 128, 16),
    ("embedded model, 16 pictures", 32, 512, 256, 8),
    ("SD1.5 at 512 px, 1 picture", 2, 320, 320, 64),
    ("SD1.5 at 512 px, 1 picture", 2, 640, 640, 32),
    ("SD1.5 at 512 px, 1 picture", 2, 1280, 1280, 16),
    ("SD1.5's first stage at 512 px, 1 picture", 1, 512, 512, 128),
)
PEER = "torch's own"


def measured(rounds: int, layers: Sequence[tuple[str, int, int, int, int]] = LAYERS) -> Iterator[Row]:
    """Convolutions a second, and the root of the mean squared error beside double precision, in outputs of spread 1."""
    for title, rows, channels, out, side in layers:
        name = f"{title}: {rows} × {channels} → {out} at {side} × {side}"
        picture, weights, bias = _drawn(rows, channels, out, side)
        ways: tuple[Callable[[], Tensor], ...] = (
            partial(convolved, picture, weights, bias),
            partial(nn.functional.conv2d, picture, weights, bias, padding=1),
        )
        with torch.inference_mode():
            exact = nn.functional.conv2d(picture.double(), weights.double(), bias.double(), padding=1)
            ours, torchs = (float((way() - exact).square().mean().sqrt()) for way in ways)
            took = [[seconds(way) for way in ways] for _ in range(rounds)]
        our_rate, torchs_rate = (1 / statistics.median(one) for one in zip(*took, strict=True))
        yield Row(name, our_rate, "1/s", "", True, PEER, torchs_rate)
        yield Row(f"{name}, error", ours, "of a spread of 1", "", True, PEER, torchs)


def _drawn(rows: int, channels: int, out: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    weights = torch.randn(out, channels, 3, 3, generator=noise) / (9 * channels) ** 0.5
    picture = torch.randn(rows, channels, side, side, generator=noise)
    bias = torch.randn(out, generator=noise)
    return picture.to(memory_format=torch.channels_last), weights.to(memory_format=torch.channels_last), bias
