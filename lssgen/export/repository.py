"""What a repository on the Hugging Face hub has, and on which terms: asked once, before anything is fetched."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import huggingface_hub as hub
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import metadata_load

T = TypeVar("T")

CARD = "README.md"
"""The model card; its head says under which licence a model is."""

UNKNOWN = "unknown"
"""Licence of what says nothing about one."""

TRIES = 3
"""Times that a hub is asked that answers "too many requests"."""

LONGEST_WAIT_S = 60.0
"""Longest pause between two of them, whatever the hub asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a repository.

    Attributes:
        name: Path in it.
        size: Bytes; 0 where the hub does not say.
        sha256: Hash of a large file (Git LFS), by which the hub's cache names it; "" for small ones.
    """

    name: str
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a model card says about the use of a model.

    Attributes:
        licence: Id or name of the licence; "unknown" where the card has none.
        link: Address of its text, or its file in the repository; "" where none is given.
        gated: Way in which access is given: "auto" once the terms are accepted, "manual" by the authors; "": to all.
    """

    licence: str = UNKNOWN
    link: str = ""
    gated: str = ""

    @classmethod
    def of(cls, card: Mapping[str, object], gated: object = "") -> "Terms":
        """The terms in the head of a model card. Other things than texts count as not said.

        Source: the hub's documentation of model cards: `license`; where it is "other", `license_name`; `license_link`.
        """
        licence, name, link = (_text(card.get(key)) for key in ("license", "license_name", "license_link"))
        own = name if licence in ("", "other") and name else licence
        return cls(licence=own or UNKNOWN, link=link, gated=gated if isinstance(gated, str) else "")

    def __str__(self) -> str:
        return f"{self.licence} ({self.link})" if self.link else self.licence


def _text(value: object) -> str:
    """A word of a card. Some hold several licences in a list."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text, cast("list[object]", value))))
    # One line, and no more than a line: it goes into messages and the manifest.
    return " ".join(value.split())[:200] if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at a commit.

    Attributes:
        repository: Hub id, owner/name.
        commit: Hash of the commit.
        files: Files by name.
        terms: Terms of its model card.
    """

    repository: str
    commit: str
    files: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    terms: Terms = field(default_factory=Terms)


def look(repository: str, revision: str | None) -> Listing:
    """Ask the hub what a repository has.

    Raises:
        Exception: As the hub's client raises it; see `lssgen.export.remote.ask`.
    """
    # Made anew: the endpoint that the package's own functions ask is that of the moment of their import.
    api = hub.HfApi()
    # First the commit, of which the client keeps a note for times without a connection; all else is asked of that.
    commit = patiently(lambda: api.resolve_revision(repository, revision=revision)).resolved
    info = patiently(lambda: api.model_info(repository, revision=commit, files_metadata=True))
    found = [
        Entry(name=one.rfilename, size=one.size or 0, sha256=str(one.lfs["sha256"]) if one.lfs else "")
        for one in info.siblings or ()
    ]
    card = info.card_data.to_dict() if info.card_data is not None else {}
    return Listing(
        repository=repository,
        commit=commit,
        files={entry.name: entry for entry in found},
        terms=Terms.of(card, info.gated),
    )


def patiently(ask: Callable[[], T]) -> T:
    """Ask the hub; where it is asked too often, wait as long as it says, and ask again."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code != 429:
                raise
            time.sleep(_pause_s(error.response.headers.get("Retry-After", "")))
    return ask()


def _pause_s(said: str) -> float:
    """Seconds to wait; the header may also hold a date, which is taken for a short while."""
    return min(float(said), LONGEST_WAIT_S) if said.isdecimal() else 2.0


def terms_of_folder(folder: Path) -> Terms:
    """The terms in the model card of a checkpoint's folder, where there is one that can be read."""
    try:
        # Read as it is: the package's own loader reads the head alone, whatever follows.
        card: Any = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except Exception:  # somebody else's YAML, in which anything may be wrong; a model works without its card
        card = None
    return Terms.of(cast("Mapping[str, object]", card)) if isinstance(card, dict) else Terms()
