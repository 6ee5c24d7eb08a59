"""Files that are whole or not there, whatever ends the process or is in their place."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pcam.atomic import atomic_folder, atomic_path, clear_abandoned, is_stream, link_path, temporary_path
from pcam.errors import UserError


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "file.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("old")
        assert not final.exists()
    with pytest.raises(FileNotFoundError), atomic_path(final) as temporary:
        temporary.with_name("nowhere").rename(temporary)
    assert final.read_text() == "old"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "a.csv"])
def test_a_name_may_be_as_long_as_a_name_may_be(name: str, tmp_path: Path) -> None:
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    final, other = tmp_path / "scores.csv", tmp_path / "scores.csv.gz"
    code = (
        "import os, sys; from pathlib import Path; from pcam.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary: temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    for path in (final, other):
        subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    living = temporary_path(final).with_name(temporary_path(final).name.replace(str(os.getpid()), str(os.getppid())))
    living.write_text("of another process")
    assert len(list(tmp_path.iterdir())) == 3
    with atomic_path(final) as temporary:
        temporary.write_text("whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert {final.name, living.name} < left
    assert len(left) == 3  # and what belongs beside the other file, which its next writing removes


def test_a_folder_that_a_killed_process_left_is_removed_too(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pcam.atomic import temporary_path\n"
        "(temporary_path(Path(sys.argv[1])) / 'train').mkdir(parents=True); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "synthetic")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    clear_abandoned(tmp_path / "synthetic")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="but found a folder there"), atomic_path(tmp_path / "folder"):
        pass
    with pytest.raises(UserError, match="file is no folder"), atomic_path(tmp_path / "file" / "below" / "deeper"):
        pass


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with atomic_path(pipe) as temporary:
        temporary.write_text("through")
    reader.join()
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    null = Path("/dev/null")
    before = set(Path("/dev").iterdir())
    with atomic_path(null) as temporary:
        temporary.write_text("nothing")
    assert null.is_char_device()
    assert set(Path("/dev").iterdir()) == before
    link = tmp_path / "link"
    link.symlink_to(null)
    with atomic_path(link) as temporary:
        temporary.write_text("nothing")
    assert link.is_symlink()


@pytest.mark.slow  # starts a process
def test_standard_output_may_be_a_file_or_a_pipe(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from pcam.atomic import atomic_path\n"
        "with atomic_path(Path('/dev/stdout')) as temporary: temporary.write_text('to standard output')"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "to standard output"
    with (tmp_path / "out").open("w") as file:
        subprocess.run(command, stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "to standard output"
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.parametrize(("path", "stream"), [("/dev/null", True), ("/dev/fd/63", True), ("/proc/self/fd/1", True),
                                              ("/dev/shm/x", False), ("/tmp", False), ("nowhere", False)])  # fmt: skip
def test_a_stream_is_known_from_a_file(path: str, stream: bool) -> None:
    assert is_stream(Path(path)) == stream


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as raised, atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("has_links", [True, False])
def test_another_name_of_a_file_is_a_copy_where_there_are_no_such_names(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    source, final = tmp_path / "last", tmp_path / "previous"
    source.write_text("new")
    for before in (None, "old"):
        if before:
            final.unlink()
            final.write_text(before)
        link_path(source, final)
        assert final.read_text() == "new"
        assert final.samefile(source) is has_links
    link_path(source, final)  # if they are one file already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "previous"]


def test_of_two_processes_that_write_one_folder_the_second_is_told(tmp_path: Path) -> None:
    def write(content: str, meanwhile: Callable[[], None]) -> None:
        with atomic_folder(tmp_path / "made", "for it") as temporary:
            meanwhile()
            (temporary / "file").write_text(content)

    def first() -> None:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("first")

    with pytest.raises(UserError, match=r"Expected a new or empty folder for it, but another process has written to"):
        write("second", first)
    assert (tmp_path / "made" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
