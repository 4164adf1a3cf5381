"""The database's tables, one module a concern."""

from asset_store.tables import assets, models
from asset_store.tables.assets import (
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
from asset_store.tables.models import (
    Evaluation,
    IdentityThreshold,
    ModelKind,
    ModelReference,
    Preset,
    TrainedModel,
)
from asset_store.tables.work import Campaign, Job, JobState

APPEND_ONLY = assets.APPEND_ONLY + models.APPEND_ONLY

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
    "Evaluation",
    "IdentityThreshold",
    "Job",
    "JobState",
    "Library",
    "LineageRecord",
    "ModelKind",
    "ModelReference",
    "Preset",
    "Quarantined",
    "Reference",
    "ReferenceState",
    "TrainedModel",
    "Verdict",
]
