"""The whole idea on this machine: a library in S3, ingested, made into new pictures, reviewed, released, explained.

`make demo` runs it. It starts an S3 server of its own on the loopback interface, puts the example library there, and
then types the same `onmodel` commands that a user would; everything lands in ./demo.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from asset_store.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "deploy" / "examples"
HOME = ROOT / "demo"
BUCKET, PREFIX = "lumen-brand", "library"
ONMODEL = str(Path(sys.executable).with_name("onmodel"))


class Steps:
    """Runs each step, prints its command and output, and remembers how long it took."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.took: list[tuple[str, float]] = []

    def run(self, title: str, *arguments: str, show: bool = True, allow: tuple[int, ...] = (0,)) -> str:
        shown = "onmodel " + " ".join(a if " " not in a else f'"{a}"' for a in arguments)
        print(f"\n\033[1m$ {shown}\033[0m" if sys.stdout.isatty() else f"\n$ {shown}", flush=True)
        began = time.monotonic()
        done = subprocess.run(
            [ONMODEL, *arguments], env=self.environment, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
        self.took.append((title, time.monotonic() - began))
        if show or done.returncode not in allow:
            print(done.stdout, end="", flush=True)
        if done.returncode not in allow:
            raise SystemExit(f"the demo stopped: `{shown}` ended with exit code {done.returncode}")
        return done.stdout


def main() -> None:
    began = time.monotonic()
    if (HOME / "postgres").exists():
        EmbeddedServer(HOME).close()  # stops what a demo that was killed has left running
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # the demo's own S3 server need not tell each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("ONMODEL_", "PREFECT_", "AWS_"))},
        "NO_PROXY": "127.0.0.1,localhost",
        "ONMODEL_HOME": str(HOME),
        "ONMODEL_S3__ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": "us-east-1",
        "COLUMNS": os.environ.get("COLUMNS", "140"),
    }
    steps = Steps(environment)
    try:
        steps.took.append(("library to S3", upload(environment)))
        play(steps)
    finally:
        server.stop()
    print("\nTime of each step")
    for title, seconds in [*steps.took, ("in all", time.monotonic() - began)]:
        print(f"  {title:<28}{seconds:6.1f} s")
    print(
        f"\nLook at demo/contact-sheet.png; the released files are in demo/delivered. `ONMODEL_HOME={HOME.name} onmodel …` goes on."
    )


def upload(environment: dict[str, str]) -> float:
    """Put the example library into a bucket; seconds it took."""
    began = time.monotonic()
    client = boto3.client(
        "s3", endpoint_url=environment["ONMODEL_S3__ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="demo", aws_secret_access_key="demo",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    for path in sorted((EXAMPLES / "lumen").rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{PREFIX}/{path.relative_to(EXAMPLES / 'lumen').as_posix()}")
    return time.monotonic() - began


def play(steps: Steps) -> None:
    # Prefect makes its database on first use; made here, while doctor makes ours, it costs the demo no time of its own.
    prefect_home = {"PREFECT_HOME": str(HOME / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    making = subprocess.Popen(
        upgrade, env={**steps.environment, **prefect_home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    steps.run("doctor", "doctor")
    making.wait()
    brief = str((EXAMPLES / "spring.yaml").relative_to(ROOT))
    steps.run("ingest from S3", "ingest", f"s3://{BUCKET}/{PREFIX}", "--by", "pat")
    steps.run("campaign", "campaign", "run", brief, "--sheet", "demo/contact-sheet.png", "--by", "pat", allow=(0, 3))
    listed = json.loads(steps.run("review list", "review", "list", "--json", show=False))["assets"]
    first_of_shots = list({a["shot"]: a["id"][:8] for a in reversed(listed)}.values())
    steps.run("approve one of each shot", "review", "approve", *first_of_shots, "--by", "rosa")
    rest = [a["id"][:8] for a in listed if a["id"][:8] not in first_of_shots]
    if rest:
        steps.run(
            "reject another", "review", "reject", rest[0], "--by", "rosa", "--reason", "one of each shot is enough"
        )
    steps.run("release", "release", "--campaign", "spring", "--to", "demo/delivered", "--by", "lee")
    steps.run("lineage", "lineage", first_of_shots[0])
    steps.run("audit", "audit", "verify")


if __name__ == "__main__":
    main()
