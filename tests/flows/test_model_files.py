"""Which files of a folder belong to a model, by their names."""

from __future__ import annotations

from flows.model_files import chosen

FLUX = [
    "model_index.json", "flux1-dev.safetensors", "ae.safetensors", "README.md", "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")),
    *(f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2", "text_encoder_3")),
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")),
    *(f"{part}/tokenizer.json" for part in ("tokenizer", "tokenizer_2", "tokenizer_3")), "processor/tokenizer.json",
    "safety_checker/model.safetensors",
]  # fmt: skip


def test_every_part_of_a_family_is_kept_and_nothing_else() -> None:
    left_out = set(FLUX) - set(chosen(FLUX, "here"))
    assert left_out == {"flux1-dev.safetensors", "ae.safetensors", "safety_checker/model.safetensors"}


def test_what_one_file_of_weights_does_not_tell_is_kept_beside_it() -> None:
    for told in ("adapter_config.json", "image_encoder.txt"):
        weights = "adapter_model.safetensors"
        assert set(chosen([weights, told, "events.log"], "here")) == {weights, told}
