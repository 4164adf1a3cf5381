"""Pictures of version 2's world, as `ipadapter_engine.training.dataset` draws and keeps them."""

from __future__ import annotations

from functools import partial

from ipadapter_engine.training.dataset import World
from ipadapter_engine.training.dataset import rendered as drawn
from ipadapter_engine.training.studio2.drawing import render
from ipadapter_engine.training.studio2.mascots import random_staging, training_identities, truth

PICTURE_PX = 128
WORLD = World(render, random_staging, truth, training_identities)
rendered = partial(drawn, world=WORLD, size_px=PICTURE_PX)
