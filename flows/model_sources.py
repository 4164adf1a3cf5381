"""Where models are added from: a path, an S3 prefix or a hub. Each writes the files that the engine opens into a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asset_store.blobs.s3_client import describe_place, is_s3_url, open_client, parse_s3_url, told
from asset_store.errors import PlaceInvalid, SourceUnreachable
from asset_store.library.keys import safe_key
from flows.model_files import PREPROCESSOR, ModelRefused, chosen, preprocessing_beside
from flows.progress import report
from flows.settings import S3Settings
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.weight_files import SUFFIXES

HUB = "hub:"
_HUB_NEXT = "Check the network and HF_ENDPOINT, or add the model from a path or from S3."


@dataclass(frozen=True)
class Fetched:
    """What a source tells beside the files: the commit it was resolved to, and the licence that its card names."""

    revision: str | None = None
    licence: str | None = None


class ModelSource(Protocol):
    """`address`: how the manifest names it; `name`: what a model from it is called unless somebody says otherwise."""

    address: str
    name: str

    def resolve(self) -> str | None:
        """The commit that the files are of; None where the source has none. SourceUnreachable, ModelRefused."""
        ...

    def fetch(self, into: Path) -> Fetched:
        """Write the files below `into`, an existing folder. SourceUnreachable, ModelRefused, PlaceInvalid."""
        ...


def open_source(text: str, s3: S3Settings) -> ModelSource:
    """The source that `text` names; nothing is read yet. PlaceInvalid."""
    if text.startswith(HUB):
        return _hub_source(text)
    if is_s3_url(text):
        return S3Models(text, s3)
    if not text.strip() or "://" in text:
        raise PlaceInvalid(
            f"{text!r} is no place of a model", "Give a path, s3://bucket/prefix or hub:owner/name[@revision][:path]."
        )
    return PathModels(Path(text).expanduser())


def _name_of(path: str) -> str:
    """The last part of a path, without a weights file's suffix."""
    last = path.rstrip("/").rsplit("/", 1)[-1]
    return next((last.removesuffix(s) for s in SUFFIXES if last.endswith(s)), last)


class PathModels:
    """A file, or a folder. Links to files count as those files, as in a hub's cache; links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.address, self.name = str(self.path), _name_of(str(self.path))

    def resolve(self) -> None:
        return None

    def fetch(self, into: Path) -> Fetched:
        if self.path.is_file():
            files = {self.path.name: self.path}
        elif self.path.is_dir():
            found = {str(f.relative_to(self.path).as_posix()): f for f in self._walk()}
            files = {name: found[name] for name in chosen(list(found), self.address)}
            beside = preprocessing_beside(self.address, list(files))
            if beside is not None and Path(beside).is_file():
                files[PREPROCESSOR] = Path(beside)
        else:
            raise ModelRefused(f"there is no file or folder at {self.path}", "Check the path.")
        for done, (name, file) in enumerate(files.items()):
            report("files", done, len(files))
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, target)
            except OSError as error:
                raise SourceUnreachable(
                    f"{safe_key(str(file))} cannot be copied: {error.strerror or error}",
                    "Check that it may be read, and the room on the disk of ONMODEL_HOME.",
                ) from error
        return Fetched()

    def _walk(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.path):
            yield from (file for name in names if (file := Path(folder, name)).is_file())


class S3Models:
    """A prefix, or one object; credentials are boto3's."""

    def __init__(self, url: str, settings: S3Settings) -> None:
        self.place = parse_s3_url(url)
        self.settings = settings
        self.address, self.name = str(self.place), _name_of(str(self.place))

    def resolve(self) -> None:
        return None

    def fetch(self, into: Path) -> Fetched:
        where = describe_place(self.place, self.settings.endpoint_url)
        client = open_client(self.settings.endpoint_url, self.settings.region)
        with told(SourceUnreachable, self.place, self.settings.endpoint_url):
            keys, names = self._listed(client)
            if not keys:
                raise ModelRefused(f"there is nothing at {where}", "Check the bucket and the prefix.")
            wanted = names if len(keys) == 1 else chosen(names, where)
            for done, name in enumerate(wanted):
                report("files", done, len(wanted))
                target = _below(into, name, where)
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(self.place.bucket, keys[names.index(name)], str(target))
            beside = preprocessing_beside(self.place.prefix, wanted)
            if beside is not None and client.list_objects_v2(Bucket=self.place.bucket, Prefix=beside)["KeyCount"]:
                client.download_file(self.place.bucket, beside, str(into / PREPROCESSOR))
        return Fetched()

    def _listed(self, client: Any) -> tuple[list[str], list[str]]:
        """All keys, and what each is called below the prefix; the prefix itself may be an object."""
        exact = self.place.prefix.rstrip("/")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket, Prefix=exact)
        keys = [o["Key"] for page in pages for o in page.get("Contents", [])]
        if exact in keys:
            return [exact], [exact.rsplit("/", 1)[-1]]
        keys = [k for k in keys if k.startswith(self.place.prefix) and not k.endswith("/")]
        return keys, [k.removeprefix(self.place.prefix) for k in keys]


def _below(folder: Path, name: str, where: str) -> Path:
    """Where a file of that name is written; ModelRefused for one that leads out of the folder."""
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise ModelRefused(f"{safe_key(name)} in {where} is not a path inside a model", "Rename it there.")
    return folder / name


def _hub_source(text: str) -> HubModels:
    """`hub:owner/name[@revision][:path]`."""
    repository, _, path = text.removeprefix(HUB).partition(":")
    name, _, revision = repository.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise PlaceInvalid(f"{text!r} names no repository of a hub", "Write hub:owner/name[@revision][:path].")
    return HubModels(name, revision or None, path.strip("/"))


class HubModels:
    """A repository of a hub, or a file or folder in it, by the commit that its revision is at when it is first asked.

    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold, as huggingface_hub reads them.
    """

    def __init__(self, repository: str, revision: str | None, path: str) -> None:
        self.repository, self.revision, self.path = repository, revision, path
        at = f"@{revision}" if revision else ""
        self.address = f"{HUB}{repository}{at}{f':{path}' if path else ''}"
        self.name = _name_of(path or repository)
        self._info: Any = None

    def resolve(self) -> str:
        if self._info is None:
            from huggingface_hub import HfApi

            with self._told():
                self._info = HfApi().model_info(self.repository, revision=self.revision, files_metadata=True)
        return str(self._info.sha)

    def fetch(self, into: Path) -> Fetched:
        """Files that an earlier, interrupted fetch of the same commit brought whole are not fetched again."""
        commit = self.resolve()
        aside = into / ".hub"  # its cache of what came and what is still missing
        wanted = self._wanted([s.rfilename for s in self._info.siblings or []])
        missing = {n: path for n, t in wanted.items() if not (path := _below(into, t, self.address)).exists()}
        for done, name in enumerate(missing):
            report("files", done, len(missing))
            self._download(name, commit, aside)
        for name, path in missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, path)
        shutil.rmtree(aside, ignore_errors=True)
        return Fetched(commit, _licence_on_card(self._info))

    def _wanted(self, names: Sequence[str]) -> dict[str, str]:
        """Files in the repository, with where each lies in the model."""
        if self.path in names:
            return {self.path: self.path.rsplit("/", 1)[-1]}
        within = f"{self.path}/" if self.path else ""
        inside = [n.removeprefix(within) for n in names if n.startswith(within)]
        if not inside:
            raise ModelRefused(
                f"{HUB}{self.repository} has no {safe_key(self.path)} at commit {self._info.sha}",
                "Check the path, and the revision.",
            )
        wanted = {within + name: name for name in chosen(inside, self.address)}
        beside = preprocessing_beside(self.path, list(wanted.values())) if self.path else None
        return wanted if beside is None or beside not in names else {**wanted, beside: PREPROCESSOR}

    def _download(self, name: str, commit: str, aside: Path) -> None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        with self._told():
            file = Path(hf_hub_download(self.repository, name, revision=commit, local_dir=aside))
        listed = {s.rfilename: s.lfs.sha256 for s in self._info.siblings or [] if s.lfs is not None}
        if name in listed and (found := sha256_of_file(file)) != listed[name]:
            file.unlink()
            raise ModelRefused(
                f"{HUB}{self.repository}:{safe_key(name)} came with sha256 {found[:16]}…, the hub says {listed[name][:16]}…",
                "Add it again; if it is the same then, ask whoever runs the hub.",
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What huggingface_hub raises, in words to act on."""
        from httpx2 import HTTPError, InvalidURL
        from huggingface_hub import constants, errors

        where = f"{HUB}{self.repository}"
        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise SourceUnreachable(
                f"{where} is not asked: HF_HUB_OFFLINE is set",
                "Unset HF_HUB_OFFLINE for this command, or add the model from a path or from S3.",
            ) from None
        except errors.GatedRepoError:
            raise ModelRefused(
                f"{where} is gated", "Accept its terms on the hub, then set HF_TOKEN to a token of that account."
            ) from None
        except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
            raise ModelRefused(
                f"{where} has no revision {self.revision or 'main'}, or no such file at it", "Check the revision."
            ) from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise ModelRefused(
                f"{constants.ENDPOINT} has no repository {self.repository} that may be read",
                "Check its name; for a private one set HF_TOKEN.",
            ) from None
        except (HTTPError, InvalidURL, errors.LocalEntryNotFoundError, errors.FileMetadataError, OSError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceUnreachable(f"{where} at {constants.ENDPOINT} cannot be read: {first}", _HUB_NEXT) from error


def _licence_on_card(info: Any) -> str | None:
    card = info.card_data
    named = card.get("license_name") or card.get("license") if card is not None else None
    return str(named) if named and named != "other" else None
