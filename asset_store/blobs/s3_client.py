"""How S3 is spoken to: the URL, the client, and its errors in words a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3.session
from boto3.exceptions import Boto3Error
from botocore import exceptions as trouble
from botocore.config import Config

from asset_store.errors import PlaceInvalid, StoreError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
MAX_ATTEMPTS = 5
MAX_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket and a prefix in it; the prefix is empty or ends with a slash."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def is_s3_url(url: str) -> bool:
    """Whether the URL says S3; scheme names have no case."""
    return url[:5].lower() == "s3://"


def parse_s3_url(url: str) -> S3Place:
    """`s3://bucket/some/prefix` in its parts; PlaceInvalid where no bucket is named."""
    bucket, _, prefix = url[5:].partition("/")
    if not is_s3_url(url) or not bucket:
        raise PlaceInvalid(f"{url!r} names no bucket", "Write s3://bucket or s3://bucket/prefix.")
    prefix = prefix.strip("/")
    return S3Place(bucket, f"{prefix}/" if prefix else "")


def describe_place(place: S3Place, endpoint_url: str | None) -> str:
    """The place for a person: the endpoint is named where it is not AWS, without any user name or password."""
    if endpoint_url is None:
        return str(place)
    host = urlsplit(endpoint_url).netloc.rpartition("@")[2]
    return f"{place} at {host or 'the endpoint'}"


def open_client(endpoint_url: str | None, region: str | None) -> S3Client:
    """A client with standard retries; safe to share between threads. Credentials from boto3's own chain.

    Path-style addresses where an endpoint is given, since most servers other than AWS have no name per bucket;
    checksums only where asked for, since they do not know the newer kinds. PlaceInvalid for a malformed endpoint.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "max_attempts": MAX_ATTEMPTS},
        max_pool_connections=MAX_CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint_url else "auto"},
    )
    try:
        # A session of our own: boto3's default one is shared and not safe to make clients from in threads.
        return boto3.session.Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    except (ValueError, trouble.BotoCoreError) as error:
        raise PlaceInvalid(
            f"no S3 client can be made: {error}", "Check the endpoint URL, the region and AWS_PROFILE."
        ) from error


def answer_code(error: trouble.ClientError) -> str:
    """The server's error code, such as `NoSuchKey`; for an answer without a body, its HTTP status."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(answer_status(error))


def answer_status(error: trouble.ClientError) -> int:
    """The HTTP status of the server's answer; 0 where there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def told(as_error: type[StoreError], place: S3Place, endpoint_url: str | None) -> Iterator[None]:
    """Turn what boto3 raises into `as_error(message, next_step)`."""
    try:
        yield
    except (trouble.BotoCoreError, trouble.ClientError, Boto3Error) as error:
        message, next_step = explain(error, place, endpoint_url)
        raise as_error(message, next_step) from error


def explain(error: Exception, place: S3Place, endpoint_url: str | None) -> tuple[str, str]:
    """What went wrong with this place, and what to do about it."""
    where = describe_place(place, endpoint_url)
    if isinstance(error, trouble.ClientError):
        return _explain_answer(error, where, place)
    if isinstance(error, (trouble.NoCredentialsError, trouble.PartialCredentialsError, trouble.ProfileNotFound)):
        return (
            f"no usable credentials for {where}: {error}",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached.",
        )
    if isinstance(error, (trouble.CredentialRetrievalError, trouble.TokenRetrievalError, trouble.SSOError)):
        return f"the credentials for {where} cannot be fetched: {error}", "Sign in again, for example `aws sso login`."
    if isinstance(error, trouble.ParamValidationError):
        return f"{where} is not a valid place: {error}", "Check the bucket's name in the URL."
    if isinstance(error, (trouble.HTTPClientError, trouble.ConnectionError)):
        return (
            f"{where} does not answer: {error}",
            "Check the endpoint URL and the region, that the server runs, and the network and proxy between.",
        )
    return f"{where} cannot be used: {error}", "Check the S3 settings, then run `onmodel doctor`."


def _explain_answer(error: trouble.ClientError, where: str, place: S3Place) -> tuple[str, str]:
    code = answer_code(error)
    if code == "NoSuchBucket":
        return f"{where}: there is no bucket {place.bucket!r}", "Create the bucket, or correct its name in the URL."
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"):
        return (
            f"{where} does not accept the credentials ({code})",
            "Check the access key and its secret, whether a token has expired, and this machine's clock.",
        )
    if code in ("AccessDenied", "403", "AllAccessDisabled"):
        return (
            f"{where} denies {error.operation_name} ({code})",
            "Allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on this bucket and prefix.",
        )
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IllegalLocationConstraintException"):
        return f"{where} is in another region ({code})", "Set the bucket's own region."
    return f"{where} answered {code} to {error.operation_name}: {error}", "Check the S3 server's state and its log."
