"""How many frames a file has, without decoding them and without trusting it to be short."""

from __future__ import annotations

from PIL import Image, ImageFile

_EXTENSION, _PICTURE = 0x21, 0x2C


def count_frames(picture: ImageFile.ImageFile, data: bytes, most: int) -> int:
    """The number of frames, or `most` + 1 where there are more.

    Pillow counts a GIF's and a TIFF's frames by walking the whole file, which a hostile file makes very long.
    """
    if picture.format == "GIF":
        return _count_gif(data, most)
    if picture.format == "TIFF":
        return _count_by_seeking(picture, most)
    return min(int(getattr(picture, "n_frames", 1)), most + 1)


def _count_by_seeking(picture: Image.Image, most: int) -> int:
    """For formats where seeking reads a header and decodes nothing; leaves the picture at its first frame."""
    count = 1
    try:
        while count <= most:
            picture.seek(count)
            count += 1
    except EOFError:
        pass
    picture.seek(0)
    return count


def _count_gif(data: bytes, most: int) -> int:
    """Walk a GIF's blocks (GIF89a specification, sections 17-26); a file cut short has the frames seen so far."""
    count = 0
    at = 13 + _table_bytes(data[10])
    while at < len(data) and count <= most:
        kind = data[at]
        if kind == _EXTENSION:
            at = _after_blocks(data, at + 2)
        elif kind == _PICTURE and at + 9 < len(data):
            count += 1
            at = _after_blocks(data, at + 10 + _table_bytes(data[at + 9]) + 1)
        else:
            break
    return max(count, 1)


def _table_bytes(packed: int) -> int:
    """The size of a colour table, from the byte that announces it."""
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """The place after a chain of sub-blocks, each a length and so many bytes, ended by a length of none."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1
