"""Whatever happens to a writer, what it writes is whole or as it was before."""

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import filelock
import pytest

from lssgen import durable
from lssgen.durable import (
    ABANDONED_S,
    check_writable,
    clear_folder,
    clear_partial,
    locked,
    put,
    whole_file,
    whole_folder,
    write_whole,
)

FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(run: Callable[[], None]) -> None:
    """Let a child process run into its death."""
    child = FORK.Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise KeyboardInterrupt


def half_a_file(path: Path, then: Callable[[], None] = die) -> None:
    with whole_file(path) as draft:
        draft.write_bytes(b"half")
        then()


def half_a_folder(path: Path, then: Callable[[], None] = die) -> None:
    with whole_folder(path) as draft:
        (draft / "part").write_bytes(b"half")
        then()


def folder_with(path: Path, content: bytes) -> None:
    with whole_folder(path) as draft:
        (draft / "inner").mkdir()
        (draft / "inner/file").write_bytes(content)


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep/down/x", b"new")
    assert (tmp_path / "deep/down/x").read_bytes() == b"new"
    assert names(tmp_path / "deep/down") == ["x"]


def test_a_file_may_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "x", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", b"old")
    with pytest.raises(KeyboardInterrupt):
        half_a_file(tmp_path / "x", interrupt)
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", b"old")
    killed(lambda: half_a_file(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == b"old"
    assert len(names(tmp_path)) == 2


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", full)  # where a disk that writes late tells it
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_contents_are_on_the_disk_before_they_have_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "x", b"old")
    seen: list[tuple[str, bytes]] = []

    def flush(path: Path) -> None:
        seen.append(("folder" if path.is_dir() else "file", (tmp_path / "x").read_bytes()))

    monkeypatch.setattr(durable, "flush", flush)
    write_whole(tmp_path / "x", b"new")
    assert seen == [("file", b"old"), ("folder", b"new")]


def test_the_next_holder_removes_what_killed_writers_left(tmp_path: Path) -> None:
    killed(lambda: half_a_file(tmp_path / "x"))
    killed(lambda: half_a_folder(tmp_path / "x"))
    clear_partial(tmp_path / "x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("other", ["x.png", "x.0123456789abcdef", "[x]", "*"])
def test_the_next_holder_leaves_what_others_are_writing(tmp_path: Path, other: str) -> None:
    with whole_file(tmp_path / other) as draft:
        clear_partial(tmp_path / "x")
        clear_partial(tmp_path / "?")
        draft.write_bytes(b"new")
    assert (tmp_path / other).read_bytes() == b"new"


def test_the_holder_of_a_whole_folder_removes_all_that_was_left_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.b", b"new")
    killed(lambda: half_a_file(tmp_path / "a.b"))
    killed(lambda: half_a_folder(tmp_path / "c"))
    clear_folder(tmp_path)
    assert names(tmp_path) == ["a.b"]


def test_clearing_a_place_whose_folder_is_not_there_is_nothing(tmp_path: Path) -> None:
    clear_partial(tmp_path / "none/x")
    assert names(tmp_path) == []


def test_a_writer_without_a_lock_removes_what_was_left_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "SWEEP_EVERY_S", 0.0)
    killed(lambda: half_a_file(tmp_path / "x"))
    (left,) = tmp_path.iterdir()
    write_whole(tmp_path / "x", b"new")
    assert left.exists(), "another writer may still be busy with it"
    long_ago = left.stat().st_mtime - ABANDONED_S - 60
    os.utime(left, (long_ago, long_ago))
    write_whole(tmp_path / "x", b"newer")
    assert names(tmp_path) == ["x"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with whole_file(tmp_path / "x") as first, whole_file(tmp_path / "x") as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert (tmp_path / "x").read_bytes() == b"first"  # the last to end
    assert names(tmp_path) == ["x"]


def test_a_link_put_under_the_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0123456789abcdef")
    for name in ("x", "trial"):
        (tmp_path / f".{name}.0123456789abcdef.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "x", b"new")
    with pytest.raises(FileExistsError):
        folder_with(tmp_path / "x", b"new")
    with pytest.raises(FileExistsError):
        check_writable(tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_link_in_the_place_itself_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    write_whole(tmp_path / "target", b"old")
    (tmp_path / "x").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "x", b"new")
    assert [(tmp_path / name).read_bytes() for name in ("target", "x")] == [b"old", b"new"]


def test_a_file_is_not_written_in_place_of_a_folder(tmp_path: Path) -> None:
    folder_with(tmp_path / "x", b"old")
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x/inner/file").read_bytes() == b"old"


def test_a_finished_file_is_put_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "draft").write_bytes(b"new")
    write_whole(tmp_path / "x", b"old")
    put(tmp_path / "draft", tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("before", ["nothing", "folder", "file", "link"])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path: Path, before: str) -> None:
    place = tmp_path / "here/x"
    match before:
        case "folder":
            folder_with(place, b"old")
        case "file":
            write_whole(place, b"old")
        case "link":
            folder_with(tmp_path / "target", b"old")
            place.parent.mkdir()
            place.symlink_to(tmp_path / "target")
        case _:
            pass
    folder_with(place, b"new")
    assert (place / "inner/file").read_bytes() == b"new"
    assert not place.is_symlink()
    assert names(place.parent) == ["x"]
    if before == "link":
        assert (tmp_path / "target/inner/file").read_bytes() == b"old"


def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    folder_with(tmp_path / "x", b"old")
    with pytest.raises(KeyboardInterrupt):
        half_a_folder(tmp_path / "x", interrupt)
    killed(lambda: half_a_folder(tmp_path / "x"))
    clear_partial(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x/inner/file").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_folder_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_with(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder_with(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x/inner/file").read_bytes() == b"old"


def second_rename(act: Callable[[], None]) -> Callable[[Path, Path], None]:
    """`Path.rename` for an exchange of folders that goes wrong in the middle."""
    rename, calls = Path.rename, iter(range(10))

    def middle(source: Path, target: Path) -> None:
        if next(calls) == 1:
            act()
        rename(source, target)

    return middle


def test_an_exchange_of_folders_that_fails_half_way_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path / "x", b"old")
    monkeypatch.setattr(Path, "rename", second_rename(full))
    with pytest.raises(OSError, match="No space left"):
        folder_with(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x/inner/file").read_bytes() == b"old"


def test_the_next_holder_brings_the_old_folder_back_after_a_kill_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path / "x", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_rename(die))
        killed(lambda: folder_with(tmp_path / "x", b"new"))
    clear_partial(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x/inner/file").read_bytes() == b"old"


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def picky(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "not on this share")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", picky)
    write_whole(tmp_path / "x", b"new")
    folder_with(tmp_path / "y", b"new")
    assert names(tmp_path) == ["x", "y"]


def test_a_folder_is_found_writable_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert names(tmp_path / "new") == []


def test_a_folder_below_a_file_is_not_writable(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"")
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "file/below")


def test_a_lock_that_is_held_is_refused_at_once_where_nobody_waits(tmp_path: Path) -> None:
    with locked(tmp_path / "new/lock"), pytest.raises(filelock.Timeout), locked(tmp_path / "new/lock", wait=False):
        pass
    with locked(tmp_path / "new/lock", wait=False):
        assert names(tmp_path / "new") == ["lock"]


def count_up(folder: Path, times: int) -> None:
    """Read, think and write: two at once would lose some."""
    for _ in range(times):
        with locked(folder / "lock"):
            seen = int((folder / "count").read_text())
            write_whole(folder / "count", str(seen + 1).encode())


@pytest.mark.parametrize("kind", [threading.Thread, FORK.Process])
def test_two_that_wait_for_one_lock_take_turns(tmp_path: Path, kind: type[threading.Thread]) -> None:
    (tmp_path / "count").write_text("0")
    both = [kind(target=count_up, args=(tmp_path, 10)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert (tmp_path / "count").read_text() == "20"


def hold_until_killed(path: Path, tell: Connection) -> None:
    with locked(path):
        tell.send("held")
        signal.pause()


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    hear, tell = FORK.Pipe(duplex=False)
    holder = FORK.Process(target=hold_until_killed, args=(tmp_path / "lock", tell))
    holder.start()
    assert hear.recv() == "held"
    with pytest.raises(filelock.Timeout), locked(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.join()
    with suppress(KeyboardInterrupt), locked(tmp_path / "lock", wait=False):
        raise KeyboardInterrupt
    with locked(tmp_path / "lock", wait=False) as lock:
        assert lock.is_locked


def test_a_folder_is_looked_through_once_however_many_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    real = os.scandir
    monkeypatch.setattr(durable.os, "scandir", lambda place: (looks.append(place), real(place))[1])
    for index in range(20):
        write_whole(tmp_path / str(index), b"")
    assert looks == [tmp_path]
