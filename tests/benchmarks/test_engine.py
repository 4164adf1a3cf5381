"""`make bench-engine` at toy sizes: every row is told, and one whose pictures differ from the peer's is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import convolutions, diffusers_peer, embedding, engine, generating, random_checkpoints
from benchmarks.generating import Generating
from benchmarks.mixes import drawn_embeddings, mixed
from benchmarks.peak import peak_mib
from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest

UNET = {
    "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "norm_num_groups": 8,
    "sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 4,
}  # fmt: skip
XL_UNET = {
    **UNET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 64, "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}  # fmt: skip
VAE = {**random_checkpoints.VAE, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 32,
}  # fmt: skip
CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 16, "projection_dim": 24,
}  # fmt: skip
NUMBERS = {"steps": 3, "width_px": 64, "height_px": 64, "scheduler": "ddim", "guidance": 4.0}
TOY = Generating("toy", 10, 0.0, 1, NUMBERS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPaths:
    folder = tmp_path_factory.mktemp("sd15")
    return random_checkpoints.write_sd15_shaped(folder, unet=UNET, vae=VAE, text=TEXT, embed=24)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPaths:
    folder = tmp_path_factory.mktemp("sdxl")
    return random_checkpoints.write_sdxl_shaped(folder, unet=XL_UNET, vae=VAE, text=TEXT, text_2=TEXT, embed=24)


def test_the_mix_is_mixed() -> None:
    requests = mixed(64, drawn_embeddings(24, 8))
    assert len({r.prompt for r in requests}) == len({r.seed for r in requests}) == 64
    assert {len(r.references) for r in requests} == {0, 1, 2}
    assert len({r.scale for r in requests}) > 2
    assert len({r.window for r in requests}) > 2


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_ours_and_the_peers_pictures_are_the_same(base: str, request: pytest.FixtureRequest) -> None:
    speed, equality = generating.measured(TOY, request.getfixturevalue(base))
    assert equality.met
    assert equality.value is not None
    assert 0 < equality.value <= generating.EQUAL
    assert speed.met
    assert speed.value is not None
    assert speed.value > 0


def test_the_embedded_model_makes_what_the_peer_makes_of_it() -> None:
    _, equality, limit = generating.measured(
        replace(engine.STUDIO, count=3, rounds=1, numbers={"steps": 1}), CheckpointPaths()
    )
    assert equality.met
    assert limit.value is not None
    assert limit.peer_value is not None
    assert 0 < limit.value < limit.peer_value


def test_a_picture_of_twice_the_steps_is_counted_as_twice_the_work(sd15: CheckpointPaths) -> None:
    made = Engine.open(sd15)
    request = GenerationRequest("a red fox", seed=1, width_px=64, height_px=64, scheduler="ddim", steps=2)
    text, once, twice = (
        generating.counted_tflop(made, [replace(request, guidance=guidance, steps=steps)] * 2)
        for guidance, steps in ((1.0, 2), (4.0, 2), (4.0, 4))
    )
    assert twice - once == pytest.approx(2 * (once - text), rel=0.1)  # decoding is in all of them
    assert once - text > 0.3 * once


def test_a_row_whose_pictures_differ_is_missed(sd15: CheckpointPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that lets the references of a call speak at the wrong scale."""
    right = diffusers_peer.Diffusers._speak

    def wrong(peer: diffusers_peer.Diffusers, request: Any, progress: float) -> None:
        right(peer, replace(request, scale=request.scale * 0.5), progress)

    monkeypatch.setattr(diffusers_peer.Diffusers, "_speak", wrong)
    speed, equality = generating.measured(TOY, sd15)
    assert (speed.met, equality.met) == (False, False)


def test_pictures_that_are_no_numbers_are_never_equal() -> None:
    nan = [np.full((4, 2, 2), np.nan, np.float32)]
    assert generating.difference(nan, nan, "cpu") == float("inf")


def test_a_difference_of_large_latents_is_one_of_their_size() -> None:
    def of(size: float, error: float, device: str) -> float:
        one = np.full((4, 2, 2), size)
        return generating.difference([one + error], [one], device)

    assert of(2.0, 2e-4, "cpu") == pytest.approx(2e-4)
    assert of(60.0, 6e-4, "cpu") == pytest.approx(1e-4)
    assert of(60.0, 6e-4, "cuda") == pytest.approx(1e-5)


def test_half_precision_is_checked_in_single(sd15: CheckpointPaths) -> None:
    plan = replace(TOY, count=4, dtype=torch.bfloat16, tflop_an_image=1.0)
    assert [row.met for row in generating.rows(plan, [1.0], [1.0], 0.0)] == [True, True]
    assert generating._error_in_float32(plan, sd15, mixed(4, drawn_embeddings(4, 24), **NUMBERS)) <= generating.EQUAL


def test_the_peer_makes_requests_that_share_their_references_in_one_call(sd15: CheckpointPaths) -> None:
    _, peer, requests = generating._opened(replace(TOY, count=40), sd15, torch.float32)
    without = [r for r in requests if not r.references]
    assert len({peer._shared(r) for r in without}) == 1
    assert len({peer._shared(r) for r in requests}) > 10


def test_without_a_gpu_its_rows_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine.main(["--rows", "sd15-gpu,sdxl-gpu", "--folder", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert {(row["value"], row["met"], row["note"]) for row in rows} == {(None, None, "not measured: no GPU")}
    assert "ratio >= 3" in {row["target"] for row in rows}


def test_rows_that_do_not_exist_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.main(["--rows", "studio,sd3"])
    assert "there are no rows sd3" in capsys.readouterr().err


def test_embeddings_are_those_of_transformers(tmp_path: Path) -> None:
    encoder, place = embedding.random_clip(tmp_path / "encoder", "cpu", CLIP)
    plan = embedding.Embedding("toy", 12, 1)
    told = embedding.measured(plan, encoder, place, embedding.write_pictures(tmp_path / "pictures", 12, 48))
    assert told.error <= embedding.EQUAL
    assert min(told.ours, told.one_by_one, told.best) > 0
    wrong = replace(told, ours=1000 * told.one_by_one, error=1e-3)
    assert [row.met for row in embedding.rows(plan, wrong, times=4.0, of_best=0.0)] == [False, False, False]


def test_a_peak_is_the_process_s_own_and_not_that_of_who_started_it() -> None:
    held = np.ones(400 << 20, np.uint8)
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.peak import peak_mib; print(peak_mib()); held = b'x' * (100 << 20); print(peak_mib())"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    before, after = map(float, done.stdout.split())
    assert peak_mib() > held.nbytes >> 20 > 4 * before
    assert after - before >= 90


def test_a_library_is_ingested_in_a_process_of_its_own(tmp_path: Path) -> None:
    growth, rate = embedding.memory_rows(tmp_path, 20, 40)
    assert growth.met
    assert growth.value is not None
    assert growth.value > 50
    assert rate.value is not None
    assert rate.value > 0


def test_convolutions_are_told_beside_torch_s_and_as_exact() -> None:
    speed, error = convolutions.measured(1, [("toy", 2, 16, 16, 8)])
    assert (speed.peer, error.peer) == ("torch's own", "torch's own")
    assert speed.ratio
    assert error.value is not None
    assert error.peer_value is not None
    assert 0 < error.value < 1e-5
    assert 0 < error.peer_value < 1e-5
