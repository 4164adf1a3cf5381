"""The database's tables, one module a concern."""

from asset_store.tables import assets, models, retention, reviewing
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
    PictureEmbedding,
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
from asset_store.tables.people import (
    Answered,
    ApiKey,
    BrowserSession,
    Grant,
    Person,
    Role,
    SavedFilter,
    ShareLink,
    SignInAttempt,
    SignInLink,
)
from asset_store.tables.retention import Removal, RemovedBlob
from asset_store.tables.reviewing import Assignment, Comment, Proposal, ProposalState, Retake
from asset_store.tables.telling import Format, Subscription
from asset_store.tables.work import Campaign, CampaignSchedule, Job, JobState, Run, RunKind, RunState

APPEND_ONLY = assets.APPEND_ONLY + models.APPEND_ONLY + reviewing.APPEND_ONLY + retention.APPEND_ONLY

__all__ = [
    "APPEND_ONLY",
    "Answered",
    "ApiKey",
    "Asset",
    "AssetVersion",
    "Assignment",
    "AuditRow",
    "Base",
    "Brand",
    "BrowserSession",
    "Campaign",
    "CampaignSchedule",
    "Character",
    "Check",
    "CheckOutcome",
    "Comment",
    "Decision",
    "Delivery",
    "Descent",
    "Embedding",
    "Encoder",
    "Evaluation",
    "Format",
    "Grant",
    "IdentityThreshold",
    "Job",
    "JobState",
    "Library",
    "LineageRecord",
    "ModelKind",
    "ModelReference",
    "Person",
    "PictureEmbedding",
    "Preset",
    "Proposal",
    "ProposalState",
    "Quarantined",
    "Reference",
    "ReferenceState",
    "Removal",
    "RemovedBlob",
    "Retake",
    "Role",
    "Run",
    "RunKind",
    "RunState",
    "SavedFilter",
    "ShareLink",
    "SignInAttempt",
    "SignInLink",
    "Subscription",
    "TrainedModel",
    "Verdict",
]
