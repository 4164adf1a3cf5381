"""Families that diffusers' own pipelines make, behind the same request: FLUX.1, Stable Diffusion 3, and those that read
references themselves, FLUX.1 Kontext, FLUX.2 and Qwen-Image-Edit."""
