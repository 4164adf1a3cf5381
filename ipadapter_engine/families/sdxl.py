"""SDXL (Podell et al., 2023, arXiv:2307.01952)."""

from ipadapter_engine.emphasis import SDXL_PRESETS
from ipadapter_engine.families import Family

SDXL = Family(
    name="sdxl",
    title="SDXL",
    size_px=1024,
    steps=30,
    guidance=5.0,
    scheduler="euler",
    schedulers=("ddim", "dpmpp_2m", "euler", "lcm", "tcd", "unipc"),
    presets=SDXL_PRESETS,
    text_layer=-2,
    size_conditioned=True,
    max_batch=4,
)
