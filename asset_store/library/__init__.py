"""A reference library: where it lies, and what its library.yaml says."""

from asset_store.library.keys import safe_key
from asset_store.library.library_file import missing, parse_library, unlisted
from asset_store.library.models import Brand, Character, LibraryFile, Licence, ReferenceEntry, ReferenceRole
from asset_store.library.sources import FolderSource, LibrarySource, S3Source, SourceObject, open_source

__all__ = [
    "Brand",
    "Character",
    "FolderSource",
    "LibraryFile",
    "LibrarySource",
    "Licence",
    "ReferenceEntry",
    "ReferenceRole",
    "S3Source",
    "SourceObject",
    "missing",
    "open_source",
    "parse_library",
    "safe_key",
    "unlisted",
]
