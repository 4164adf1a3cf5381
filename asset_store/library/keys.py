"""How a key that someone else chose is shown."""

from __future__ import annotations

import unicodedata


def safe_key(key: str) -> str:
    """The key on one line for a terminal or a report, so that it cannot disguise itself.

    Control, format (bidirectional overrides, zero widths), private, unassigned and lone surrogate code points,
    line separators, spaces other than the plain one and the backslash are escaped as in Python; so are combining
    marks where the key is not in NFC, since it would look the same as its NFC twin.
    """
    decomposed = not unicodedata.is_normalized("NFC", key)
    return "".join(_shown(character, decomposed) for character in key)


def _shown(character: str, decomposed: bool) -> str:
    category = unicodedata.category(character)
    hidden = category[0] == "C" or (category[0] == "Z" and character != " ") or character == "\\"
    if hidden or (decomposed and category[0] == "M"):
        return character.encode("unicode_escape").decode()
    return character
