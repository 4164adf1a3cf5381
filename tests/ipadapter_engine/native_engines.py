"""Every native family opened once on its tiny folder, and references of the size that tiny models read quickly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.native.engine import NativeEngine
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine import tiny_native

SHRUNK = 64  # times fewer pixels than the megapixel that Kontext's and Qwen's pipelines scale references to
WITH_ADAPTER = {"flux-adapter": "flux", "sd3-adapter": "sd3"}


class NativeEngines:
    """Folders and engines by the name of their family; `flux-adapter` and `sd3-adapter` have one loaded."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, NativeEngine] = {}

    def folder(self, name: str) -> Path:
        folder = self._root / WITH_ADAPTER.get(name, name)
        if not folder.exists():
            tiny_native.WRITERS[folder.name](folder)
        return folder

    def paths(self, name: str) -> CheckpointPaths:
        base = self.folder(name)
        if name == "flux-adapter":
            file = tiny_native.write_flux_adapter(self._root / "flux.safetensors")
            return CheckpointPaths(base, file, tiny.write_encoder(self._root / "clip"))
        if name == "sd3-adapter":
            file = tiny_native.write_sd3_adapter(self._root / "sd3.safetensors")
            return CheckpointPaths(base, file, tiny_native.write_siglip(self._root / "siglip"))
        return CheckpointPaths(base)

    def __call__(self, name: str) -> NativeEngine:
        if name not in self._open:
            self._open[name] = NativeEngine.open(self.paths(name))
        return self._open[name]


@contextmanager
def small_references() -> Iterator[None]:
    """diffusers' pipelines scale references to a megapixel; theirs and ours scale them to 128 px a side here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(112, 144), (128, 128), (144, 112)])
        for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
            whole = module.calculate_dimensions
            patch.setattr(module, "calculate_dimensions", lambda area, ratio, whole=whole: whole(area / SHRUNK, ratio))
        patch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", SHRUNK * 64**2)
        yield
