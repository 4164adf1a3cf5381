"""The linear autoencoder of patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ipadapter_engine.patches import PatchAutoencoder

PATCH_PX, FULL = 4, 3 * 4 * 4


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(16, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def fitted(pictures: torch.Tensor) -> PatchAutoencoder:
    model: PatchAutoencoder = PatchAutoencoder(patch_px=PATCH_PX, latent_channels=FULL)
    model.fit(pictures)
    return model


def test_with_all_components_pictures_come_back_exactly(fitted: PatchAutoencoder, pictures: torch.Tensor) -> None:
    assert (fitted.decode(fitted.encode(pictures)).sample - pictures).abs().max() <= 1e-5


def test_pictures_that_were_not_fitted_come_back_too(fitted: PatchAutoencoder) -> None:
    unseen = torch.rand(2, 3, 8, 40, generator=torch.Generator().manual_seed(1))
    assert (fitted.decode(fitted.encode(unseen)).sample - unseen).abs().max() <= 1e-5


def test_more_components_lose_less(pictures: torch.Tensor) -> None:
    def loss(channels: int) -> float:
        model = PatchAutoencoder(patch_px=PATCH_PX, latent_channels=channels).fit(pictures)
        return float((model.decode(model.encode(pictures)).sample - pictures).square().mean())

    losses = [loss(channels) for channels in (4, 16, 32, FULL)]
    assert losses == sorted(losses, reverse=True)


def test_latents_of_the_fitted_pictures_have_mean_zero_and_spread_one(
    fitted: PatchAutoencoder, pictures: torch.Tensor
) -> None:
    latents = fitted.encode(pictures)
    assert latents.mean().abs() <= 1e-4
    assert abs(float(latents.square().mean().sqrt()) - 1) <= 0.01


def test_latents_are_one_patch_a_position(fitted: PatchAutoencoder, pictures: torch.Tensor) -> None:
    assert fitted.stride == PATCH_PX
    assert fitted.encode(pictures).shape == (16, FULL, 32 // PATCH_PX, 24 // PATCH_PX)


def test_pictures_of_one_flat_colour_can_be_fitted() -> None:
    flat = torch.full((4, 3, 8, 8), 0.25)
    model = PatchAutoencoder(patch_px=PATCH_PX, latent_channels=8).fit(flat)
    assert (model.decode(model.encode(flat)).sample - flat).abs().max() <= 1e-5


def test_saved_and_loaded_it_is_the_same(fitted: PatchAutoencoder, pictures: torch.Tensor, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path)
    loaded = PatchAutoencoder.from_pretrained(tmp_path, local_files_only=True)
    assert dict(loaded.config)["latent_channels"] == FULL
    assert torch.equal(loaded.encode(pictures), fitted.encode(pictures))
