"""SDXL (Podell et al., 2023, arXiv:2307.01952)."""

from ipadapter_engine.emphasis import SDXL_PRESETS
from ipadapter_engine.families import Family, Original

SDXL = Family(
    name="sdxl",
    title="SDXL",
    size_px=1024,
    steps=30,
    guidance=5.0,
    scheduler="euler",
    schedulers=("ddim", "dpmpp_2m", "euler", "lcm", "tcd", "unipc"),
    schedule={
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "interpolation_type": "linear",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    presets=SDXL_PRESETS,
    text_layer=-2,
    size_conditioned=True,
    max_batch=4,
    original=Original(
        scaling_factor=0.13025,
        activations=("quick_gelu", "gelu"),
        zero_empty_prompt=True,
    ),
)
