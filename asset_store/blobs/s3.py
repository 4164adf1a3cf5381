"""Blobs in S3 or a server that speaks it: put only where absent, checked on upload, verified on download."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from asset_store.blobs.address import KEY_ROOT, Sha256, blob_key, probe, sha256_in_key, sha256_of, verified
from asset_store.blobs.s3_client import S3Place, answer_code, answer_status, describe_place, open_client, told
from asset_store.errors import BlobMissing, BlobStoreUnreachable

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef, PutObjectRequestTypeDef

MULTIPART_OVER_BYTES = 16 * 1024 * 1024
PUT_ATTEMPTS = 6
READ_ATTEMPTS = 3
_BROKEN_BODY = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, ConnectionClosedError)
# Two threads a put: a caller who wants more puts several blobs at once.
_TRANSFER = TransferConfig(
    multipart_threshold=MULTIPART_OVER_BYTES, multipart_chunksize=MULTIPART_OVER_BYTES, max_concurrency=2
)


class S3Blobs:
    """A BlobStore under a prefix of a bucket. Safe for many threads.

    Servers differ: where a conditional put is not implemented, or is not atomic, the worst that happens is that
    the same bytes are written twice.
    """

    def __init__(self, place: S3Place, *, endpoint_url: str | None = None, region: str | None = None) -> None:
        self.place = place
        self.endpoint_url = endpoint_url
        self._client = open_client(endpoint_url, region)
        self._can_put_conditionally = True
        self._bucket_seen = False

    def put(self, data: bytes, content_type: str = "application/octet-stream") -> Sha256:
        """See BlobStore.put. Over 16 MiB in parts; what is there already is then looked for before, not by, the put.

        An object already there is taken as whole if its size, and its sha256 or our own note of it, are right:
        it is not downloaded. Anything else there is written over.
        """
        sha256 = sha256_of(data)
        with self._told():
            if len(data) > MULTIPART_OVER_BYTES:
                if not self._holds(sha256, len(data)):
                    self._put_in_parts(sha256, data, content_type)
            else:
                self._put_at_once(sha256, data, content_type)
        return sha256

    def get(self, sha256: Sha256) -> bytes:
        """See BlobStore.get; a download that breaks off is begun again, three times in all."""
        with self._told():
            try:
                data = self._download(self._key(sha256))
            except ClientError as error:
                if answer_code(error) in ("NoSuchKey", "404"):
                    raise BlobMissing(sha256, self.describe()) from error
                raise
        return verified(data, sha256, self.describe())

    def has(self, sha256: Sha256) -> bool:
        """See BlobStore.has."""
        with self._told():
            return self._head(sha256) is not None

    def iter_keys(self) -> Iterator[Sha256]:
        """See BlobStore.iter_keys; pages of a thousand."""
        root = self.place.prefix + KEY_ROOT
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket, Prefix=root)
        with self._told():
            for page in pages:
                for listed in page.get("Contents", []):
                    if sha256 := sha256_in_key(listed["Key"].removeprefix(root)):
                        yield sha256

    def delete(self, sha256: Sha256) -> None:
        """See BlobStore.delete. In a bucket with versions the old version stays until its lifecycle rule ends it."""
        with self._told():
            self._client.delete_object(Bucket=self.place.bucket, Key=self._key(sha256))

    def describe(self) -> str:
        """`s3://bucket/prefix`, with the endpoint's host where it is not AWS."""
        return describe_place(self.place, self.endpoint_url)

    def check(self) -> None:
        """See BlobStore.check."""
        sha256 = self.put(probe())
        try:
            self.get(sha256)
        except BlobMissing as error:
            raise BlobStoreUnreachable(
                f"{self.describe()} lost a blob right after it was written",
                "Use a store that is consistent read after write, as S3 itself is.",
            ) from error
        self.delete(sha256)

    def _key(self, sha256: Sha256) -> str:
        return self.place.prefix + blob_key(sha256)

    def _download(self, key: str) -> bytes:
        """boto3 retries a request, but not a body that breaks off half way."""
        for _ in range(READ_ATTEMPTS - 1):
            try:
                return self._read(key)
            except _BROKEN_BODY:
                continue
        return self._read(key)

    def _read(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self.place.bucket, Key=key)["Body"].read()

    def _told(self) -> AbstractContextManager[None]:
        return told(BlobStoreUnreachable, self.place, self.endpoint_url)

    def _head(self, sha256: Sha256) -> HeadObjectOutputTypeDef | None:
        try:
            return self._client.head_object(Bucket=self.place.bucket, Key=self._key(sha256), ChecksumMode="ENABLED")
        except ClientError as error:
            if answer_status(error) != 404:
                raise
        # The answer to HEAD has no body, so a missing blob and a missing bucket look the same: ask once.
        if not self._bucket_seen:
            self._client.list_objects_v2(Bucket=self.place.bucket, Prefix=self.place.prefix, MaxKeys=1)
            self._bucket_seen = True
        return None

    def _holds(self, sha256: Sha256, size_bytes: int) -> bool:
        """Whether the object there is, by all the server tells, this blob; a put of other bytes loses our note."""
        head = self._head(sha256)
        if head is None or head["ContentLength"] != size_bytes:
            return False
        checksum = head.get("ChecksumSHA256", "")
        if checksum and "-" not in checksum and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            return checksum == _checksum(sha256)
        return head.get("Metadata", {}).get("sha256") == sha256

    def _put_at_once(self, sha256: Sha256, data: bytes, content_type: str) -> None:
        request: PutObjectRequestTypeDef = {
            "Bucket": self.place.bucket,
            "Key": self._key(sha256),
            "Body": data,
            "ContentType": content_type,
            "ChecksumSHA256": _checksum(sha256),
            "Metadata": {"sha256": sha256},
        }
        conditional: PutObjectRequestTypeDef = {**request, "IfNoneMatch": "*"}
        for attempt in range(PUT_ATTEMPTS - 1):
            if not self._can_put_conditionally:
                break
            try:
                self._client.put_object(**conditional)
                return
            except ClientError as error:
                code = answer_code(error)
                if code in ("PreconditionFailed", "412"):
                    if self._holds(sha256, len(data)):
                        return
                    break  # damaged, or deleted since: write it whatever is there
                if code in ("NotImplemented", "501"):
                    self._can_put_conditionally = False
                elif code in ("ConditionalRequestConflict", "409"):
                    time.sleep(0.05 * 2**attempt)
                else:
                    raise
        self._client.put_object(**request)

    def _put_in_parts(self, sha256: Sha256, data: bytes, content_type: str) -> None:
        extra: dict[str, Any] = {
            "ContentType": content_type,
            "ChecksumAlgorithm": "SHA256",
            "Metadata": {"sha256": sha256},
        }
        self._client.upload_fileobj(
            io.BytesIO(data), self.place.bucket, self._key(sha256), ExtraArgs=extra, Config=_TRANSFER
        )


def _checksum(sha256: Sha256) -> str:
    """S3 writes a checksum in base64."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()
