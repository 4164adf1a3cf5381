"""Compiled, offloaded, with other kernels or layouts: the same pictures, and nothing compiled again for other references."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ipadapter_engine.acceleration import Acceleration, Residence
from ipadapter_engine.emphasis import AdapterSettings
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import SourcePicture
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine.conftest import Checkpoints, picture
from tests.ipadapter_engine.test_diffusers_parity import request_for

CLOSE = 1e-4


def asked(engine: Engine) -> list[GenerationRequest]:
    seen = [engine.look_at(picture(i)) for i in range(2)]
    start = SourcePicture(np.asarray(picture(5, 64).resize((64, 48))), 0.5)
    return [
        request_for("sd15", (seen[0],)),
        request_for("sd15", tuple(seen), seed=2, settings={"identity": AdapterSettings(steps=(0.2, 1.0))}),
        request_for("sd15", (), seed=3, source=start),
    ]


@pytest.fixture(scope="module")
def opened(checkpoints: Checkpoints) -> Callable[[Acceleration], Engine]:
    return lambda how: Engine.open(checkpoints.paths("sd15", "plus"), acceleration=how)


@pytest.mark.parametrize(
    "how",
    [
        Acceleration(compiled=True, backend="eager"),
        Acceleration(offload=True),
        Acceleration(channels_last=False),
        Acceleration(attention="math"),
        Acceleration(attention="efficient"),
    ],
    ids=["compiled", "offloaded", "channels first", "math", "efficient, which CPUs have not"],
)
def test_pictures_stay_the_same(opened: Callable[[Acceleration], Engine], how: Acceleration) -> None:
    plain, quick = opened(Acceleration()), opened(how)
    pairs = zip(plain.generate(asked(plain)), quick.generate(asked(quick)), strict=True)
    assert max(float(np.abs(a.latents - b.latents).max()) for a, b in pairs) <= CLOSE


def test_other_references_scales_and_settings_compile_nothing_again(opened: Callable[[Acceleration], Engine]) -> None:
    engine = opened(Acceleration(compiled=True, backend="eager"))
    requests = asked(engine)[:2]
    engine.generate(requests)
    with torch.compiler.set_stance("fail_on_recompile"):
        engine.generate(requests[::-1])
        engine.generate([replace(r, scale=0.3, window=(0.0, 0.5)) for r in requests])


def test_an_offloaded_unet_and_first_stage_are_never_on_the_device_together(
    opened: Callable[[Acceleration], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(Acceleration(offload=True))
    met: list[tuple[bool, bool]] = []
    enter = Residence.at_work

    def watched(self: Residence, *parts: torch.nn.Module) -> object:
        assert self.there == ()
        met.append((engine.checkpoint.unet in parts, engine.checkpoint.vae in parts))
        return enter(self, *parts)

    monkeypatch.setattr(Residence, "at_work", watched)
    engine.generate(asked(engine))
    assert (True, False) in met
    assert (False, True) in met
    assert (True, True) not in met


def test_a_kernel_that_there_is_not_is_refused() -> None:
    with pytest.raises(CheckpointRefused, match="no attention kernel 'quick'"):
        Acceleration(attention="quick")  # type: ignore[arg-type]


def test_on_a_cpu_decoding_takes_no_cores_from_the_next_batch(
    opened: Callable[[Acceleration], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(Acceleration())
    at_work: list[str] = []
    decode, forward = engine.checkpoint.vae.decode, engine.checkpoint.unet.forward

    def decoded(*given: object, **named: object) -> object:
        at_work.append(f"decoding in {threading.current_thread().name}")
        return decode(*given, **named)

    def denoised(*given: object, **named: object) -> object:
        if not at_work or at_work[-1] != "denoising":
            at_work.append("denoising")
        return forward(*given, **named)

    monkeypatch.setattr(engine.checkpoint.vae, "decode", decoded)
    monkeypatch.setattr(engine.checkpoint.unet, "forward", denoised)
    engine.generate(asked(engine)[:2], max_batch=1)
    here = f"decoding in {threading.current_thread().name}"
    assert at_work == ["denoising", here, "denoising", here]
