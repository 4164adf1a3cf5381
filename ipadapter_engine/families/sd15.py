"""Stable Diffusion 1.5 (Rombach et al., 2022, arXiv:2112.10752)."""

from ipadapter_engine.emphasis import SD15_PRESETS
from ipadapter_engine.families import Family

SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    size_px=512,
    steps=30,
    guidance=7.5,
    scheduler="dpmpp_2m",
    schedulers=("ddim", "dpmpp_2m", "euler", "lcm", "tcd", "unipc"),
    presets=SD15_PRESETS,
)
