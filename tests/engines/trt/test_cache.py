"""Engines on disk: whole or not there, built once, never stale."""

import errno
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lssgen.engines.demand import Profile, fixed
from lssgen.engines.trt.cache import PLAN, REPORT, Cache, Entry, key_of, write_whole
from lssgen.engines.trt.report import Report
from lssgen.errors import BuildError

BYTES = b"an engine" * 1000


def report_of(plan_bytes: int, plan_sha256: str) -> Report:
    return Report(
        graph="step", content="c", backend="tensorrt-rtx", version="1.7", targets=("sm89",), precision="fp16",
        options={"tf32": False}, profiles=(Profile({"height": fixed(64)}),), inputs=(), outputs=(), seconds=1.5,
        plan_bytes=plan_bytes, plan_sha256=plan_sha256, weight_bytes=10, activation_bytes=(20,), attentions=1,
        largest=(4096, "conv"),
    )  # fmt: skip


def build() -> tuple[bytes, Callable[[int, str], Report]]:
    return BYTES, report_of


def never() -> Any:
    raise AssertionError("built again")


def test_what_was_built_is_found_and_reads_back_as_it_was(tmp_path: Path) -> None:
    built = Cache(tmp_path).get_or_build("k", build)
    found = Cache(tmp_path).get_or_build("k", never)
    assert found == built
    assert found.plan.read_bytes() == BYTES


@pytest.mark.parametrize("harm", [lambda e: e.plan.unlink(), lambda e: (e.folder / REPORT).write_text("{")])
def test_a_damaged_entry_counts_as_none_and_is_replaced(tmp_path: Path, harm: Callable[[Entry], object]) -> None:
    cache = Cache(tmp_path)
    harm(cache.get_or_build("k", build))
    assert cache.get("k") is None
    assert cache.get_or_build("k", build).plan.read_bytes() == BYTES


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        del file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BuildError, match=r"disk of .* is full \(\d+ MB free\).*--prune.*LSSGEN_HOME.*has 0 MB"):
        Cache(tmp_path).get_or_build("k", build)
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_a_folder_one_may_not_write_to_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"engines cannot be written to .*file/engines \(Not a directory\)"):
        Cache(tmp_path / "file" / "engines").get_or_build("k", build)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Any:
        raise BuildError("refused")

    with pytest.raises(BuildError, match="refused"):
        Cache(tmp_path).get_or_build("k", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_what_a_crash_left_is_cleared_by_the_next_build(tmp_path: Path) -> None:
    (tmp_path / ".k-12345").mkdir(parents=True)
    (tmp_path / ".k-12345" / PLAN).write_bytes(b"half")
    cache = Cache(tmp_path)
    assert cache.entries() == []
    cache.get_or_build("k", build)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.lock"]


def _build_slowly(folder: Path, count: Any) -> None:
    def slow() -> tuple[bytes, Callable[[int, str], Report]]:
        with count.get_lock():
            count.value += 1
        time.sleep(0.3)
        return build()

    assert Cache(folder).get_or_build("k", slow).plan.read_bytes() == BYTES


@pytest.mark.skipif(os.name != "posix", reason="forks the test's own process")
def test_two_processes_build_an_engine_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    both = [context.Process(target=_build_slowly, args=(tmp_path, count)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert ([process.exitcode for process in both], count.value) == ([0, 0], 1)


def test_pruning_keeps_what_is_named_or_was_used_lately(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("old", "kept", "new"):
        cache.get_or_build(key, build)
    for key in ("old", "kept"):
        os.utime(tmp_path / key / REPORT, (0, 0))
    assert [entry.key for entry in cache.prune(keep=("kept",), unused_days=7)] == ["old"]
    assert sorted(entry.key for entry in cache.entries()) == ["kept", "new"]


def test_entries_can_be_copied_to_another_machine(tmp_path: Path) -> None:
    Cache(tmp_path / "here").get_or_build("k", build)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert Cache(tmp_path / "there").get_or_build("k", never).plan.read_bytes() == BYTES


def test_a_key_changes_with_every_part() -> None:
    profile = Profile({"height": fixed(64)})
    keys = [key_of("step", profile), key_of("decode", profile), key_of("step", Profile({"height": fixed(65)}))]
    assert len(set(keys)) == 3
    assert key_of("step", Profile({"height": fixed(64)})) == keys[0]


def test_a_convenience_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "f", b"abc")
    write_whole(tmp_path / "missing" / "f", b"abc")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
