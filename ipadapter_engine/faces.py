"""Faces in pictures, as FaceID adapters read them: insightface's ArcFace embeddings, where it is installed.

It is an extra, and its published weights are licensed for non-commercial research only, so neither comes with Onmodel,
and nothing is downloaded. Whoever has embeddings of faces from elsewhere gives them to a reference as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ipadapter_engine.errors import CheckpointRefused, RequestRefused

LICENCE = "insightface's published weights are for non-commercial research only"
CROP_PX = 224  # the aligned face that FaceID Plus adapters see through CLIP


@dataclass(frozen=True, eq=False)
class Face:
    """embedding float32 (512,), of any length; crop uint8 (224, 224, 3), RGB, turned upright; box left, top, right,
    bottom in px; certainty of the detector, 0 to 1."""

    embedding: np.ndarray
    crop: np.ndarray
    box: tuple[float, float, float, float]
    certainty: float

    @property
    def unit(self) -> np.ndarray:
        """The embedding with length 1, which all FaceID adapters read but the one called unnorm."""
        return self.embedding / np.linalg.norm(self.embedding)

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)


class FaceFinder:
    """Insightface's detector and ArcFace, from weights on this machine."""

    def __init__(self, app: Any, align: Any) -> None:
        self._app, self._align = app, align

    @classmethod
    def open(cls, root: Path, *, name: str = "buffalo_l", device: str = "cpu") -> FaceFinder:
        """root: a folder with `models/<name>/*.onnx`. Raises CheckpointRefused without the extra or the weights."""
        try:
            from insightface.app import FaceAnalysis
            from insightface.utils import face_align
        except ImportError:
            raise CheckpointRefused(
                "faces cannot be embedded: insightface is not installed",
                f"pip install 'onmodel[face]', or give references the embeddings of faces; {LICENCE}",
            ) from None
        if not list((root / "models" / name).glob("*.onnx")):
            raise CheckpointRefused(
                f"there are no face models at {root / 'models' / name}",
                f"put the .onnx files of {name} there yourself; {LICENCE}",
            )
        providers = ["CUDAExecutionProvider"] * device.startswith("cuda") + ["CPUExecutionProvider"]
        app = FaceAnalysis(name=name, root=str(root), providers=providers)
        app.prepare(ctx_id=0 if device.startswith("cuda") else -1, det_size=(640, 640))
        return cls(app, face_align)

    def find(self, picture: Image.Image) -> list[Face]:
        """All faces of a picture, the largest first."""
        bgr = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
        found = [
            Face(
                np.asarray(f.embedding, dtype=np.float32),
                np.ascontiguousarray(self._align.norm_crop(bgr, landmark=f.kps, image_size=CROP_PX)[..., ::-1]),
                (float(f.bbox[0]), float(f.bbox[1]), float(f.bbox[2]), float(f.bbox[3])),
                float(f.det_score),
            )
            for f in self._app.get(bgr)
        ]
        return sorted(found, key=lambda face: -face.area)

    def get(self, picture: Image.Image) -> Face:
        """The largest face. Raises RequestRefused where there is none."""
        faces = self.find(picture)
        if not faces:
            raise RequestRefused(
                "no face is found in a reference", "show a picture whose face is larger and turned to the camera"
            )
        return faces[0]
