"""The database's tables, one module a concern."""

from asset_store.tables.assets import (
    APPEND_ONLY,
    Asset,
    AssetVersion,
    AuditRow,
    Check,
    CheckOutcome,
    Decision,
    Delivery,
    Descent,
    LineageRecord,
    Verdict,
)
from asset_store.tables.base import Base
from asset_store.tables.library import (
    Brand,
    Character,
    Embedding,
    Encoder,
    Library,
    Quarantined,
    Reference,
    ReferenceState,
)
from asset_store.tables.work import Campaign, Job, JobState

__all__ = [
    "APPEND_ONLY",
    "Asset",
    "AssetVersion",
    "AuditRow",
    "Base",
    "Brand",
    "Campaign",
    "Character",
    "Check",
    "CheckOutcome",
    "Decision",
    "Delivery",
    "Descent",
    "Embedding",
    "Encoder",
    "Job",
    "JobState",
    "Library",
    "LineageRecord",
    "Quarantined",
    "Reference",
    "ReferenceState",
    "Verdict",
]
