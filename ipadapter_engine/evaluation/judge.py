"""The judge: a small CNN that reads every attribute of a mascot picture, trained on rendered truth only."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.mascots import ATTRIBUTES
from ipadapter_engine.training.precision import quickest


class Judge(nn.Module):
    """Pictures (n, 3, 128, 128) in -1…1 -> one logit tensor (n, classes) an attribute, in the order of ATTRIBUTES."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 192)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1, stride=2), nn.GroupNorm(8, b), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * 16, 256)
        self.heads = nn.ModuleList([nn.Linear(256, len(a.values)) for a in ATTRIBUTES])

    def forward(self, pictures: Tensor) -> list[Tensor]:
        h = F.silu(self.hidden(self.features(pictures).flatten(1)))
        return [head(h) for head in self.heads]

    @torch.no_grad()
    def read(self, pictures: Tensor) -> np.ndarray:
        """Class indices (n, attributes)."""
        return torch.stack([logits.argmax(1) for logits in self(pictures)], 1).numpy()


def _disturb(x: Tensor) -> Tensor:
    """Noise and blur as generated pictures have, so that the judge reads content and not crisp edges."""
    n = x.shape[0]
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1, device=x.device))
    return x + torch.randn_like(x) * 0.15 * torch.rand(n, 1, 1, 1, device=x.device)


def train_judge(data: PictureSet, out: Path, *, steps: int, device: torch.device) -> Judge:
    torch.manual_seed(3)
    model = Judge().to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        x = _disturb(data.batch(index).to(device)).contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(data.truths[index]).to(device)
        with quickest(device):
            logits = model(x)
        return torch.stack([F.cross_entropy(h.float(), y[:, i]) for i, h in enumerate(logits)]).mean()

    train("judge", model, loss_of, out=out, steps=steps, batch_size=64, examples=len(data), lr=1e-3, device=device)
    return model


def accuracy(judge: Judge, data: PictureSet, size: int = 256) -> dict[str, float]:
    """The judge's own accuracy on rendered pictures, per attribute: the ceiling of every figure it gives."""
    read = np.concatenate(
        [judge.read(data.batch(np.arange(i, min(i + size, len(data))))) for i in range(0, len(data), size)]
    )
    return {a.name: float((read[:, k] == data.truths[:, k]).mean()) for k, a in enumerate(ATTRIBUTES)}
