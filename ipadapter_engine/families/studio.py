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
    schedule={
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "sample",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    },
    sized_by_unet=True,
    max_batch=16,
)
