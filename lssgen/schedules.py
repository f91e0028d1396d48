"""Schedules that a search has tried on a bundle, with the quality that each was found to have; kept beside its graphs.

`lssgen calibrate schedule` writes them. A quality holds wherever the bundle runs. Times do not, so none are kept to
choose by: what a schedule takes is worked out from the costs that were measured where it shall run
(`lssgen.measured`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from lssgen.bundle import MANIFEST, Bundle, sha256_of
from lssgen.durable import write_whole
from lssgen.jsons import JsonError, read_json

SCHEDULES = "schedules.json"
FORMAT = 1

Words = Mapping[str, Any]
"""Words of a run, see `lssgen.runtime.options.Options`."""

T = TypeVar("T")


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that was tried.

    Attributes:
        words: Words that it differs from the bundle's own by.
        steps: Evaluations of every stage.
        quality: Mean of what the judge said of its pictures; more is better.
        ms: Median milliseconds of a picture, where the search ran: to look at, not to choose by.
    """

    words: dict[str, Any]
    steps: tuple[int, ...]
    quality: float
    ms: float


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found for one size.

    Attributes:
        height, width: Picture size in pixels.
        written: Time in UTC.
        judge: Name of the judge, and unit of its numbers: "psnr, dB".
        prompts: Number of pictures that each schedule painted.
        axes: Words that the search has set; a caller who says one of them asks for schedules that have it so.
        tried: Schedules, in the order in which they were tried.
    """

    height: int
    width: int
    written: str
    judge: str
    prompts: int
    axes: tuple[str, ...]
    tried: tuple[Tried, ...]

    def fitting(self, said: Words) -> list[Tried]:
        """The schedules that are as a caller has said, as far as the search has set what is said."""
        fixed = {word: _plain(value) for word, value in said.items() if word in self.axes and value is not None}
        return [one for one in self.tried if all(_plain(one.words.get(word)) == fixed[word] for word in fixed)]


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """The file.

    Attributes:
        format: `FORMAT`.
        manifest_sha256: Hash of the manifest that all of it belongs to.
        searches: One for each size.
    """

    format: int = FORMAT
    manifest_sha256: str
    searches: tuple[Search, ...] = ()


def read_searches(bundle: Bundle) -> tuple[Search, ...]:
    """What is known of a bundle; nothing where that is of another manifest, or cannot be read."""
    path = bundle.path(SCHEDULES)
    if not path.is_file():
        return ()
    with suppress(JsonError, OSError):
        file = read_json(path, _File)
        if file.format == FORMAT and file.manifest_sha256 == sha256_of(bundle.path(MANIFEST)):
            return file.searches
    return ()


def search_at(bundle: Bundle, height: int, width: int) -> Search | None:
    """The search of a picture size in pixels; None where there was none."""
    return next((one for one in read_searches(bundle) if (one.height, one.width) == (height, width)), None)


def write_search(bundle: Bundle, search: Search) -> None:
    """Add what was found, in place of what was known of the same size.

    Raises:
        OSError: The bundle cannot be written.
    """
    size = (search.height, search.width)
    others = [one for one in read_searches(bundle) if (one.height, one.width) != size]
    whole = _File(manifest_sha256=sha256_of(bundle.path(MANIFEST)), searches=(*others, search))
    write_whole(bundle.path(SCHEDULES), msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")


def front(found: Sequence[T], cost: Callable[[T], float], quality: Callable[[T], float]) -> list[T]:
    """Those that no other one beats in both cost and quality, the cheapest first."""
    best: list[T] = []
    for one in sorted(found, key=lambda each: (cost(each), -quality(each))):
        if not best or quality(one) > quality(best[-1]):
            best.append(one)
    return best


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType]
