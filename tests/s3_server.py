"""An S3 server on the loopback for the tests of everything that speaks S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3.session
import pytest
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """Where the server answers; `client()` is plain boto3, to prepare and to damage things from outside."""

    endpoint_url: str

    def client(self) -> S3Client:
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint_url, region_name=REGION)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """The server, and credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", REGION)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            environment.delenv(name, raising=False)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield S3Server(f"http://{host}:{port}")
        server.stop()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A fresh, empty bucket's name."""
    name = f"test-{uuid.uuid4().hex[:20]}"
    s3.client().create_bucket(Bucket=name)
    return name
