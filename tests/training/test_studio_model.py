"""The recipe resumes after a kill, the adapter trains on a frozen base, and the shipped model is on model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ipadapter_engine.checkpoints import EMBEDDED
from ipadapter_engine.evaluation import fidelity
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.training.captions import train_tokenizer
from ipadapter_engine.training.clip import new_clip
from ipadapter_engine.training.dataset import rendered
from ipadapter_engine.training.diffusion import LatentSet, embed_all, new_unet, train_adapter
from ipadapter_engine.training.first_stage import encode_all, fit_first_stage, psnr
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.mascots import ATTRIBUTES

CPU = torch.device("cpu")


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))

    def run(out: Path, *stops: int) -> torch.Tensor:
        for steps in (*stops, 30):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 1)

            def loss_of(
                step: int, index: np.ndarray, model: torch.nn.Module = model, stop: int = steps
            ) -> torch.Tensor:
                if stop < 30 and step == stop:
                    raise KeyboardInterrupt
                return (model(data[index]) - data[index].sum(1, keepdim=True)).square().mean()

            try:
                train("line", model, loss_of, out=out, steps=30, batch_size=8, examples=64, lr=0.05, ema_decay=0.9)
            except KeyboardInterrupt:
                continue
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    monkeypatch.setattr("ipadapter_engine.training.loop.CHECKPOINT_EVERY_S", -1.0)
    assert torch.equal(run(tmp_path / "whole"), run(tmp_path / "stopped", 7, 19))


def test_the_adapter_trains_and_the_base_stays_as_it_was(tmp_path: Path) -> None:
    data = rendered(96, seed=3)
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    clip, unet = new_clip(tokenizer).eval(), new_unet().eval()
    latents = LatentSet(data, encode_all(fit_first_stage(data), data), embed_all(clip, data, CPU))
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    adapter = train_adapter(latents, unet, clip, tokenizer, tmp_path, steps=2, device=CPU)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    started = new_unet_adapter_state(unet, latents)
    assert any(not torch.equal(v, started[k]) for k, v in adapter.official_state().items() if "to_k_ip" in k)


def new_unet_adapter_state(unet: torch.nn.Module, latents: LatentSet) -> dict[str, torch.Tensor]:
    from ipadapter_engine.adapter import new_base_adapter

    return new_base_adapter(unet, latents.embeddings.shape[1]).official_state()  # type: ignore[arg-type]


def test_the_first_stage_keeps_unseen_pictures() -> None:
    stage = fit_first_stage(rendered(400, seed=5))
    assert psnr(stage, rendered(64, seed=6), 64) > 26


@pytest.fixture(scope="module")
def shipped() -> Engine:
    return Engine.open()


def test_the_shipped_files_are_small_and_in_half_precision() -> None:
    files = list(EMBEDDED.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) < 60e6
    assert {v.dtype for v in load_file(EMBEDDED / "unet" / "diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }


def test_pictures_of_unseen_characters_are_on_model_and_without_the_adapter_they_are_not(shipped: Engine) -> None:
    """A small sample of what `make bench-fidelity` measures on 100 characters, with room for its larger error."""
    judge, asked = fidelity.open_judge(), fidelity.samples(24, 1)
    names = [a.name for a in ATTRIBUTES]
    right = dict(zip(names, fidelity.read_right(judge, fidelity.make(shipped, asked, 1.0), asked).mean(0), strict=True))
    alone = dict(zip(names, fidelity.read_right(judge, fidelity.make(shipped, asked, 0.0), asked).mean(0), strict=True))
    assert min(right["colour"], right["shape"], right["scene"]) >= 0.6
    assert max(alone["colour"], alone["shape"]) <= 0.5
