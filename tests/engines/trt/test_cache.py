"""Engines on disk: whole or not there, built once, never stale, removed by whoever has the right to."""

import errno
import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lssgen import durable
from lssgen.engines.demand import Profile, fixed
from lssgen.engines.trt.cache import PLAN, REPORT, Cache, Entry, key_of
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


def build(cache: Cache, key: str = "k", work: Callable[[], object] = lambda: None) -> Entry:
    """As `lssgen.engines.trt.make` does it."""
    with cache.building(key):
        if cache.get(key) is None:
            with cache.draft(key) as draft:
                work()
                (draft / PLAN).write_bytes(BYTES)
                report = report_of(len(BYTES), hashlib.sha256(BYTES).hexdigest())
                (draft / REPORT).write_bytes(msgspec.json.encode(report))
    entry = cache.get(key)
    assert entry is not None
    return entry


def never() -> None:
    raise AssertionError("built again")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_built_is_found_and_reads_back_as_it_was(tmp_path: Path) -> None:
    built = build(Cache(tmp_path))
    found = build(Cache(tmp_path), work=never)
    assert found == built
    assert found.plan.read_bytes() == BYTES


HARMS: list[Callable[[Entry], object]] = [
    lambda entry: entry.plan.unlink(),
    lambda entry: (entry.folder / REPORT).write_text("{"),
    lambda entry: entry.plan.write_bytes(BYTES[:-1]),
]


@pytest.mark.parametrize("harm", HARMS)
def test_an_entry_that_is_not_whole_counts_as_none_and_is_replaced(
    tmp_path: Path, harm: Callable[[Entry], object]
) -> None:
    cache = Cache(tmp_path)
    harm(build(cache))
    assert cache.get("k") is None
    assert build(cache).plan.read_bytes() == BYTES


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path) -> None:
        del file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "flush", full)
    with pytest.raises(BuildError, match=r"disk of .* is full \(\d+ MB free\).*lssgen-build --prune.*LSSGEN_HOME"):
        build(Cache(tmp_path))
    assert names(tmp_path) == ["k.lock"]


def test_a_folder_one_may_not_write_to_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"engines cannot be written to .*file/engines \(Not a directory\)"):
        build(Cache(tmp_path / "file" / "engines"))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> None:
        raise BuildError("refused")

    with pytest.raises(BuildError, match="refused"):
        build(Cache(tmp_path), work=fails)
    assert names(tmp_path) == ["k.lock"]


def left_by_a_killed_build(folder: Path, key: str) -> None:
    draft = folder / f".{key}.{'f' * 16}{durable.PARTIAL}"
    draft.mkdir(parents=True)
    (draft / PLAN).write_bytes(b"half")


def test_what_a_killed_build_left_is_no_engine_and_goes_with_the_next(tmp_path: Path) -> None:
    left_by_a_killed_build(tmp_path, "k")
    cache = Cache(tmp_path)
    assert cache.entries() == []
    build(cache)
    assert names(tmp_path) == ["k", "k.lock"]


def test_pruning_removes_what_killed_builds_left_but_not_what_is_being_built(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    left_by_a_killed_build(tmp_path, "dead")
    with cache.building("alive"), cache.draft("alive"):
        before = [name for name in names(tmp_path) if name.startswith(".alive")]
        with ThreadPoolExecutor() as other:
            assert other.submit(cache.prune).result() == []
        assert [name for name in names(tmp_path) if name.startswith(".")] == before


def _build_slowly(folder: Path, count: Any) -> None:
    def slow() -> None:
        with count.get_lock():
            count.value += 1
        time.sleep(0.3)

    assert build(Cache(folder), work=slow).plan.read_bytes() == BYTES


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
        build(cache, key)
    for key in ("old", "kept"):
        os.utime(tmp_path / key / REPORT, (0, 0))
    assert [entry.key for entry in cache.prune(keep=("kept",), unused_days=7)] == ["old"]
    assert sorted(entry.key for entry in cache.entries()) == ["kept", "new"]


def test_two_who_prune_and_one_who_builds_do_not_trip_over_each_other(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(5)]
    for key in keys:
        build(Cache(tmp_path), key)

    def prune() -> list[str]:
        return [entry.key for _ in range(5) for entry in Cache(tmp_path).prune()]

    def make() -> list[str]:
        for key in keys:
            cache = Cache(tmp_path)
            with cache.building(key):
                cache.get(key)
        return []

    with ThreadPoolExecutor(3) as threads:
        gone = [threads.submit(work) for work in (prune, prune, make)]
        assert sorted(key for one in gone for key in one.result()) == keys


def test_what_was_used_since_it_was_listed_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    entry = build(cache)
    monkeypatch.setattr(cache, "entries", lambda: [replace(entry, used=0.0)])
    assert cache.prune(unused_days=1) == []
    assert cache.get("k") is not None


def test_damage_is_found_and_may_be_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("changed", "cut", "whole"):
        build(cache, key)
    (tmp_path / "changed" / PLAN).write_bytes(b"x" * len(BYTES))
    (tmp_path / "cut" / PLAN).write_bytes(BYTES[:-1])
    faults = cache.faults()
    assert [f"{fault.key} {fault.reason}" for fault in faults] == [
        "changed is damaged: engine.plan is not what was built",
        "cut is not whole: its report cannot be read, or its plan has another size",
    ]
    assert [cache.remove(fault.key) for fault in faults] == [True, True]
    assert (cache.faults(), cache.remove("cut")) == ([], False)
    assert [entry.key for entry in cache.entries()] == ["whole"]


def test_entries_can_be_copied_to_another_machine(tmp_path: Path) -> None:
    build(Cache(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert build(Cache(tmp_path / "there"), work=never).plan.read_bytes() == BYTES


def test_a_key_changes_with_every_part() -> None:
    profile = Profile({"height": fixed(64)})
    keys = [key_of("step", profile), key_of("decode", profile), key_of("step", Profile({"height": fixed(65)}))]
    assert len(set(keys)) == 3
    assert key_of("step", Profile({"height": fixed(64)})) == keys[0]
