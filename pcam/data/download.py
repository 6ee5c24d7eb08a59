"""Download of PatchCamelyon's official files from Zenodo, which resumes where it broke off, and checks every file.

`requests` and urllib3's `Retry` do the transfer: pooch and parfive begin a broken file again, and pypdl checks only at
the very end, in files of its own form.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests
from requests.adapters import HTTPAdapter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from pcam.data.files import require_file, require_place
from pcam.data.locks import only_one
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName


@dataclass(frozen=True)
class RemoteFile:
    """A file whose size and checksum are known before it is downloaded.

    Args:
        name: The file's name, at the server and on this machine.
        size: Its size in bytes.
        md5: Its MD5 in hexadecimal.
    """

    name: str
    size: int
    md5: str


ZENODO: Final = "https://zenodo.org/records/2546921/files"
"""The official record. This address serves ranges; the one of Zenodo's API does not (zenodo/zenodo #2593)."""

OFFICIAL_FILES: Final[Mapping[SplitName, tuple[RemoteFile, RemoteFile]]] = {
    "train": (
        RemoteFile("camelyonpatch_level_2_split_train_x.h5.gz", 6_421_353_462, "1571f514728f59376b705fc836ff4b63"),
        RemoteFile("camelyonpatch_level_2_split_train_y.h5.gz", 21_378, "35c2d7259d906cfc8143347bb8e05be7"),
    ),
    "valid": (
        RemoteFile("camelyonpatch_level_2_split_valid_x.h5.gz", 805_965_320, "d5b63470df7cfa627aeec8b9dc0c066e"),
        RemoteFile("camelyonpatch_level_2_split_valid_y.h5.gz", 3_038, "2b85f58b927af9964a4c15b8f7e8f179"),
    ),
    "test": (
        RemoteFile("camelyonpatch_level_2_split_test_x.h5.gz", 800_875_929, "d8c2d60d490dbd479f8199bdfa0cf6ec"),
        RemoteFile("camelyonpatch_level_2_split_test_y.h5.gz", 3_040, "60a7035772fbdb7f34eb86d4420cf66a"),
    ),
}
"""Images and labels of each split, as Zenodo lists them.

The data set's README has the checksums of valid and test the wrong way round (basveeling/pcam #1, #4), and torchvision
once had (pytorch/vision #6643): do not "correct" these by it. The meta CSVs are left out: the only checksums published
for them are in that README.

Source: Zenodo, record 2546921.
"""

TRIES: Final = 5
"""How often a request is tried, and how many transfers in a row may get no further, before a download fails."""

TIMEOUT: Final = 60
"""Seconds without a byte before a transfer counts as broken."""

CHUNK_BYTES: Final = 1 << 16
"""Bytes that are written to the disk together; a transfer that breaks off loses fewer than these."""


def download(
    root: Path,
    splits: Sequence[SplitName] = SPLIT_NAMES,
    *,
    files: Mapping[SplitName, Sequence[RemoteFile]] = OFFICIAL_FILES,
    base_url: str = ZENODO,
    pause: float = 1.0,
) -> None:
    """Download the files of some splits into a folder.

    Until its size and MD5 are found to be right, a file is called `<name>.part`; the next call resumes at its end.
    Files that are there already are checked and not downloaded again. Of several processes one downloads, the others
    wait.

    Args:
        root: The folder; made if it does not exist.
        splits: The splits to download.
        files: The files of each split.
        base_url: The address that the files' names are appended to.
        pause: Seconds before the second try; the time doubles before each further one.

    Raises:
        UserError: If something else is in the place of the folder or of a file, the disk has no room, the server does
            not give what it should, or the bytes are wrong.
    """
    wanted = [file for split in dict.fromkeys(splits) for file in files[split]]
    retry = Retry(
        TRIES - 1,
        status_forcelist={429, 500, 502, 503, 504},
        backoff_factor=pause,
        retry_after_max=120,  # seconds; by default it would sleep for six hours if a server says so
        raise_on_status=False,  # `_receive` says which status it was
    )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"Expected a folder to download into at {root}, but found a file; choose another.") from error
    with (
        requests.Session() as session,
        Progress(*columns, TimeRemainingColumn()) as progress,
        only_one(root / ".download.lock", lambda: f"downloads into {root}", _printer(progress)),
    ):
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        missing = [file for file in wanted if not _is_there(root, file, progress)]
        _require_space(root, missing)
        for file in missing:
            _fetch(root, file, base_url, session, progress, pause)


def _printer(progress: Progress) -> Callable[[str], None]:
    return lambda text: progress.console.print(text, markup=False, highlight=False)


def _is_there(root: Path, file: RemoteFile, progress: Progress) -> bool:
    path = root / file.name
    require_place(_part(root, file))
    if not os.path.lexists(path):
        return False
    require_file(path)
    found = _size_and_md5(path, progress)
    if found != (file.size, file.md5):
        raise UserError(
            f"Expected {path} to have {file.size:,} bytes with MD5 {file.md5}, but found {found[0]:,} with {found[1]}; "
            f"move it away, and it is fetched again."
        )
    return True


def _require_space(root: Path, missing: Sequence[RemoteFile]) -> None:
    needed = sum(file.size - _size(_part(root, file)) for file in missing)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"Expected {needed / 1e9:.1f} GB of free disk space to download into {root}, but found "
            f"{free / 1e9:.1f} GB; make room, or choose another disk."
        )


def _fetch(
    root: Path, file: RemoteFile, base_url: str, session: requests.Session, progress: Progress, pause: float
) -> None:
    """Fetch what is missing of a file, check it, and give it its name."""
    url = f"{base_url}/{file.name}?download=1"
    part = _part(root, file)
    task = progress.add_task(file.name, total=file.size)
    furthest, stuck = _size(part), 0
    while _size(part) < file.size:
        if stuck:
            time.sleep(pause * 2 ** (stuck - 1))
        _receive(url, part, file, session, lambda received: progress.update(task, completed=received))
        stuck = 0 if _size(part) > furthest else stuck + 1
        furthest = max(furthest, _size(part))
        if stuck == TRIES:
            raise UserError(
                f"Expected {file.size:,} bytes of {file.name} from {url}, but the transfer broke {TRIES} times after "
                f"at most {furthest:,}; run this again, it goes on with {part}."
            )
    found = _size_and_md5(part, progress)
    if found != (file.size, file.md5):
        part.unlink()
        raise UserError(
            f"Expected {file.size:,} bytes with MD5 {file.md5} from {url}, but found {found[0]:,} with {found[1]}, and "
            f"dropped them; run this again to fetch the file anew."
        )
    with part.open("rb+") as stream:  # a rename must not reach the disk before what it names
        os.fsync(stream.fileno())
    part.replace(root / file.name)


def _receive(url: str, part: Path, file: RemoteFile, session: requests.Session, report: Callable[[int], None]) -> None:
    """Append to a part what the server sends after its end, as far as the transfer gets."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, not unpacked on the way
    if start:
        headers["Range"] = f"bytes={start}-"
    advice = f"run this again later, or put {file.name} into {part.parent} yourself: it will be checked"
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    # urllib3's own errors, and ValueError, come from redirects to what is no address.
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise UserError(f"Expected {file.name} from {url}, but it cannot be reached ({error}); {advice}.") from error
    with response:
        if response.status_code == requests.codes.ok:
            start = 0  # the whole file: the server ignores ranges, or was not asked for one
        length: int | None = response.raw.length_remaining  # urllib3's reading of Content-Length
        found = None
        if not response.ok:
            found = f"the answer {response.status_code} {response.reason}"
        elif response.headers.get("Content-Type", "").startswith("text/html"):
            found = "an HTML page"
        elif length is not None and start + length != file.size:
            found = f"{start + length:,} bytes"
        if found is not None:
            raise UserError(f"Expected {file.size:,} bytes of {file.name} from {url}, but found {found}; {advice}.")
        with part.open("ab") as stream:
            stream.truncate(start)
            try:
                for chunk in response.iter_content(CHUNK_BYTES):
                    stream.write(chunk)
                    report(stream.tell())
                    if stream.tell() > file.size:  # of an answer without a length
                        break
            except (requests.RequestException, HTTPError):
                return  # broken off; the next request goes on


def _part(root: Path, file: RemoteFile) -> Path:
    return root / f"{file.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _size_and_md5(path: Path, progress: Progress) -> tuple[int, str]:
    digest = hashlib.md5(usedforsecurity=False)
    task = progress.add_task(f"Checking {path.name}", total=path.stat().st_size)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return path.stat().st_size, digest.hexdigest()
