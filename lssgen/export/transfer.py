"""From the hub to its cache on this machine: what is missing, and no more; each large file goes on where it stopped.

The hub's own client keeps nothing of a file that it was stopped in (huggingface_hub 2.4 writes to a file with a random
name, and deletes it). Large files are therefore brought to their place in the cache here, by its HTTP function, and the
client finds them there. What lies in the cache is what the hub has: every large file is compared with its hash.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, BinaryIO

import huggingface_hub as hub
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from lssgen import durable
from lssgen.errors import FetchError
from lssgen.export.repository import Entry, Listing
from lssgen.progress import Follower, followed

_LOG = logging.getLogger("lssgen")

AT_A_TIME = 4
"""Files that are fetched at the same time."""

PARTIAL = ".partial"
"""Ending of the name of a file in the cache that is not whole."""


class _StoppedError(Exception):
    """The transfer of a file ends because others have failed, or the user wants no more."""


class Transfer:
    """How far the files of a repository are, for whoever looks on.

    Args:
        listing: The repository.
        entries: Large files that are missing.
    """

    def __init__(self, listing: Listing, entries: Sequence[Entry]) -> None:
        self.stop = Event()
        self._name = listing.repository
        self._total = sum(entry.size for entry in entries)
        self._files = len(entries)
        self._here = sum(_size(partial_of(listing, entry)) for entry in entries)
        self._whole = 0
        self._lock = Lock()
        self._bar: tqdm[Any] | None = None
        self._follower: Follower | None = None

    @contextmanager
    def shown(self) -> Generator[None]:
        """A bar on a terminal, else a line now and then."""
        bar = tqdm(total=self._total, initial=self._here, unit="B", unit_scale=True, desc=self._name, disable=None)
        with bar as self._bar, followed(_LOG.info) as follower:
            self._follower = follower if bar.disable else None
            self.add(0)
            yield

    def add(self, count: int) -> None:
        """So many bytes came, or were given up.

        Raises:
            _StoppedError: No more are wanted.
        """
        if self.stop.is_set():
            raise _StoppedError
        with self._lock:
            self._here += count
            if self._bar is not None:
                self._bar.update(count)
            if self._follower is not None:
                self._follower.at(self._here / max(self._total, 1), self._where())

    def ended(self) -> None:
        """A file is whole."""
        with self._lock:
            self._whole += 1

    def _where(self) -> str:
        done, total = in_bytes(self._here), in_bytes(self._total)
        return f"fetching {self._name}: {done} of {total}, {self._whole} of {self._files} files whole"


class _Bar:
    """What the hub's client takes for a progress bar of one file.

    Args:
        add: Hears of bytes.
        have: Bytes that were there.
        initial: Those of them that count: where a server gives no part of a file, it is 0.
    """

    def __init__(self, add: Callable[[int], None], have: int, initial: int = 0, **_: object) -> None:
        self._add = add
        self._add(initial - have)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float | None = 1) -> None:
        self._add(int(count or 0))


def fetch(listing: Listing, names: Iterable[str]) -> Path:
    """Some files of a repository, in the hub's cache; says before how much that is.

    Args:
        listing: The repository.
        names: Those that are wanted; names that it does not have are passed over.

    Returns:
        The folder of its commit.

    Raises:
        FetchError: There is no room, or a file came damaged.
        Exception: As the hub's client raises it; what came is kept.
    """
    entries = [listing.files[name] for name in names if name in listing.files]
    missing = [entry for entry in entries if entry.size and not _is_here(listing, entry)]
    kept = sum(_size(partial_of(listing, entry)) for entry in missing if entry.sha256)
    size = sum(entry.size for entry in missing)
    if missing:
        _LOG.info("%s", said(listing, entries, size, kept))
        see_room(size - kept, cache(), listing.repository)
    _fetch_large(listing, [entry for entry in missing if entry.sha256])
    # All else is small. It also notes what the commit has, so that it is known offline whether all that is wanted is
    # here.
    silent: Any = _Silent  # the library's hint asks for one class of bars, and its text for any that is like it
    names = [entry.name for entry in entries]
    place = hub.snapshot_download(listing.repository, revision=listing.commit, allow_patterns=names, tqdm_class=silent)
    return Path(place)


class _Silent(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A bar that nobody sees."""

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **{**words, "disable": True})


def said(listing: Listing, entries: Sequence[Entry], size: int, kept: int) -> str:
    """What is going to be fetched, in words."""
    total = sum(entry.size for entry in entries)
    here = f", {in_bytes(total - size + kept)} of it is here already" if total - size + kept else ""
    files = "1 file" if len(entries) == 1 else f"{len(entries)} files"
    return f"{listing.repository} at {listing.commit[:12]}: {files}, {in_bytes(total)}{here}"


def see_room(size: int, folder: Path, what: str) -> None:
    """See that a disk has room.

    Raises:
        FetchError: It has not.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise FetchError(
            f"{what} needs {in_bytes(size)} in {folder}, where {in_bytes(free)} are free; make room, or move the "
            "hub's cache with HF_HUB_CACHE"
        )


def cache() -> Path:
    """Folder of the hub's cache; HF_HUB_CACHE and HF_HOME move it."""
    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def partial_of(listing: Listing, entry: Entry) -> Path:
    """Where the beginning of a large file is kept until it is whole."""
    blob = _blob(listing, entry)
    return blob.with_name(blob.name + PARTIAL)


def in_bytes(count: int) -> str:
    """A number of bytes for people."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"


def _blob(listing: Listing, entry: Entry) -> Path:
    """Place of a large file's contents in the cache, which names them by their hash."""
    folder = cache() / repo_folder_name(repo_id=listing.repository, repo_type="model")
    return folder / "blobs" / entry.sha256


def _is_here(listing: Listing, entry: Entry) -> bool:
    cached = hub.try_to_load_from_cache(listing.repository, entry.name, revision=listing.commit)
    return isinstance(cached, str) or bool(entry.sha256 and _blob(listing, entry).exists())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_large(listing: Listing, entries: Sequence[Entry]) -> None:
    """Large files, several at a time; the first that fails ends all."""
    # Those that HTTP does not give are left to the client, which has a way of its own for them.
    entries = [entry for entry in entries if entry.size <= constants.MAX_HTTP_DOWNLOAD_SIZE]
    if not entries:
        return
    transfer = Transfer(listing, entries)
    with transfer.shown(), ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="fetch") as pool:
        futures = [pool.submit(_fetch_one, listing, entry, transfer) for entry in entries]
        try:
            done = wait(futures, return_when=FIRST_EXCEPTION).done
            for future in done:
                future.result()
        except BaseException:  # Ctrl-C too: the threads end at the next bytes that come, and keep what they have
            transfer.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fetch_one(listing: Listing, entry: Entry, transfer: Transfer) -> None:
    blob, beginning = _blob(listing, entry), partial_of(listing, entry)
    with durable.locked(blob.with_name(f".{entry.sha256}.lock")):
        if not blob.exists():
            _complete(listing, entry, beginning, transfer)
            durable.put(beginning, blob)
    transfer.ended()


def _complete(listing: Listing, entry: Entry, beginning: Path, transfer: Transfer) -> None:
    """Bring a file's beginning to its end.

    Raises:
        FetchError: What came is not what the hub says that it has.
    """
    kept = _size(beginning)
    _append(listing, entry, beginning, transfer)
    if _sha256(beginning) == entry.sha256:
        return
    beginning.unlink()
    transfer.add(-entry.size)
    if not kept:
        raise FetchError(
            f"{entry.name} of {listing.repository} came damaged: its hash is not the one that the hub says; run this "
            "again, and look at what lies between here and there (HF_ENDPOINT, proxies)"
        )
    # What was kept from an earlier time may have been to blame: once more, from the beginning.
    _LOG.warning("%s of %s was kept damaged, and is fetched anew", entry.name, listing.repository)
    _complete(listing, entry, beginning, transfer)


def _append(listing: Listing, entry: Entry, beginning: Path, transfer: Transfer) -> None:
    beginning.parent.mkdir(parents=True, exist_ok=True)
    beginning.touch()
    with beginning.open("r+b") as file:
        have = file.seek(0, 2)
        if have > entry.size:  # of no such file
            transfer.add(-have)
            have = file.truncate(file.seek(0))
        _get(listing, entry, file, have, transfer)


def _get(listing: Listing, entry: Entry, file: BinaryIO, have: int, transfer: Transfer) -> None:
    """The bytes of a file from number `have` on. The client tries again, from where it is, when a connection breaks."""
    # The hub's address and not the one that it sends us on to: that one holds a signature, which ends after a while.
    url = hf_hub_url(listing.repository, entry.name, revision=listing.commit, endpoint=constants.ENDPOINT)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # bytes are counted
    bar: Any = partial(_Bar, transfer.add, have)
    try:
        http_get(
            url,
            file,
            resume_size=have,
            headers=headers,
            expected_size=entry.size,
            displayed_filename=entry.name,
            tqdm_class=bar,
        )
    except HfHubHTTPError as error:
        if error.response.status_code != 416 or not have:
            raise
        # "Range not satisfiable": a mirror that has another file there than the hub says, or had.
        transfer.add(-have)
        file.truncate(file.seek(0))
        _get(listing, entry, file, 0, transfer)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
