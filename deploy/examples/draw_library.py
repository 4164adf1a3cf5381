"""Draws the example library's pictures: three characters that the studio model was never trained on.

python deploy/examples/draw_library.py deploy/examples/lumen
"""

from __future__ import annotations

import sys
from pathlib import Path

from ipadapter_engine.training.mascots import Identity, Staging, held_out_identities, render

CHARACTERS = {
    "pip": Identity("star", "yellow", "pointy", "stripes", "scarf"),
    "mora": Identity("triangle", "blue", "long", "belly", "bowtie"),
    "bo": Identity("round", "green", "long", "belly", "scarf"),
    "tilda": Identity("square", "purple", "round", "spots", "nothing"),
}
PICTURES = {
    "front": Staging("front", "standing", "happy", "studio"),
    "side": Staging("side", "standing", "happy", "studio"),
    "waving": Staging("front", "waving", "happy", "studio"),
    "surprised": Staging("front", "standing", "surprised", "studio"),
}


def main() -> None:
    folder = Path(sys.argv[1])
    unseen = held_out_identities()
    for number, (name, who) in enumerate(CHARACTERS.items()):
        if who not in unseen:
            raise SystemExit(f"{name} is a character of the training set")
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, (title, staging) in enumerate(PICTURES.items()):
            render(who, staging, size_px=256, seed=100 * number + i).save(folder / name / f"{title}.png", optimize=True)


if __name__ == "__main__":
    main()
