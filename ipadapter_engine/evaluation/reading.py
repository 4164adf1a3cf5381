"""The judge at work: which attributes of a picture it reads as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ipadapter_engine.checkpoints import EMBEDDED
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.evaluation.judge import Judge
from ipadapter_engine.weights import first_line

JUDGE_FILE = "judge.safetensors"
_BATCH = 128


def open_judge(file: Path = EMBEDDED / JUDGE_FILE) -> Judge:
    """Raises CheckpointRefused for a judge of another vocabulary."""
    judge = Judge()
    try:
        judge.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointRefused(
            f"{file} is no judge of this vocabulary: {first_line(error)}",
            "train it with `python -m ipadapter_engine.training.studio_model --stages judge`",
        ) from None
    return judge.eval()


def attributes_right(judge: Judge, pixels: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Booleans (pictures, attributes): whether the judge reads the truth.

    pixels uint8 (pictures, side, side, 3) of the judge's own side; truths as `characters.truths` gives them.
    """
    return np.concatenate([_read(judge, pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]) == truths


@torch.no_grad()
def _read(judge: Judge, pixels: np.ndarray) -> np.ndarray:
    return judge.read(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
