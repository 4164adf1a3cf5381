"""Draws the example library's pictures, four characters that the studio model was never trained on, and a skeleton a pose.

python deploy/examples/draw_library.py deploy/examples/lumen deploy/examples/poses
"""

from __future__ import annotations

import sys
from pathlib import Path

from ipadapter_engine.training.drawing import pose_picture, render
from ipadapter_engine.training.mascots import POSES, Identity, Staging, held_out_identities

CHARACTERS = {
    "pip": Identity("star", "yellow", "pointy", "dot", "belly", "charcoal", "hat", "crimson"),
    "mora": Identity("triangle", "blue", "pointy", "round", "dipped", "charcoal", "crown", "white"),
    "bo": Identity("round", "green", "long", "round", "spots", "charcoal", "cape", "crimson"),
    "tilda": Identity("square", "purple", "round", "sleepy", "spots", "mint", "cape", "navy"),
}
PICTURES = {
    "front": Staging("front", "standing", "happy", "studio"),
    "side": Staging("right", "standing", "happy", "studio"),
    "waving": Staging("front", "waving", "happy", "studio"),
    "surprised": Staging("front", "standing", "surprised", "studio"),
}


def main() -> None:
    folder, poses = map(Path, sys.argv[1:3])
    unseen = held_out_identities()
    for number, (name, who) in enumerate(CHARACTERS.items()):
        if who not in unseen:
            raise SystemExit(f"{name} is a character of the training set")
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, (title, staging) in enumerate(PICTURES.items()):
            render(who, staging, size_px=256, seed=100 * number + i).save(folder / name / f"{title}.png", optimize=True)
    poses.mkdir(parents=True, exist_ok=True)
    for pose in POSES:
        pose_picture(Staging(pose=pose), size_px=256, seed=1).save(poses / f"{pose}.png", optimize=True)


if __name__ == "__main__":
    main()
