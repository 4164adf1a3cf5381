"""A folder or an S3 prefix that deliveries are written to, by name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

from asset_store.blobs.s3_client import is_s3_url, open_client, parse_s3_url, told
from asset_store.errors import DeliveryFailed


class DeliveryPlace(Protocol):
    """Writes whole files; the same name with the same bytes may be written again."""

    def write(self, name: str, data: bytes, content_type: str) -> str:
        """Write a file and return its address; DeliveryFailed."""
        ...


class FolderPlace:
    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, data: bytes, content_type: str) -> str:
        target = self.root / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".delivery-", delete=False) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except OSError as error:
            raise DeliveryFailed(
                f"{target} cannot be written: {error.strerror or error}",
                "Check that the folder exists and may be written to.",
            ) from error
        return str(target.resolve())


class BucketPlace:
    def __init__(self, url: str, *, endpoint_url: str | None, region: str | None) -> None:
        self.place = parse_s3_url(url)
        self.endpoint_url = endpoint_url
        self.client = open_client(endpoint_url, region)

    def write(self, name: str, data: bytes, content_type: str) -> str:
        key = self.place.prefix + name
        with told(DeliveryFailed, self.place, self.endpoint_url):
            self.client.put_object(Bucket=self.place.bucket, Key=key, Body=data, ContentType=content_type)
        return f"s3://{self.place.bucket}/{key}"


def open_place(url: str, *, endpoint_url: str | None = None, region: str | None = None) -> DeliveryPlace:
    """The place that a URL names: s3://bucket/prefix, or a folder."""
    if is_s3_url(url):
        return BucketPlace(url, endpoint_url=endpoint_url, region=region)
    return FolderPlace(Path(url).expanduser())
