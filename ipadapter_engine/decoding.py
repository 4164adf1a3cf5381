"""From latents to pixels: by the first stage, on a GPU beside the next batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ipadapter_engine.acceleration import Residence
from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.errors import GenerationFailed
from ipadapter_engine.memory import MemoryBudget, in_batches
from ipadapter_engine.requests import BatchKey, GeneratedImage, GenerationRequest
from ipadapter_engine.sources import with_the_rest_kept


class Decoder:
    """The first stage of one checkpoint, with a memory budget of its own, as it works in another thread."""

    def __init__(self, checkpoint: Checkpoint, residence: Residence) -> None:
        self._checkpoint, self._residence = checkpoint, residence
        self._memory = MemoryBudget(checkpoint.device)

    @torch.inference_mode()
    def pictures(self, requests: list[GenerationRequest], key: BatchKey, latents: Tensor) -> list[GeneratedImage]:
        """As diffusers' pipelines decode: divided by the first stage's scaling factor, SDXL's spread and mean first.

        Where memory does not suffice for all, one after the other. Raises GenerationFailed.
        """
        budget = self._memory.of(
            ("decoding", key.width_px, key.height_px), most=len(requests), pixels=key.width_px * key.height_px
        )
        return in_batches(range(len(requests)), lambda rows: self._of_rows(requests, key, latents, rows), budget)

    def _of_rows(
        self, requests: list[GenerationRequest], key: BatchKey, latents: Tensor, rows: Sequence[int]
    ) -> list[GeneratedImage]:
        mine = latents[rows[0] : rows[-1] + 1]
        vae, config = self._checkpoint.vae, self._checkpoint.vae.config
        mean, spread = self._checkpoint.latent_statistics
        with self._residence.at_work(vae):
            pictures = vae.decode((mine * spread / config["scaling_factor"] + mean).to(vae.dtype)).sample.float()
        scaled = ((pictures / 2 + 0.5).nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = scaled.permute(0, 2, 3, 1).cpu().numpy()
        return [
            GeneratedImage(requests[i], with_the_rest_kept(requests[i], p, key), x)
            for i, p, x in zip(rows, pixels, mine.cpu().numpy(), strict=True)
        ]


class DecodingBeside:
    """Decodes a batch in a thread of its own while the next one is denoised; at most one is under way."""

    def __init__(
        self, decode: Callable[[list[GenerationRequest], BatchKey, Tensor], list[GeneratedImage]], *, beside: bool
    ) -> None:
        """beside: in that thread; else `begin` waits until it is done."""
        self._decode, self._beside = decode, beside
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoding")
        self._under_way: tuple[Future[None], Callable[[], None]] | None = None

    def __enter__(self) -> DecodingBeside:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def begin(
        self,
        rows: Sequence[int],
        requests: list[GenerationRequest],
        key: BatchKey,
        latents: Tensor,
        made: dict[int, GeneratedImage],
    ) -> None:
        """Wait for the batch before, then decode this one into `made`, by row."""
        self.wait()
        ready = torch.cuda.current_stream(latents.device).record_event() if latents.is_cuda else None

        def decode() -> None:
            made.update(zip(rows, self._decode(requests, key, latents), strict=True))

        def decode_beside(ready: torch.Event) -> None:
            stream = _stream_of(latents.device)
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                decode()

        if not self._beside:
            decode()
        elif ready is None:
            self._under_way = self._thread.submit(decode), decode
        else:
            self._under_way = self._thread.submit(decode_beside, ready), decode

    def wait(self) -> None:
        """Raises what decoding raised; what did not fit beside a batch is tried again with none beside it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            decoding, again = under_way
            try:
                decoding.result()
            except GenerationFailed:
                again()


@functools.lru_cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all batches: memory that a stream has let go of is kept for that stream."""
    return torch.cuda.Stream(device)
