"""Stable Diffusion 1.5 (Rombach et al., 2022, arXiv:2112.10752)."""

from ipadapter_engine.emphasis import SD15_PRESETS
from ipadapter_engine.families import Family, Original

SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    size_px=512,
    steps=30,
    guidance=7.5,
    scheduler="dpmpp_2m",
    schedulers=("ddim", "dpmpp_2m", "euler", "lcm", "tcd", "unipc"),
    schedule={
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
    },
    presets=SD15_PRESETS,
    original=Original(
        scaling_factor=0.18215,
        activations=("quick_gelu",),
        heads=8,
    ),
)
