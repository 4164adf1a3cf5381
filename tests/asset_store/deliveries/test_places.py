"""A delivery arrives whole, in a folder and in a bucket."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from asset_store.deliveries import open_place, renditions
from asset_store.errors import DeliveryFailed, OnmodelError
from tests.s3_server import S3Server


def test_a_folder_holds_the_file_and_nothing_half_written(tmp_path: Path) -> None:
    address = open_place(str(tmp_path / "out")).write("lumen/spring/a.png", b"bytes", "image/png")
    assert Path(address).read_bytes() == b"bytes"
    assert [p.name for p in (tmp_path / "out" / "lumen" / "spring").iterdir()] == ["a.png"]


def test_a_bucket_holds_the_object_with_its_type(s3: S3Server, bucket: str) -> None:
    place = open_place(f"s3://{bucket}/to/shop", endpoint_url=s3.endpoint_url, region="us-east-1")
    assert place.write("a.webp", b"bytes", "image/webp") == f"s3://{bucket}/to/shop/a.webp"
    found = s3.client().get_object(Bucket=bucket, Key="to/shop/a.webp")
    assert (found["Body"].read(), found["ContentType"]) == (b"bytes", "image/webp")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, s3: S3Server) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DeliveryFailed):
        open_place(str(tmp_path / "file")).write("a.png", b"", "image/png")
    with pytest.raises(OnmodelError) as caught:
        open_place("s3://no-such-bucket-here", endpoint_url=s3.endpoint_url, region="us-east-1").write("a", b"", "x")
    assert caught.value.next_step


def test_the_original_is_delivered_byte_by_byte_with_web_form_and_lineage() -> None:
    out = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(out, "PNG")
    made = {r.kind: r for r in renditions(out.getvalue(), {"output": {"sha256": "x"}})}
    assert made["original"].data == out.getvalue()
    assert Image.open(io.BytesIO(made["web"].data)).format == "WEBP"
    assert json.loads(made["lineage"].data) == {"output": {"sha256": "x"}}
