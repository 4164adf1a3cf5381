"""How the models are run on the machine at hand; pictures stay the same but for rounding.

torch's and diffusers' means (compiled transformer blocks, convolutions with channels last, a choice of attention kernels,
parts that leave the GPU while they have nothing to do), and convolutions of our own for CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from ipadapter_engine.attention import DecoupledAttention
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.winograd import let_go, put_winograd, take_winograd

if TYPE_CHECKING:
    from ipadapter_engine.checkpoints import Checkpoint

Kernel = Literal["auto", "flash", "efficient", "cudnn", "math"]


@dataclass(frozen=True)
class Acceleration:
    """compiled: the UNet's transformer blocks are compiled by torch, once a batch size and picture size: minutes at first,
        then quicker steps; for GPUs that make many pictures of one kind.
    attention: which of torch's kernels is tried first; auto leaves it to torch. What it cannot do, the plain one does.
    offload: only the part that is at work lies on the GPU: for cards that hold the UNet and not all beside it. The first
        stage then decodes after a batch, not beside the next.
    channels_last: the memory layout of convolutions, quicker on GPUs and, from a few rows on, on CPUs.
    winograd: convolutions of 3 × 3 with a quarter of the products, on x86 CPUs in float32 (`winograd`).
    backend: what compiles, by torch's name of it.
    """

    compiled: bool = False
    attention: Kernel = "auto"
    offload: bool = False
    channels_last: bool = True
    winograd: bool = True
    backend: str = "inductor"

    def __post_init__(self) -> None:
        if self.attention not in get_args(Kernel):
            raise CheckpointRefused(
                f"there is no attention kernel {self.attention!r}", f"choose one of {', '.join(get_args(Kernel))}"
            )

    def kernels(self) -> AbstractContextManager[Any]:
        """Within, attention is computed by the chosen kernel."""
        if self.attention == "auto":
            return nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        names = {
            "flash": "FLASH_ATTENTION",
            "efficient": "EFFICIENT_ATTENTION",
            "cudnn": "CUDNN_ATTENTION",
            "math": "MATH",
        }
        # torch holds this for the whole process: threads beside this one (decoding, the encoder) need one that always can
        return sdpa_kernel([getattr(SDPBackend, names[self.attention]), SDPBackend.MATH], set_priority=True)

    def apply(self, checkpoint: Checkpoint) -> Changed:
        """Prepare the models of an open checkpoint in which our attention is installed."""
        parts = (checkpoint.unet, checkpoint.vae, *(net.model for net in checkpoint.controls.values()))
        laid_out = put_channels_last(*parts) if self.channels_last else ()
        quick = put_winograd(*parts) if self.winograd and checkpoint.device.type == "cpu" else ()
        if self.compiled:
            for processor in checkpoint.unet.attn_processors.values():
                if isinstance(
                    processor, DecoupledAttention
                ):  # what it keeps between steps is no business of the compiler
                    processor.attend = torch.compiler.disable(processor.attend)
            checkpoint.unet.compile_repeated_blocks(backend=self.backend)
        return Changed(laid_out, quick)


@dataclass(frozen=True)
class Changed:
    """What was changed in the models of a checkpoint that others may go on with: parts' layout, and convolutions' way."""

    laid_out: tuple[nn.Module, ...]
    quick: tuple[nn.Conv2d, ...]

    def undo(self) -> None:
        put_channels_first(self.laid_out)
        take_winograd(self.quick)
        let_go()


def put_channels_last(*parts: nn.Module) -> tuple[nn.Module, ...]:
    """Lay out convolutions with channels last; gives the parts that were not so, for `put_channels_first` to undo it.

    Two may ask for one UNet: a training lays it out and makes pictures on the way. Whoever found it so leaves it so, else
    the other goes on with another layout, slower and with other last digits.
    """
    changed = tuple(part for part in parts if not _has_channels_last(part))
    for part in changed:
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return changed


def put_channels_first(parts: tuple[nn.Module, ...]) -> None:
    """Lay out convolutions as they are opened."""
    for part in parts:
        part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _has_channels_last(part: nn.Module) -> bool:
    weights = (p for p in part.parameters() if p.dim() == 4 and not p.is_contiguous())
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


class Residence:
    """Which parts lie on the device: all of them, or with `offload` those at work."""

    def __init__(self, device: torch.device, *, offload: bool) -> None:
        self.device, self.offload = device, offload
        self.there: tuple[nn.Module, ...] = ()

    @contextmanager
    def at_work(self, *parts: nn.Module) -> Iterator[None]:
        """Within, these parts are on the device; no others are, where parts are offloaded. Not re-entrant."""
        if not self.offload:
            yield
            return
        self.there = parts
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            for part in parts:
                part.to("cpu")
            self.there = ()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
