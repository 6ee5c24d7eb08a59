"""Downloads from a server on loopback that does what servers do: breaks off, lies, repeats itself, is not there."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from filelock import FileLock

from pcam.data import locks
from pcam.data.download import CHUNK_BYTES, OFFICIAL_FILES, TRIES, RemoteFile, download
from pcam.errors import UserError

CONTENT = np.random.default_rng(0).bytes(5 * CHUNK_BYTES + 123)
SMALL = b"labels"
IMAGES = RemoteFile("images.h5.gz", len(CONTENT), hashlib.md5(CONTENT).hexdigest())
LABELS = RemoteFile("labels.h5.gz", len(SMALL), hashlib.md5(SMALL).hexdigest())
FILES = {"valid": (IMAGES, LABELS)}


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next behaviour of the test, and when there is none left, as it should."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Range"]))
        behaviour = self.server.behaviours.pop(0) if self.server.behaviours else serve
        behaviour(self)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    behaviours: list[Callable[[Handler], None]]
    requests: list[tuple[str, str | None]]


def answer(handler: Handler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def wanted(handler: Handler) -> bytes:
    return CONTENT if IMAGES.name in handler.path else SMALL


def serve(handler: Handler, stop: int | None = None) -> None:
    body, ranges = wanted(handler), handler.headers["Range"]
    start = int(ranges.removeprefix("bytes=").removesuffix("-")) if ranges else 0
    headers = {"Content-Length": str(len(body) - start)}
    if ranges:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    answer(handler, 206 if ranges else 200, body[start:stop], headers)


def break_off(handler: Handler) -> None:
    serve(handler, stop=3 * CHUNK_BYTES + 10)


def give_nothing(handler: Handler) -> None:
    serve(handler, stop=0)


def ignore_the_range(handler: Handler) -> None:
    answer(handler, 200, wanted(handler))


def serve_wrong_bytes(handler: Handler) -> None:
    answer(handler, 200, bytes(len(wanted(handler))))


def serve_too_much_without_a_length(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(CONTENT * 3)


def serve_a_page(handler: Handler) -> None:
    answer(handler, 200, b"<!DOCTYPE html>Too many requests", {"Content-Type": "text/html; charset=utf-8"})


def serve_another_file(handler: Handler) -> None:
    answer(handler, 200, b"of another size")


def be_busy(handler: Handler) -> None:
    answer(handler, 503, b"", {"Retry-After": "0"})


def not_find(handler: Handler) -> None:
    answer(handler, 404, b"")


class Place(NamedTuple):
    server: Server
    root: Path

    @property
    def images(self) -> Path:
        return self.root / IMAGES.name

    @property
    def part(self) -> Path:
        return self.root / f"{IMAGES.name}.part"

    @property
    def ranges(self) -> list[str | None]:
        """What was asked for of the images, request by request."""
        return [ranges for path, ranges in self.server.requests if IMAGES.name in path]

    def download(self, *behaviours: Callable[[Handler], None]) -> None:
        self.server.behaviours, self.server.requests = list(behaviours), []
        url = f"http://127.0.0.1:{self.server.server_port}/files"
        download(self.root, ["valid"], files=FILES, base_url=url, pause=0.001)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Place(server, tmp_path / "pcam")
        server.shutdown()
        thread.join()


def test_a_download_is_complete_and_a_second_one_fetches_nothing(place: Place) -> None:
    place.download()
    assert place.images.read_bytes() == CONTENT
    assert (place.root / LABELS.name).read_bytes() == SMALL
    assert place.server.requests[0] == ("/files/images.h5.gz?download=1", None)
    assert {path.name for path in place.root.iterdir()} == {IMAGES.name, LABELS.name, ".download.lock"}
    place.download()
    assert place.server.requests == []


def test_a_broken_transfer_goes_on_where_it_broke(place: Place) -> None:
    place.download(break_off)
    assert place.images.read_bytes() == CONTENT
    assert place.ranges == [None, f"bytes={3 * CHUNK_BYTES}-"]


def test_a_transfer_goes_on_in_the_next_process(place: Place) -> None:
    with pytest.raises(
        UserError, match=rf"the transfer broke {TRIES} times after at most {3 * CHUNK_BYTES:,}; run this again, it goes"
    ):
        place.download(break_off, *[give_nothing] * TRIES)
    assert place.part.read_bytes() == CONTENT[: 3 * CHUNK_BYTES]
    assert not place.images.exists()
    place.download()
    assert place.images.read_bytes() == CONTENT
    assert place.ranges == [f"bytes={3 * CHUNK_BYTES}-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(place: Place) -> None:
    place.download(break_off, ignore_the_range)
    assert place.images.read_bytes() == CONTENT
    assert len(place.ranges) == 2


def test_a_busy_server_is_asked_again(place: Place) -> None:
    place.download(be_busy, be_busy)
    assert place.images.read_bytes() == CONTENT
    assert place.ranges == [None, None, None]


@pytest.mark.parametrize("behaviour", [serve_wrong_bytes, serve_too_much_without_a_length])
def test_wrong_bytes_are_dropped(behaviour: Callable[[Handler], None], place: Place) -> None:
    with pytest.raises(UserError, match=rf"with MD5 {IMAGES.md5} from http.* but found .* and dropped them; run this"):
        place.download(behaviour)
    assert not place.part.exists()
    assert not place.images.exists()


@pytest.mark.parametrize(
    ("behaviours", "found"),
    [
        ([serve_a_page], "an HTML page"),
        ([serve_another_file], "15 bytes"),
        ([not_find], "the answer 404 Not Found"),
        ([be_busy] * TRIES, "the answer 503 Service Unavailable"),
    ],
)
def test_what_is_not_the_file_is_refused_and_the_part_kept(
    behaviours: list[Callable[[Handler], None]], found: str, place: Place
) -> None:
    place.root.mkdir()
    place.part.write_bytes(CONTENT[:1000])
    with pytest.raises(
        UserError, match=rf"Expected {IMAGES.size:,} bytes of images.h5.gz from http://127.*, but found {found}; run"
    ):
        place.download(*behaviours)
    assert place.part.read_bytes() == CONTENT[:1000]
    assert len(place.ranges) == len(behaviours)


def redirect(location: str) -> Callable[[Handler], None]:
    return lambda handler: answer(handler, 302, b"", {"Location": location})


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://127.0.0.1:port/",
        "file:///etc/passwd",
        "http://" + "a" * 70 + "..b/",
        "\x80",
    ],
)
def test_a_redirect_to_no_address_is_one_sentence(location: str, place: Place) -> None:
    with pytest.raises(UserError, match=r"Expected .*images\.h5\.gz from http://127.*; run this again later, or put"):
        place.download(redirect(location))
    assert not place.images.exists()


def test_redirects_in_a_circle_are_one_sentence(place: Place) -> None:
    url = f"http://127.0.0.1:{place.server.server_port}/files/{IMAGES.name}"
    with pytest.raises(UserError, match=r"Expected images\.h5\.gz from .*cannot be reached .*redirects.*; run this"):
        place.download(*[redirect(url)] * 40)


def test_a_redirect_to_the_file_is_followed(place: Place) -> None:
    place.download(redirect(f"/elsewhere/{IMAGES.name}"))
    assert place.images.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["a folder", "a named pipe"])
def test_what_is_in_the_place_of_the_file_is_refused(kind: str, place: Place) -> None:
    place.root.mkdir()
    place.images.mkdir() if kind == "a folder" else os.mkfifo(place.images)
    with pytest.raises(UserError, match=rf"Expected a file in {place.images}, but it is {kind}; mend it or remove it"):
        place.download()
    assert place.server.requests == []


@pytest.mark.parametrize("name", [f"{IMAGES.name}.part", ".download.lock"])
@pytest.mark.parametrize("kind", ["a link", "a folder", "a named pipe"])
def test_what_is_in_the_place_of_a_part_or_lock_is_refused(kind: str, name: str, place: Place) -> None:
    place.root.mkdir()
    precious = place.root / "thesis.txt"
    precious.write_bytes(b"precious")
    if kind == "a link":
        (place.root / name).symlink_to(precious)
    elif kind == "a folder":
        (place.root / name).mkdir()
    else:
        os.mkfifo(place.root / name)
    with pytest.raises(UserError, match=rf"a file, or nothing, at {place.root / name}, but found {kind}; move"):
        place.download()
    assert precious.read_bytes() == b"precious"
    assert place.server.requests == []


def test_who_waits_for_another_download_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    place.root.mkdir()
    holds = threading.Event()

    def hold() -> None:
        with FileLock(place.root / ".download.lock"):
            holds.set()
            time.sleep(0.6)

    threading.Thread(target=hold).start()
    assert holds.wait(10)
    place.download()
    said = "".join(capsys.readouterr().out.split())
    assert f"Waiting for another process, which downloads into {place.root}".replace(" ", "") in said


def test_no_server_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"Expected images\.h5\.gz from http://127\.0\.0\.1:9/.*cannot be reached"):
        download(tmp_path, ["valid"], files=FILES, base_url="http://127.0.0.1:9", pause=0)


def test_a_wrong_file_in_place_is_not_touched(place: Place) -> None:
    place.root.mkdir()
    place.images.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"Expected .*images\.h5\.gz to have 327,803 bytes .* found 4 .*; move it away"):
        place.download()
    assert place.images.read_bytes() == b"mine"
    assert place.server.requests == []


def test_a_full_disk_is_noticed_before_the_first_byte(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"Expected 0\.0 GB of free disk space .*, but found 0\.0 GB; make room"):
        place.download()
    assert place.server.requests == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"Expected a folder to download into at .*{name}, but found a file; choose"):
        download(tmp_path / name, ["valid"], files=FILES)


def test_the_official_table_has_each_file_once() -> None:
    files = [file for split in OFFICIAL_FILES.values() for file in split]
    assert len({file.md5 for file in files}) == len({file.name for file in files}) == 6
    assert sum(file.size for file in files) == 8_028_222_167
    # The data set's README has these two the wrong way round.
    assert OFFICIAL_FILES["valid"][0].md5 == "d5b63470df7cfa627aeec8b9dc0c066e"
    assert OFFICIAL_FILES["test"][0].md5 == "d8c2d60d490dbd479f8199bdfa0cf6ec"
