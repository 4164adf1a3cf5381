"""The embedded studio model: mascots, trained by `ipadapter_engine.training.studio_model`."""

from ipadapter_engine.families import Family

STUDIO = Family(
    name="studio",
    title="Onmodel studio model",
    size_px=128,
    steps=8,
    guidance=1.5,
    scheduler="ddim",
    schedulers=("ddim", "dpmpp_2m", "euler"),
    sized_by_unet=True,
    max_batch=16,
)
