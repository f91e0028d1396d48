"""Files on the Hugging Face hub, by what a user calls them; and what its refusals mean."""

import difflib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from lssgen.errors import FetchError, LssgenError, UnknownModelError
from lssgen.export.repository import Terms, look
from lssgen.export.transfer import fetch

_LOG = logging.getLogger("lssgen")

SITE = "https://huggingface.co"

# Neither part of dots alone: ../name is a path, and never a repository.
_NAME = r"(?!\.+/)[\w.-]+/(?!\.+(?:/|$))[\w.-]+"
_REVISION = r"(?:@(?P<revision>[\w./-]+))?"
REPOSITORY = re.compile(rf"(?P<repository>{_NAME}){_REVISION}")
"""owner/name, perhaps with @revision."""

FILE = re.compile(rf"(?P<repository>{_NAME})/(?P<file>[^@]+\.\w+){_REVISION}")
"""owner/name/file, in a folder there or not."""

ADDRESS = re.compile(
    rf"https?:/+(?:huggingface\.co|hf\.co)/(?P<repository>{_NAME})/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?]+)(\?.*)?"
)
"""Address of a file on the hub's pages; a slash is lost where it went through a path."""

_SECRETS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=\?)[^\s'\"),]+|\bhf_\w{4,}")
"""Parts of what a client says that must not be shown: passwords in an address, signatures behind it, tokens."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the hub.

    Attributes:
        repository: Hub id, owner/name.
        file: Path inside it.
        revision: Branch, tag or commit; None: the default branch.
    """

    repository: str
    file: str
    revision: str | None = None

    def fetched(self) -> Path:
        """The file in the hub's cache.

        Raises:
            UnknownModelError: There is no such repository or file.
            FetchError: The hub cannot be reached or refuses.
        """
        path = snapshot(self.repository, self.revision, self._chosen) / self.file
        if not path.is_file():  # of a client that keeps no list of what a repository has
            raise FetchError(
                f"{self.file} of {self.repository} was not fetched before, and the hub cannot be asked: check the "
                "connection and HF_HUB_OFFLINE, or give a local file"
            )
        return path

    def terms(self) -> Terms:
        """The terms of its repository; those that are not known where the hub cannot be asked."""
        return _terms(self.repository)

    def _chosen(self, names: list[str]) -> list[str]:
        if self.file not in names:
            raise UnknownModelError(
                f"{self.repository} has no {self.file}; its files are listed at {SITE}/{self.repository}/tree/main"
            )
        return [self.file]


def hub_file(name: str) -> HubFile | None:
    """The file that a user means by "owner/name/file.safetensors" or its address; None where it cannot be one."""
    # An address at the mirror that HF_ENDPOINT names is one at the hub; a slash is lost as above.
    for mirror in (constants.ENDPOINT, constants.ENDPOINT.replace("://", ":/")):
        if name.startswith(f"{mirror}/"):
            name = SITE + name.removeprefix(mirror)
    match = ADDRESS.fullmatch(name) or FILE.fullmatch(name)
    return match and HubFile(match["repository"], match["file"], match["revision"])


def file_here(name: str | Path) -> Path:
    """A file on this machine: the path, or what the hub has under "owner/name/file.safetensors", in its cache.

    Args:
        name: Path, or name on the hub. A path that exists is always meant.

    Returns:
        A path that exists, or the path as it was given where it is neither here nor could be on the hub.

    Raises:
        UnknownModelError, FetchError: It is not here, and the hub does not give it.
    """
    remote = None if Path(name).exists() else hub_file(str(name))
    if remote is None:
        return Path(name)
    try:
        return remote.fetched()
    except (FetchError, UnknownModelError) as error:
        raise type(error)(f"there is no file {name} here{near(str(name))}, and {error}") from error


def near(name: str) -> str:
    """What there is beside a path that does not exist, as words to append; empty where nothing is like it."""
    path = Path(name)
    if path.is_file():
        return ", but a file of that name; a checkpoint in one file ends in .safetensors"
    if path.parent == Path() or not path.parent.is_dir():
        return ""
    found = difflib.get_close_matches(path.name, (other.name for other in path.parent.iterdir()), 1, cutoff=0.5)
    return f" (did you mean {path.parent / found[0]}?)" if found else ""


def ask(repository: str, fetch: Callable[[], str], *, wanted: str = "") -> str:
    """Do something with the hub; say what to do where it refuses.

    Args:
        repository: Whom it is about.
        fetch: What to do.
        wanted: File without which there is nothing to be done.

    Raises:
        UnknownModelError: There is no such repository, revision or file.
        FetchError: The hub cannot be reached, or wants a licence accepted first.
    """
    page = f"{SITE}/{repository}"
    try:
        return fetch()
    except LssgenError:
        raise
    # Before RepositoryNotFoundError, of which it is a kind.
    except hub_errors.GatedRepoError as error:
        raise FetchError(_how_to_be_let_in(repository, _terms(repository))) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UnknownModelError(
            f"{repository} has no such revision; its branches and commits are listed at {page}"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(
            f"the hub has no {repository}, or does not show it to you; check the name at {page}, and for a private one "
            "sign in with `hf auth login` or set HF_TOKEN"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        if isinstance(error, hub_errors.LocalEntryNotFoundError):
            raise _unreachable(repository, error) from error
        raise UnknownModelError(f"{repository} has no {wanted}; its files are listed at {page}/tree/main") from error
    except Exception as error:  # the hub's client passes on what its HTTP library raises, and changes libraries
        raise _unreachable(repository, error) from error


def snapshot(repository: str, revision: str | None, choose: Callable[[list[str]], list[str]]) -> Path:
    """Some files of a repository, in the hub's cache; what lies there, where the hub cannot be reached.

    The terms of the repository and the size of what is missing are logged before anything is fetched.

    Args:
        repository: Hub id, owner/name.
        revision: Branch, tag or commit; None: the default branch.
        choose: The files that are wanted, of all that there are.

    Raises:
        UnknownModelError, FetchError: The hub does not give them.
    """

    def get() -> str:
        try:
            # Asked first, since `allow_patterns` alone cannot say "safetensors, or else fp16".
            listing = look(repository, revision)
        except (hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
            raise
        except Exception as error:  # no connection, in any of its many forms: what was fetched before may do
            return _kept(repository, revision, choose, error)
        _LOG.info("%s", terms_said(repository, listing.terms))
        return str(fetch(listing, choose(list(listing.files))))

    return Path(ask(repository, get))


def terms_said(repository: str, terms: Terms) -> str:
    """A sentence about the terms of a repository, and about what to do for access."""
    access = {
        "": "",
        "auto": f"; gated: access is given to whoever accepts the terms at {SITE}/{repository}",
        "manual": f"; gated: its authors give access on request, at {SITE}/{repository}",
    }
    return f"{repository}: licence {terms} by its model card{access.get(terms.gated, access['auto'])}"


def _kept(repository: str, revision: str | None, choose: Callable[[list[str]], list[str]], error: Exception) -> str:
    """The folder of what was fetched before.

    Raises:
        FetchError: Some of what is wanted is not there.
        Exception: Nothing is; the error that the hub was left with.
    """
    wanted: list[str] | None = None
    with suppress(hub_errors.CachedRepoTreeNotFoundError):  # fetched by a client that keeps no list: not known
        wanted = choose([entry.path for entry in hub.get_cached_repo_tree(repository, revision=revision)])
    try:
        folder = hub.snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=wanted)
    except hub_errors.IncompleteSnapshotError as part:
        missing = [name for name in wanted or () if not (Path(part.snapshot_path) / name).is_file()]
        few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FetchError(
            f"of {repository} {few} was not fetched before, and the hub does not give it ({_said(error)}): check the "
            "connection and HF_HUB_OFFLINE, and run this again"
        ) from error
    except hub_errors.LocalEntryNotFoundError:
        raise error from None
    _LOG.info("%s is taken as it was fetched before, from %s: %s", repository, folder, _said(error))
    return folder


def _how_to_be_let_in(repository: str, terms: Terms) -> str:
    """What to do about a gate."""
    licence = f" ({terms})" if terms != Terms(gated=terms.gated) else ""
    begin = f"{repository} wants its licence{licence} accepted first: open {SITE}/{repository}, "
    if terms.gated == "manual":
        begin += "ask for access there, which its authors give, "
    else:
        begin += "accept it there, "
    if hub.get_token() is None:
        begin += "then sign in with `hf auth login` or set HF_TOKEN, "
    else:
        begin += "signed in as the owner of the token that is used here (`hf auth login` or HF_TOKEN change it), "
    return f"{begin}and run this again; or pass a local folder with the checkpoint"


def _terms(repository: str) -> Terms:
    """The terms of a repository whose files are not given; what the hub says of it is."""
    with suppress(Exception):  # it is for a message that is said without it, too
        return look(repository, None).terms
    return Terms()


def _unreachable(repository: str, error: Exception) -> FetchError:
    return FetchError(
        f"{repository} could not be fetched ({_said(error)}); what came is kept, and is not fetched again: check the "
        "connection and HF_HUB_OFFLINE, and run this again, or fetch it elsewhere and pass the local folder"
    )


def _said(error: Exception) -> str:
    """What a client says went wrong, in one line without secrets."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0].strip() if lines else 'no reason given'}"
    # The address is not the client's to say: a mirror may be meant, or forgotten.
    if (asked := str(constants.ENDPOINT)) != SITE:
        said += f", at {asked}"
    return without_secrets(said)


def without_secrets(text: str) -> str:
    """A text in which nobody finds a token, a password or a signature."""
    token = hub.get_token()
    return _SECRETS.sub("***", text.replace(token, "***") if token else text)
