"""The steps of one batch: which rows a forward is of, and what they hear at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import LCMScheduler, TCDScheduler
from torch import Tensor

from ipadapter_engine.attention import Conditioning, Installed
from ipadapter_engine.controlnets import ControlConditioning, summed_residuals
from ipadapter_engine.image_prompts import Branches
from ipadapter_engine.prompts import inside
from ipadapter_engine.requests import BatchKey, GenerationRequest
from ipadapter_engine.schedulers import scheduler_for
from ipadapter_engine.sources import Sources, first_step

if TYPE_CHECKING:
    from ipadapter_engine.checkpoints import Checkpoint


@dataclass(frozen=True)
class Told:
    """What a batch's UNet is told besides the picture; all rows, the unconditional half first where there is one."""

    text: Tensor
    added: dict[str, Tensor] | None
    branches: Branches
    controls: Sequence[ControlConditioning]
    guidance: Tensor
    halves: int


class _Lane:
    """Requests that begin at the same step, with a scheduler of their own: multistep ones remember earlier steps."""

    def __init__(self, rows: list[int], start: int, scheduler: Any) -> None:
        self.rows, self.start, self.scheduler = rows, start, scheduler
        if hasattr(scheduler, "set_begin_index"):  # DDIM counts by timesteps alone
            scheduler.set_begin_index(start)


@torch.inference_mode()
def denoised(
    checkpoint: Checkpoint,
    installed: Installed,
    in_controls: dict[str, Installed],
    requests: Sequence[GenerationRequest],
    key: BatchKey,
    told: Told,
    sources: Sources,
    generators: Sequence[torch.Generator],
    on_step: Callable[[int, int], None] | None,
) -> Tensor:
    """The latents (requests, channels, h, w) float32 after all steps.

    A row that its source lets begin later, or that is outside its guidance's window, has no part in a forward.
    """
    unet = checkpoint.unet
    steps = _Steps(checkpoint, requests, key, told, sources, generators)
    conditioning = Conditioning(told.branches.prompts, text=told.text)
    count = len(steps.timesteps)
    with ExitStack() as held:
        held.enter_context(installed.slot.holding(conditioning))
        for control in told.controls:
            held.enter_context(in_controls[control.net.kind].slot.holding(control.conditioning))
        for i, t in enumerate(steps.timesteps):
            heard = steps.begin(i)
            if heard.active:
                conditioning.step(heard.rows, told.branches.loud(heard.progress))
                sample = steps.sample(heard, t).to(unet.dtype)
                steered = summed_residuals(told.controls, sample[:, : steps.channels], t, heard.progress, heard.rows)
                guess = unet(
                    sample, t, encoder_hidden_states=conditioning.text_states(),
                    added_cond_kwargs=steps.added(heard), timestep_cond=steps.guidance_input(heard), **steered,
                ).sample  # fmt: skip
                steps.take(heard, i, t, guess.float())
            if on_step is not None:
                on_step(i + 1, count)
    return steps.x


@dataclass(frozen=True)
class _Now:
    """Who takes part in a step. guided: requests whose unconditional row does, active: all that have begun.

    rows: of all rows, in the order of the forward. progress: of every request, -1 before its first step.
    """

    guided: tuple[int, ...]
    active: tuple[int, ...]
    rows: tuple[int, ...]
    progress: tuple[float, ...]


class _Steps:
    """The latents of a batch between its steps."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        requests: Sequence[GenerationRequest],
        key: BatchKey,
        told: Told,
        sources: Sources,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.checkpoint, self.requests, self.told, self.sources = checkpoint, requests, told, sources
        self.generators = generators
        self.first = [first_step(r, key.steps) for r in requests]
        self.lanes = [
            _Lane([i for i, f in enumerate(self.first) if f == start], start, scheduler_for(checkpoint, key))
            for start in sorted(set(self.first))
        ]
        self.timesteps: Tensor = self.lanes[0].scheduler.timesteps
        self.x = torch.zeros_like(sources.noise)
        self.channels = self.x.shape[1]
        self.weight = told.guidance.to(self.x).view(-1, 1, 1, 1)
        self._added: tuple[tuple[int, ...], dict[str, Tensor]] | None = None

    def begin(self, step: int) -> _Now:
        for lane in self.lanes:
            if lane.start == step:
                t = self.timesteps[step : step + 1]
                self._put(lane, self.sources.begun(lane.rows, self.requests, lane.scheduler, t))
        count = len(self.timesteps)
        progress = tuple((step - f) / (count - f) if f <= step else -1.0 for f in self.first)
        active = tuple(i for i, f in enumerate(self.first) if f <= step)
        guided = tuple(
            i for i in active
            if self.told.halves == 2 and self.told.guidance[i] > 1 and inside(self.requests[i].guidance_window, progress[i])
        )  # fmt: skip
        base = len(self.requests) * (self.told.halves - 1)
        return _Now(guided, active, (*guided, *(base + i for i in active)), progress)

    def sample(self, now: _Now, t: Tensor) -> Tensor:
        """What the UNet is shown: the scaled latents of the step's rows, an inpainting UNet's masks besides."""
        if len(self.lanes) == 1:
            scaled = self.lanes[0].scheduler.scale_model_input(self.x, t)
        else:
            scaled = self.x.clone()
            for lane in self.lanes:
                if lane.rows[0] in now.active:
                    scaled[lane.rows] = lane.scheduler.scale_model_input(self.x[lane.rows], t)
        if self.sources.shown is not None:
            scaled = torch.cat([scaled, self.sources.shown], dim=1)
        whole = len(now.active) == len(self.requests)
        if whole and now.guided in ((), now.active):
            return torch.cat([scaled, scaled]) if now.guided else scaled
        return scaled[[*now.guided, *now.active]]

    def added(self, now: _Now) -> dict[str, Tensor] | None:
        whole = self.told.added
        if whole is None or len(now.rows) == len(self.told.text):
            return whole
        if self._added is None or self._added[0] != now.rows:
            index = torch.tensor(now.rows, device=self.x.device)
            self._added = (now.rows, {name: value[index] for name, value in whole.items()})
        return self._added[1]

    def guidance_input(self, now: _Now) -> Tensor | None:
        """The guidance as an input of a UNet that was distilled with it (Meng et al., 2022, arXiv:2210.03142)."""
        if self.checkpoint.guidance_dim is None:
            return None
        weights = [self.requests[i].guidance for i in now.active]
        scale = torch.tensor([self.checkpoint.family.guidance if w is None else w for w in weights]) - 1
        return _guidance_embedding(scale, self.checkpoint.guidance_dim).to(self.x.device, self.checkpoint.unet.dtype)

    def take(self, now: _Now, step: int, t: Tensor, guess: Tensor) -> None:
        """guess (rows of the forward, channels, h, w) float32: guide, let every lane step, keep what is not repainted."""
        guided, active = list(now.guided), list(now.active)
        full = guess[len(guided) :]
        if guided == active:
            empty = guess[: len(guided)]
            full = empty + self.weight[active] * (full - empty)
        elif guided:
            empty, places = guess[: len(guided)], [active.index(i) for i in guided]
            full = full.clone()
            full[places] = empty + self.weight[guided] * (full[places] - empty)
        following = self.timesteps[step + 1 : step + 2] if step + 1 < len(self.timesteps) else None
        for lane in self.lanes:
            if lane.start > step:
                continue
            mine = full if lane.rows == active else full[[active.index(i) for i in lane.rows]]
            told: dict[str, Any] = {}
            if isinstance(lane.scheduler, LCMScheduler):  # it draws noise on every step
                told["generator"] = [self.generators[i] for i in lane.rows]
            elif isinstance(lane.scheduler, TCDScheduler):
                told["eta"] = 0.0  # no noise between its steps, as diffusers' pipelines ask for unless told otherwise
            x = lane.scheduler.step(mine, t, self._of(lane), **told).prev_sample
            self._put(lane, self.sources.kept(lane.rows, x, lane.scheduler, following))

    def _of(self, lane: _Lane) -> Tensor:
        return self.x if len(self.lanes) == 1 else self.x[lane.rows]

    def _put(self, lane: _Lane, x: Tensor) -> None:
        if len(self.lanes) == 1:
            self.x = x
        else:
            self.x[lane.rows] = x


def _guidance_embedding(scale: Tensor, dim: int) -> Tensor:
    """(rows, dim): sines and cosines of 1000 times the scale, as timesteps are embedded."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.tensor(10000.0).log() / (half - 1)))
    angles = (scale.float() * 1000)[:, None] * frequencies[None]
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
