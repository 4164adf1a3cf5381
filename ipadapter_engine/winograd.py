"""Convolutions of 3 × 3 on CPUs with a quarter of the products: Winograd's minimal filtering F(4 × 4, 3 × 3).

A tile of 6 × 6 of the picture and a kernel are each transformed so that convolving is multiplying number by number; over all
channels and tiles that is 36 matrix products in place of 9 · 16, and the 4 × 4 of the tile's middle come back from them
(Lavin and Gray, 2015, arXiv:1509.09308). On x86 torch's own convolutions do without, in float32 as well.

Weights are transformed anew on every call, by blocks where they are many: nothing is kept of them, so a LoRA that is merged and a
hash that is taken meet the weights there are. What is worked on at once fits into the processor's caches.
"""

from __future__ import annotations

import platform
import threading

import numpy as np
import torch
from torch import Tensor, nn

# Polynomials are evaluated at these, their negatives, 0 and infinity. The usual 1 and 2 lose four times as many digits: what
# counts is that the points and their reciprocals lie near each other (Barabasz et al., 2020, arXiv:1803.10986).
A, B = 0.625, 1.5

TILE, KERNEL = 4, 3  # what a tile gives in each direction, and a kernel's side
WIDE = TILE + KERNEL - 1
LEAST_CHANNELS = 128  # with fewer, transforming takes longer than products are saved
LEAST_NUMBERS = 20_000  # tiles times channels, in and out: with fewer, so does calling torch's many small steps
MACHINES = ("x86_64", "amd64")  # where it was measured
TILES = 256  # at once, at most
TILE_BYTES, WEIGHT_BYTES = 32 << 20, 16 << 20  # of what is transformed at once, at most


class WinogradConv2d(nn.Conv2d):
    """A convolution that takes the way with fewer products where that is quicker and nobody asks for gradients.

    What is made of its type, as peft makes a LoRA's layers, may be of any shape, and is torch's own then.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given = [input, weight] if bias is None else [input, weight, bias]
        quick = (
            _gains(self)
            and all(type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 for x in given)
            and all(x.device.type == "cpu" for x in given)
            and input.dim() == 4
            and input.shape[1] == self.in_channels
            and input.shape[2] % TILE == input.shape[3] % TILE == 0
            and input.numel() // self.in_channels // TILE**2 * sum(weight.shape[:2]) >= LEAST_NUMBERS
            and not (torch.is_grad_enabled() and any(x.requires_grad for x in given))
            and not torch.is_autocast_enabled("cpu")
        )
        return convolved(input, weight, bias) if quick else super()._conv_forward(input, weight, bias)


def put_winograd(*parts: nn.Module) -> tuple[nn.Conv2d, ...]:
    """Let the convolutions that gain by it take the way with fewer products; gives those that did not before.

    Measured on x86, and taken there alone: other processors' libraries convolve in other ways.
    """
    if platform.machine().lower() not in MACHINES:
        return ()
    changed = tuple(layer for part in parts for layer in part.modules() if type(layer) is nn.Conv2d and _gains(layer))
    for layer in changed:
        layer.__class__ = WinogradConv2d
    return changed


def take_winograd(layers: tuple[nn.Conv2d, ...]) -> None:
    """Make them torch's own again."""
    for layer in layers:
        if type(layer) is WinogradConv2d:
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]


def _gains(layer: nn.Conv2d) -> bool:
    return (
        (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    )


@torch.no_grad()
def convolved(picture: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of stride 1 within a border of one zero.

    picture: (rows, channels, h, w) float32, h and w multiples of 4. weights: (out, channels, 3, 3). bias: (out,).
    Gives (rows, out, h, w), channels last.
    """
    rows, channels, height, width = picture.shape
    out = weights.shape[0]
    pixels, flat = picture.permute(0, 2, 3, 1), weights.permute(0, 2, 3, 1).reshape(out, KERNEL**2, channels)
    made = picture.new_empty(rows, height, width, out)
    blocks = _blocks(out, WEIGHT_BYTES // (4 * WIDE**2 * channels))
    whole = _transformed_weights(flat) if len(blocks) == 1 else None
    for first, last, top, bottom in _parts(rows, height, width, channels):
        tiles = _transformed_tiles(pixels[first:last], top, bottom)
        for begin, end in blocks:
            block = _transformed_weights(flat[begin:end]) if whole is None else whole
            place = made[first:last, top:bottom, :, begin:end]
            _multiply(tiles, block, place)
            if bias is not None:
                place += bias[begin:end]
    return made.permute(0, 3, 1, 2)


def _parts(rows: int, height: int, width: int, channels: int) -> list[tuple[int, int, int, int]]:
    """(first row, last, top, bottom) of what is done at once: several pictures, or a strip of one."""
    high, wide = height // TILE, width // TILE
    most = max(1, min(TILES, TILE_BYTES // (4 * WIDE**2 * channels)))
    pictures = max(1, most // (high * wide))
    strip = min(high, max(1, most // wide)) * TILE
    return [
        (first, min(first + pictures, rows), top, min(top + strip, height))
        for first in range(0, rows, pictures)
        for top in range(0, height, strip)
    ]


def _blocks(count: int, most: int) -> list[tuple[int, int]]:
    """(begin, end) of blocks of nearly one size, which is a multiple of 32 for the products' sake, and at least that."""
    number = -(-count // max(32, most // 32 * 32))
    size = -(-count // (32 * number)) * 32
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _transformed_weights(flat: Tensor) -> Tensor:
    """flat: (out, 9, channels). Gives (out, 36, channels)."""
    out, _, channels = flat.shape
    return torch.matmul(_OF_WEIGHTS, flat, out=_workspace("weights", out, WIDE**2, channels))


def _transformed_tiles(pixels: Tensor, top: int, bottom: int) -> Tensor:
    """pixels: (rows, h, w, channels). Gives (36, tiles, channels) of the strip from top to bottom."""
    framed = _framed(pixels, top, bottom)
    rows, _, framed_width, channels = framed.shape
    high, wide = (bottom - top) // TILE, framed_width // TILE
    row, down, across, channel = framed.stride()
    lines = framed.as_strided((WIDE, rows, high, framed_width, channels), (down, row, TILE * down, across, channel))
    halfway = _workspace("halfway", *lines.shape)
    _transform(lines, halfway)
    line, row, down, across, channel = halfway.stride()
    columns = halfway.as_strided(
        (WIDE, WIDE, rows, high, wide, channels), (across, line, row, down, TILE * across, channel)
    )
    tiles = _workspace("tiles", *columns.shape)
    _transform(columns, tiles.transpose(0, 1))
    return tiles.view(WIDE**2, -1, channels)


def _framed(pixels: Tensor, top: int, bottom: int) -> Tensor:
    """The strip within a border of one: of the picture where it goes on, else of zeros."""
    rows, height, width, channels = pixels.shape
    framed = _workspace("framed", rows, bottom - top + 2, width + 2, channels)
    above, below = max(top - 1, 0), min(bottom + 1, height)
    framed[:, :, 0] = framed[:, :, -1] = 0
    if top == 0:
        framed[:, 0] = 0
    if bottom == height:
        framed[:, -1] = 0
    framed[:, above - top + 1 : below - top + 1, 1:-1] = pixels[:, above:below]
    return framed


def _transform(tile: Tensor, made: Tensor) -> None:
    """One direction of tiles (6, …) into made (6, …): the coefficients of Lagrange's polynomials, what they share once."""
    even, odd = _workspace("shared", 2, *tile.shape[1:])
    for place, here, there in ((1, A, B), (3, B, A)):
        torch.add(tile[4], tile[2], alpha=-(there**2), out=even)
        torch.add(tile[3], tile[1], alpha=-(there**2), out=odd)
        torch.add(even, odd, alpha=here, out=made[place])
        torch.add(even, odd, alpha=-here, out=made[place + 1])
    for place, begin in ((0, 0), (5, 1)):
        torch.add(tile[begin + 4], tile[begin + 2], alpha=-(A**2 + B**2), out=made[place])
        made[place].add_(tile[begin], alpha=(A * B) ** 2)


def _multiply(tiles: Tensor, weights: Tensor, place: Tensor) -> None:
    """tiles: (36, tiles, channels), weights: (out, 36, channels). What comes of them goes to place (rows, h, w, out)."""
    rows, height, width, out = place.shape
    high, wide = height // TILE, width // TILE
    products = _workspace("products", WIDE**2, tiles.shape[1], out)
    torch.bmm(tiles, weights.permute(1, 2, 0), out=products)
    halfway = _workspace("halfway", TILE, WIDE, tiles.shape[1], out)
    _transform_back(products.view(WIDE, WIDE, -1, out), halfway)
    columns = place.view(rows, high, TILE, wide, TILE, out).permute(4, 2, 0, 1, 3, 5)
    _transform_back(halfway.view(TILE, WIDE, rows, high, wide, out).transpose(0, 1), columns)


def _transform_back(products: Tensor, made: Tensor) -> None:
    """One direction of products (6, …) into made (4, …): powers of the points, with `_SCALES` taken out."""
    sum_a, sum_b, difference_a, difference_b = _workspace("shared", 4, *products.shape[1:])
    torch.add(products[1], products[2], out=sum_a)
    torch.sub(products[1], products[2], out=difference_a)
    torch.add(products[3], products[4], out=sum_b)
    torch.sub(products[3], products[4], out=difference_b)
    torch.add(products[0], sum_a, alpha=1 / A, out=made[0])
    made[0].add_(sum_b, alpha=1 / B**2)
    torch.add(difference_a, difference_b, alpha=1 / B, out=made[1])
    torch.add(sum_b, sum_a, alpha=A, out=made[2])
    torch.add(products[5], difference_a, alpha=A**2, out=made[3])
    made[3].add_(difference_b, alpha=B)


_SCALES = (1.0, A, A, B**2, B**2, 1.0)  # of the weights, by which half of the way back needs no factors


def _weights_transform() -> Tensor:
    """(36, 9) float32: a kernel's values at the points, in both directions, over what the points are apart."""
    points = np.array([0.0, A, -A, B, -B])
    values = [p ** np.arange(KERNEL) / np.prod(p - np.delete(points, i)) for i, p in enumerate(points)]
    scaled = np.array([*values, np.eye(KERNEL)[-1]]) * np.array(_SCALES)[:, None]
    return torch.from_numpy(np.kron(scaled, scaled)).float()


_OF_WEIGHTS = _weights_transform()


class _Kept(threading.local):
    """What a thread works in: fresh memory comes a page at a time, which takes longer than what is done in it."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}


_KEPT = _Kept()


def _workspace(name: str, *shape: int) -> Tensor:
    """Memory with anything in it, until the name is asked for again."""
    count = int(np.prod(shape))
    kept = _KEPT.by_name.get(name)
    if kept is None or kept.numel() < count:
        with torch.inference_mode(False):  # else none but inference may write to it
            kept = _KEPT.by_name[name] = torch.empty(count, dtype=torch.float32, device="cpu")
    return kept[:count].view(shape)


def let_go() -> None:
    """Give back the memory that this thread's convolutions worked in."""
    _KEPT.by_name.clear()
