"""Files on the Hugging Face hub, by what a user calls them; and what its refusals mean."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import errors as hub_errors

from lssgen.errors import FetchError, UnknownModelError

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

        def fetch() -> str:
            return hub.hf_hub_download(self.repository, self.file, revision=self.revision)

        return Path(ask(self.repository, fetch, wanted=self.file))


def hub_file(name: str) -> HubFile | None:
    """The file that a user means by "owner/name/file.safetensors" or its address; None where it cannot be one."""
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
    # Before RepositoryNotFoundError, of which it is a kind.
    except hub_errors.GatedRepoError as error:
        raise FetchError(
            f"{repository} wants its licence accepted first: open {page}, accept it there, then sign in with "
            "`hf auth login` or set HF_TOKEN, and run this again; or pass a local folder with the checkpoint"
        ) from error
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

    Args:
        repository: Hub id, owner/name.
        revision: Branch, tag or commit; None: the default branch.
        choose: The files that are wanted, of all that there are.

    Raises:
        UnknownModelError, FetchError: The hub does not give them.
    """

    def fetch() -> str:
        try:
            # Asked first, since `allow_patterns` alone cannot say "safetensors, or else fp16".
            names = hub.list_repo_files(repository, revision=revision)
        except (hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
            raise
        except Exception:  # no connection, in any of its many forms: what was fetched before may do
            return hub.snapshot_download(repository, revision=revision, local_files_only=True)
        return hub.snapshot_download(repository, revision=revision, allow_patterns=choose(names))

    return Path(ask(repository, fetch))


def _unreachable(repository: str, error: Exception) -> FetchError:
    reason = str(error).strip().splitlines()
    return FetchError(
        f"{repository} could not be fetched ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
        "check the connection and HF_HUB_OFFLINE, or fetch it elsewhere and pass the local folder"
    )
