"""Automatic tests of a new picture, before a person looks at it."""

from asset_store.checks.picture import (
    NAMES,
    POLICY_VERSION,
    CheckPolicy,
    check_blank,
    check_decodes,
    check_duplicate,
    check_identity,
    check_palette,
    perceptual_hash,
)

__all__ = [
    "NAMES",
    "POLICY_VERSION",
    "CheckPolicy",
    "check_blank",
    "check_decodes",
    "check_duplicate",
    "check_identity",
    "check_palette",
    "perceptual_hash",
]
