"""The faults that were measured in diffusers 0.42.1, each shown there and shown not to be ours."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import IPAdapterScaleCutoffCallback, SDCFGCutoffCallback
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    TextKVCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_text_kv_cache,
)

from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import Array
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS
from tests.ipadapter_engine.conftest import picture
from tests.ipadapter_engine.test_attention import counted
from tests.ipadapter_engine.test_diffusers_parity import request_for

SAME, FAR = 4e-5, 1e-2
Opened = Callable[[str, str | None], Any]


def ours(engine: Engine, request: GenerationRequest) -> Array:
    return engine.generate([request])[0].latents


def theirs(pipe: StableDiffusionPipeline, request: GenerationRequest, **kwargs: Any) -> Array:
    """(pictures, channels, h, w); what `kwargs` say stands in place of the request's own."""
    pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
    told = {"prompt": request.prompt, "generator": torch.Generator().manual_seed(request.seed)} | kwargs
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(
            pipe(
                width=request.width_px, height=request.height_px, num_inference_steps=request.steps,
                guidance_scale=request.guidance, output_type="latent", **told,
            ).images
        )  # fmt: skip


def gap(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max())


def test_references_of_two_requests_do_not_mix(engine: Engine, pipeline_of: Opened) -> None:
    """1: given two prompts and the embeddings of both, diffusers lets each hear the other's."""
    pipe = pipeline_of("sd15", "base")
    seen = [engine.look_at(picture(i)) for i in range(2)]
    requests = [request_for("sd15", (s,), seed=i) for i, s in enumerate(seen)]
    alone = [ours(engine, r) for r in requests]
    together = [made.latents for made in engine.generate(requests)]
    assert max(map(gap, together, alone)) <= SAME

    pipe.set_ip_adapter_scale(requests[0].scale)
    positive = torch.from_numpy(np.stack([s.embedding for s in seen if s.embedding is not None]))[:, None]
    stacked = torch.cat([torch.zeros_like(positive), positive])
    generators = [torch.Generator().manual_seed(r.seed) for r in requests]
    mixed = theirs(
        pipe, requests[0], prompt=[r.prompt for r in requests], generator=generators, ip_adapter_image_embeds=[stacked]
    )
    assert max(map(gap, mixed, alone)) > FAR


def test_guidance_that_ends_early_keeps_the_reference(engine: Engine, pipeline_of: Opened) -> None:
    """2: diffusers' cutoff callback leaves the image prompt's unconditional half in, which is then merged with the other."""
    pipe, seen = pipeline_of("sd15", "base"), engine.look_at(picture(0))
    request = request_for("sd15", (seen,), steps=6, guidance_window=(0.0, 0.5))
    halves = [replace(request, guidance_window=w) for w in ((0.0, 1.0), (0.5, 0.5))]
    assert min(gap(ours(engine, request), ours(engine, h)) for h in halves) > 1e-3
    pipe.set_ip_adapter_scale(request.scale)
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
    merged = theirs(
        pipe, request, ip_adapter_image=[[picture(0)]], callback_on_step_end=cutoff,
        callback_on_step_end_tensor_inputs=cutoff.tensor_inputs,
    )[0]  # fmt: skip
    assert gap(merged, ours(engine, request)) > 1e-3


def test_what_one_request_was_told_is_not_left_for_the_next(engine: Engine, pipeline_of: Opened) -> None:
    """3: diffusers' callback that ends a reference's part early leaves scale 0 behind."""
    pipe, seen = pipeline_of("sd15", "base"), engine.look_at(picture(0))
    request = request_for("sd15", (seen,))
    before = ours(engine, request)
    ours(engine, replace(request, window=(0.0, 0.5)))
    assert gap(ours(engine, request), before) == 0.0
    pipe.set_ip_adapter_scale(request.scale)
    plain = theirs(pipe, request, ip_adapter_image=[[picture(0)]])[0]
    cutoff = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    theirs(pipe, request, ip_adapter_image=[[picture(0)]], callback_on_step_end=cutoff)
    assert gap(theirs(pipe, request, ip_adapter_image=[[picture(0)]])[0], plain) > 1e-3


def test_each_request_has_its_own_scale(engine: Engine) -> None:
    """4: diffusers' processor refuses a scale a sample; here every row of a batch has one."""
    seen = (engine.look_at(picture(0)),)
    requests = [request_for("sd15", seen, scale=s) for s in (0.0, 0.3, 1.0, 2.5)]
    for made, request in zip(engine.generate(requests), requests, strict=True):
        assert gap(made.latents, ours(engine, request)) <= SAME


def test_two_references_stay_two(engine: Engine, pipeline_of: Opened) -> None:
    """5: two positive embeddings stacked on the first dimension become a negative and a positive one in diffusers."""
    pipe = pipeline_of("sd15", "base")
    seen = [engine.look_at(picture(i)) for i in range(2)]
    request = request_for("sd15", tuple(seen))
    pipe.set_ip_adapter_scale(request.scale)
    stacked = torch.from_numpy(np.stack([s.embedding for s in seen if s.embedding is not None]))[:, None]
    as_halves = request_for("sd15", (seen[1], replace(seen[0], negative=True)))
    assert gap(theirs(pipe, request, ip_adapter_image_embeds=[stacked])[0], ours(engine, as_halves)) <= 1e-4
    assert gap(theirs(pipe, request, ip_adapter_image=[[picture(0), picture(1)]])[0], ours(engine, request)) <= 1e-4


def test_what_is_kept_between_steps_is_kept_for_a_unet_and_exact(engine: Engine, pipeline_of: Opened) -> None:
    """6: diffusers' caches raise on a UNet, or do nothing there; ours computes keys and values once, of the same picture."""
    pipe, seen = pipeline_of("sd15", "base"), engine.look_at(picture(0))
    request = request_for("sd15", (seen,))
    unet = pipe.unet
    pipe.set_ip_adapter_scale(request.scale)

    def cached(how: Callable[[Any, Any], None], config: Any) -> Array:
        pipe.unet = deepcopy(unet)
        try:
            how(pipe.unet, config)
            with counted(keys := keys_of_text(pipe.unet)) as calls:
                made = theirs(pipe, request, ip_adapter_image=[[picture(0)]])[0]
            assert calls == Counter(dict.fromkeys(keys, request.steps))
            return np.asarray(made)
        finally:
            pipe.unet = unet

    with pytest.raises(IndexError):
        cached(apply_first_block_cache, FirstBlockCacheConfig())
    with pytest.raises((AttributeError, KeyError, RuntimeError, TypeError, ValueError)):
        cached(apply_faster_cache, FasterCacheConfig())
    reference = cached(apply_text_kv_cache, TextKVCacheConfig())
    with counted(keys := keys_of_text(engine.checkpoint.unet)) as calls:
        assert gap(ours(engine, request), reference) <= 1e-4
    assert calls == Counter(dict.fromkeys(keys, 1))


def keys_of_text(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in unet.named_modules() if name.endswith("attn2.to_k")}
