"""Muon's step is orthogonal and as large as AdamW's, and what is no matrix is AdamW's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ipadapter_engine.training.errors import TrainingRefused
from ipadapter_engine.training.muon import Muon, orthogonalised
from ipadapter_engine.training.optimisation import Optimisation


@pytest.mark.parametrize("shape", [(64, 64), (40, 200), (200, 40)])
def test_every_direction_counts_alike(shape: tuple[int, int]) -> None:
    rows, columns = shape
    smaller, generator = min(shape), torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, smaller, generator=generator))[0] for n in (rows, columns))
    matrix = left @ torch.diag(torch.linspace(0.05, 1, smaller)) @ right.T
    spread = torch.linalg.svdvals(orthogonalised(matrix).float())
    assert spread.min() > 0.6
    assert spread.max() < 1.3


def a_network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.Linear(48, 4))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        model(rows).square().mean().backward()
        optimizer.step()


HOW = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.0}


def test_only_matrices_are_moved_by_it_and_by_about_as_much_as_adamw_does() -> None:
    start, ours, theirs = a_network(), a_network(), a_network()
    stepped(ours, Muon(ours.parameters(), **HOW), 1)  # type: ignore[arg-type]
    stepped(theirs, torch.optim.AdamW(theirs.parameters(), **HOW), 1)  # type: ignore[arg-type]
    same = {k for k, p in ours.named_parameters() if torch.equal(p, dict(theirs.named_parameters())[k])}
    assert same == {k for k, _ in ours.named_parameters()} - {"0.weight"}
    moved = (ours[0].weight - start[0].weight).square().mean().sqrt()
    assert 0.1 * HOW["lr"] < moved < 0.3 * HOW["lr"]  # type: ignore[operator]


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    whole, stopped = a_network(), a_network()
    stepped(whole, Muon(whole.parameters(), **HOW), 5)  # type: ignore[arg-type]
    first = Muon(stopped.parameters(), **HOW)  # type: ignore[arg-type]
    stepped(stopped, first, 3)
    second = Muon(stopped.parameters(), **HOW)  # type: ignore[arg-type]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in (3, 4):
        second.zero_grad()
        stopped(torch.randn(16, 64, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters(), strict=True))


def test_an_optimizer_is_chosen_by_name() -> None:
    parameters = list(a_network().parameters())
    assert isinstance(Optimisation(steps=1, optimizer="muon").optimizer_of(parameters), Muon)
    assert type(Optimisation(steps=1).optimizer_of(parameters)) is torch.optim.AdamW
    with pytest.raises(TrainingRefused, match="optimizer is 'sgd'"):
        Optimisation(steps=1, optimizer="sgd")  # type: ignore[arg-type]
