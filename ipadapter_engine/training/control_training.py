"""The studio model's pose ControlNet on its frozen UNet (Zhang et al., 2023, arXiv:2302.05543)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.training.captions import SCENE_WORDS, describe_identity
from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.diffusion import NOISIER, SNR_GAMMA, LatentSet
from ipadapter_engine.training.drawing import pose_picture
from ipadapter_engine.training.frozen import frozen
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.objective import Objective, text_states
from ipadapter_engine.training.optimisation import attention_for_training
from ipadapter_engine.training.precision import quickest

BATCH = 48
CONDITIONING = (16, 32, 64, 96)  # channels of the control picture's embedding, each half the size of the one before


def new_control_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """Its convolutions start as copies of the UNet's, and it adds nothing yet. It has none of the UNet's attention, which
    is half of the size: where limbs go no word has to tell."""
    shape = unet.config
    net = ControlNetModel(
        in_channels=shape["in_channels"],
        block_out_channels=shape["block_out_channels"],
        layers_per_block=shape["layers_per_block"],
        down_block_types=("DownBlock2D",) * len(shape["block_out_channels"]),
        mid_block_type="UNetMidBlock2D",
        cross_attention_dim=shape["cross_attention_dim"],
        attention_head_dim=shape["attention_head_dim"],
        addition_embed_type=shape["addition_embed_type"],
        conditioning_embedding_out_channels=CONDITIONING,
    )
    blank = net.state_dict()
    net.load_state_dict(blank | {k: v for k, v in unet.state_dict().items() if k in blank})
    return net


def caption_without_pose(data: PictureSet, i: int, rng: random.Random) -> str:
    """Who, expression and scene; the pose is left to the skeleton, and half the time the view as well. What the skeleton
    shows and what words say never disagree in training."""
    staging = data.stagings[i]
    who = describe_identity(data.identities[i]) if rng.random() < 0.7 else "a mascot"
    view = [f"{staging.view} view"] if rng.random() < 0.5 else []
    return ", ".join([who, staging.expression, *view, SCENE_WORDS[staging.scene], f"{staging.style} style"])


def train_pose_control(
    checkpoint: Checkpoint, data: LatentSet, out: Path, *, steps: int, device: torch.device
) -> ControlNetModel:
    """Learn where limbs are from skeletons of bodies that are nobody's: the pose is all that they and the pictures share.

    Raises BaseChanged where the base did not stay as it was.
    """
    torch.manual_seed(6)
    unet = checkpoint.unet
    net = new_control_net(unet).to(device, memory_format=torch.channels_last)
    objective = Objective(checkpoint.scheduler_config, SNR_GAMMA, device)

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        rng = random.Random(step)
        x = data.latents[index].float()
        noise, t = objective.draw(x, noisier=NOISIER)
        x = x.to(device, memory_format=torch.channels_last)
        noised, t = objective.noised(x, noise.to(device), t.to(device)), t.to(device)
        text = text_states(checkpoint, [caption_without_pose(data.pictures, i, rng) for i in index]).states
        skeletons = _skeletons(data.pictures, index, step).to(device)
        positions = x.shape[-2] * x.shape[-1]
        with quickest(device), attention_for_training(device, positions):
            down, mid = net(noised.latents, t, encoder_hidden_states=text, controlnet_cond=skeletons, return_dict=False)
            guess = unet(
                noised.latents, t, encoder_hidden_states=text, down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample  # fmt: skip
        return noised.loss(guess)

    with frozen(checkpoint, out / "control.ckpt"):
        train("control", net, loss_of, out=out, steps=steps, batch_size=BATCH, examples=len(data.pictures), lr=1e-3,
              warmup=50, decay_from=0.4, ema_decay=0.99, device=device)  # fmt: skip
    return net


def _skeletons(pictures: PictureSet, index: np.ndarray, step: int) -> Tensor:
    """Pose pictures (n, 3, h, w) in 0…1."""
    side = pictures.pixels.shape[1]
    drawn = [pose_picture(pictures.stagings[i], size_px=side, seed=step * 1009 + n) for n, i in enumerate(index)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in drawn])).permute(0, 3, 1, 2).float() / 255
