"""A hub that only says what it has, for tests of what is asked of it; one that gives it is in hub_server.py."""

from collections.abc import Callable, Iterable

import pytest

from lssgen.export import remote
from lssgen.export.repository import Entry, Listing


def says_it_has(monkeypatch: pytest.MonkeyPatch, names: Iterable[str] | Callable[[str], Iterable[str]]) -> None:
    """Let every repository, or each of its own, have files of some names, at a commit called as the revision."""

    def look(repository: str, revision: str | None) -> Listing:
        found = names(repository) if callable(names) else names
        files = {name: Entry(name=name) for name in found}
        return Listing(repository=repository, commit=revision or "main", files=files)

    monkeypatch.setattr(remote, "look", look)
