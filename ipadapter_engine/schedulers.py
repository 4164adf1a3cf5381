"""The schedulers that take the steps, set up with a base's noise schedule, and the hash of a schedule of its own."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging

from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.requests import BatchKey

if TYPE_CHECKING:
    from ipadapter_engine.checkpoints import Checkpoint

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
    "unipc": UniPCMultistepScheduler,
}


def scheduler_for(checkpoint: Checkpoint, key: BatchKey) -> Any:
    """A scheduler with its steps set; raises RequestRefused for a number of steps that it cannot take."""
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # what another scheduler's configuration says besides is not for this one
    try:
        scheduler = SCHEDULERS[key.scheduler].from_config(checkpoint.scheduler_config)
    finally:
        logging.set_verbosity(told)
    try:
        scheduler.set_timesteps(key.steps, device=checkpoint.device)
    except ValueError as error:
        raise RequestRefused(
            f"the scheduler {key.scheduler} cannot take {key.steps} steps: {str(error).splitlines()[0]}",
            "ask for fewer steps, or another scheduler",
        ) from None
    return scheduler


def sha256_of_own(config: Mapping[str, Any], family: Family) -> str | None:
    """The hash of a folder's noise schedule; None where it is the family's, for every scheduler that the family knows.

    No weight says it, and a picture depends on it as on them.
    """
    known = [SCHEDULERS[name] for name in family.schedulers]
    if all(_read_by(kind, config) == _read_by(kind, family.schedule) for kind in known):
        return None
    return sha256_of_schedule(config)


def sha256_of_schedule(config: Mapping[str, Any]) -> str:
    """The hash of what a scheduler_config.json says, whoever wrote it and in whatever order."""
    said = {k: v for k, v in config.items() if not k.startswith("_")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _read_by(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler makes of a configuration: what it knows of it, and its defaults for the rest."""
    arguments = inspect.signature(kind.__init__).parameters.values()
    return {a.name: config.get(a.name, a.default) for a in arguments if a.name not in ("self", "kwargs")}
