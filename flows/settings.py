"""Every setting, read here and nowhere else: ONMODEL_HOME, ONMODEL_DATABASE__URL, ONMODEL_BLOBS__URL, …

No secret has a default. S3 credentials come from boto3's own chain (AWS_ACCESS_KEY_ID, profiles, roles).
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from asset_store.errors import SettingsInvalid


class DatabaseSettings(BaseModel, frozen=True, extra="forbid"):
    url: str | None = Field(None, description="any PostgreSQL 15 or newer with pgvector; empty: the embedded one")


class BlobSettings(BaseModel, frozen=True, extra="forbid"):
    url: str | None = Field(None, description="s3://bucket/prefix or a folder; empty: a folder in ONMODEL_HOME")


class S3Settings(BaseModel, frozen=True, extra="forbid"):
    endpoint_url: str | None = Field(None, description="address of an S3 server that is not AWS")
    region: str | None = None


class EngineSettings(BaseModel, frozen=True, extra="forbid"):
    base: Path | None = Field(None, description="a diffusers folder or one file; empty: the embedded studio model")
    tokenizer: Path | None = Field(None, description="a folder with CLIP's vocabulary, for a base that is one file")
    adapter: Path | None = Field(None, description="an IP-Adapter file in the official layout")
    encoder: Path | None = Field(None, description="the image encoder's folder")
    controls: dict[str, Path] = Field(
        {}, description="ControlNets by kind, folders or files, besides those in the base"
    )
    adapters: dict[str, Path] = Field({}, description="files of further adapters by name, such as style")
    words: dict[str, Path] = Field({}, description="files of taught words by name, written <name> in prompts")
    loras: dict[str, Path] = Field({}, description="files of LoRAs that briefs may name, such as lcm")
    depth_model: Path | None = Field(None, description="a depth estimation model's folder, to extract depth controls")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    max_batch: int | None = Field(None, ge=1, le=256)
    compiled: bool = Field(False, description="compile the UNet's blocks: minutes at first, then quicker; for GPUs")
    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = Field(
        "auto", description="torch's kernel of it"
    )
    offload: bool = Field(False, description="only the part at work lies on the GPU, for small cards")
    gpus: int = Field(1, ge=1, le=10_000, description="of all machines: so many trainings and runs share them at once")


class IngestSettings(BaseModel, frozen=True, extra="forbid"):
    max_file_mb: int = Field(64, ge=1, le=1024)
    max_megapixels: int = Field(64, ge=1, le=1000)
    batch: int = Field(32, ge=1, le=512, description="pictures embedded in one forward pass")
    readers: int = Field(8, ge=1, le=64, description="downloads and decodings under way at once")


class ScheduleSettings(BaseModel, frozen=True, extra="forbid"):
    """The library that `python -m flows.deployments` ingests by a cron line; a brief says itself when it runs."""

    library: str | None = Field(None, description="the library that the schedule ingests")
    library_cron: str | None = None
    time_zone: str = "UTC"


class SmtpSettings(BaseModel, frozen=True, extra="forbid"):
    """The mail server that subscriptions by e-mail go through."""

    host: str | None = None
    port: int = Field(587, ge=1, le=65535)
    starttls: bool = True
    user: str | None = None
    password: SecretStr | None = None
    sender: str = "onmodel@localhost"


class TellingSettings(BaseModel, frozen=True, extra="forbid"):
    address: str = Field("", description="where the pages are, for links in messages")
    allow_private: bool = Field(False, description="tell web hooks at private addresses, too, and without TLS")


class OidcSettings(BaseModel, frozen=True, extra="forbid"):
    """The company's OpenID Connect provider; without an issuer people sign in by links alone."""

    issuer: str | None = Field(None, description="the provider's address, exactly as its discovery document names it")
    client_id: str | None = None
    client_secret: SecretStr | None = Field(None, description="none for a public client")
    name: str = Field("your company", min_length=1, max_length=60, description='behind "Sign in with"')
    scopes: str = "openid email profile"
    admit: str = Field("", description="e-mail domains, by commas, whose people are added when they first sign in")

    @property
    def domains(self) -> frozenset[str]:
        return frozenset(re.split(r"[\s,]+", self.admit.strip().lower())) - {""}

    @field_validator("issuer")
    @classmethod
    def _is_an_issuer(cls, issuer: str | None) -> str | None:
        """Discovery 1.0, section 3: https, neither query nor fragment; http only where nobody else can listen."""
        if not issuer:
            return None
        parts = urlsplit(issuer)
        if not is_protected(issuer) or parts.username is not None or parts.query or parts.fragment:
            raise ValueError("is https://…, without query or fragment; http only on the loopback interface")
        return issuer

    @field_validator("client_secret")
    @classmethod
    def _is_a_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        return secret if secret is not None and secret.get_secret_value() else None

    @field_validator("scopes")
    @classmethod
    def _has_openid(cls, scopes: str) -> str:
        if "openid" not in scopes.split():
            raise ValueError("has openid among them")
        return " ".join(scopes.split())

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.issuer and not self.client_id:
            raise ValueError("an issuer needs a client_id")
        if not all(re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", domain) for domain in self.domains):
            raise ValueError("admit names e-mail domains such as lumen.example")
        return self


def is_protected(url: str) -> bool:
    """Whether nobody on the way reads or changes what is sent there: TLS, or the loopback interface."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False
    return parts.scheme == "https" and bool(host)


class DeliverySettings(BaseModel, frozen=True, extra="forbid"):
    places: dict[str, str] = Field(
        {}, description="where /v1 and the pages may release to, by name: s3://… or a folder"
    )


class QuotaSettings(BaseModel, frozen=True, extra="forbid"):
    """Pictures that runs may ask for within a day: by `/v1`, the pages and agents; the terminal's are counted, not refused."""

    brand: int | None = Field(5000, ge=0, description="of each brand; empty: as many as they like")
    asker: int | None = Field(1000, ge=0, description="of each person and key; empty: as many as they like")


class PrefectSettings(BaseModel, frozen=True, extra="forbid"):
    """Of Prefect's server, besides its own settings (PREFECT_…)."""

    ui_url: str | None = Field(None, description="where its UI is; unset: PREFECT_UI_URL, or beside PREFECT_API_URL")
    alerts_url: SecretStr | None = Field(None, description="a webhook or chat that is told of runs that failed")


class RetentionSettings(BaseModel, frozen=True, extra="forbid"):
    """How long pictures are kept; empty: for ever."""

    rejected_days: int | None = Field(
        None, ge=1, le=36500, description="after so many days rejected, a picture's bytes are removed"
    )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ONMODEL_", env_nested_delimiter="__", frozen=True, extra="ignore")

    home: Path = Field(default_factory=lambda: Path.home() / ".onmodel")
    database: DatabaseSettings = DatabaseSettings(url=None)
    blobs: BlobSettings = BlobSettings(url=None)
    s3: S3Settings = S3Settings(endpoint_url=None)
    engine: EngineSettings = EngineSettings(base=None, adapter=None, encoder=None, gpus=1)
    engines: dict[str, EngineSettings] = Field({}, description="further engines by the name that briefs give them")
    ingest: IngestSettings = IngestSettings()
    schedule: ScheduleSettings = ScheduleSettings(library=None)
    smtp: SmtpSettings = SmtpSettings(port=587)
    delivery: DeliverySettings = DeliverySettings(places={})
    quota: QuotaSettings = QuotaSettings(brand=5000, asker=1000)
    retention: RetentionSettings = RetentionSettings(rejected_days=None)
    prefect: PrefectSettings = PrefectSettings(ui_url=None, alerts_url=None)
    telling: TellingSettings = TellingSettings(address="", allow_private=False)
    oidc: OidcSettings = OidcSettings(issuer=None)

    @property
    def blobs_url(self) -> str:
        return self.blobs.url or str(self.home / "blobs")


def load_settings() -> Settings:
    """The settings of this environment; SettingsInvalid names every variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        told = [
            f"{_variable(e['loc'])}: {e['msg'].lower()}" for e in error.errors(include_input=False, include_url=False)
        ]
    except SettingsError as error:
        told = [str(error)]
    raise SettingsInvalid("; ".join(told), "Correct or unset it; README.md lists the settings.")


def _variable(place: tuple[int | str, ...]) -> str:
    return "ONMODEL_" + "__".join(str(p).upper() for p in place)


def configure_prefect(settings: Settings, *, verbose: bool = False, hub: bool = False) -> None:
    """Prefect's own settings, before it is imported: its data beside ours, quiet unless asked, no telemetry.

    `hub`: whether this command may fetch models; no other asks one. Whatever the user has set for Prefect stands. Without PREFECT_API_URL each command uses Prefect's embedded
    server over the database in ONMODEL_HOME/prefect, which `prefect server start` shows in the browser.
    """
    defaults = {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "INFO" if verbose else "ERROR",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    if not hub:  # models come from paths that are configured, never from a hub at run time
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def prefect_api() -> str | None:
    """The address of the Prefect server that the user has named, if any."""
    return os.environ.get("PREFECT_API_URL") or None


def prefect_ui(settings: Settings) -> str | None:
    """The address of Prefect's UI, without a slash at its end; None where there is none, or nobody knows."""
    if settings.prefect.ui_url is not None:
        return settings.prefect.ui_url.rstrip("/") or None
    if named := os.environ.get("PREFECT_UI_URL"):
        return named.rstrip("/")
    api = prefect_api()
    return api.rstrip("/").removesuffix("/api") if api is not None and api.rstrip("/").endswith("/api") else None
