"""The bundle: a folder with graphs, weights and tokenizers, and a manifest that says everything about them.

The runtime reads nothing else and knows no model family.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lssgen.errors import BundleError
from lssgen.jsons import JsonError, NoFileError, decode_json, read_bytes
from lssgen.manifest import FORMAT, Manifest
from lssgen.soundness import first_fault

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and the folder it describes."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        return self.folder / name

    def stored_bytes(self, graph: str) -> int:
        """Size of a graph's files in bytes: hardly more than that of its weights."""
        entry = self.manifest.graphs[graph]
        return sum(self.path(name).stat().st_size for name in (entry.file, *entry.data))


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and see that its files are there. Contents are checked by `verify`.

    Raises:
        BundleError: No manifest, another format version, a manifest that cannot be true, or a file that is missing or
            lies elsewhere.
    """
    bundle = Bundle(folder, read_manifest(folder))
    inside = folder.resolve()
    for name in files(bundle.manifest):
        if not bundle.path(name).is_file():
            raise BundleError(f"bundle {folder} is incomplete: {name} is missing; run the same lssgen-export again")
        # A link out of the folder would let a bundle from elsewhere read any file of this machine as its weights.
        if not bundle.path(name).resolve().is_relative_to(inside):
            raise BundleError(
                f"{bundle.path(name)} is a link to {bundle.path(name).resolve()}, outside of the bundle; put the file "
                "itself there"
            )
    return bundle


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest, whether or not its files are there.

    Raises:
        BundleError: No manifest, another format version, or a manifest that cannot be true.
    """
    path = folder / MANIFEST
    try:
        text = read_bytes(path)
        # Before the rest, which another format need not fit: its reader is told of the format, and not of a missing
        # field.
        _see_format(path, decode_json(text, _Head))
        manifest = decode_json(text, Manifest)
    except NoFileError as error:
        raise BundleError(f"{folder} is not a bundle: {path} {error}; make one with lssgen-export") from error
    except JsonError as error:
        raise BundleError(f"{path} is damaged: it {error}; export the model again") from error
    if fault := first_fault(manifest):
        raise BundleError(f"{path} is damaged: {fault}; export the model again")
    return manifest


class _Head(msgspec.Struct):
    """What every format's manifest says of itself."""

    # Anything, since a damaged manifest may have a text here; it is only compared.
    format: object = None
    lssgen: object = "unknown"


def _see_format(path: Path, head: _Head) -> None:
    if head.format == FORMAT:
        return
    newer = isinstance(head.format, int) and head.format > FORMAT
    advice = "upgrade lssgen to read it" if newer else "export the model again with this one"
    version, writer = (str(said)[:80] for said in (head.format, head.lssgen))
    raise BundleError(
        f"{path} has format {version}, written by lssgen {writer}; this lssgen reads format {FORMAT}: {advice}"
    )


def files(manifest: Manifest) -> tuple[str, ...]:
    """Every file of a bundle but the manifest."""
    graphs = [name for graph in manifest.graphs.values() for name in (graph.file, *graph.data)]
    return tuple(dict.fromkeys((*graphs, *(tokens.file for tokens in manifest.tokenizers))))


def hashes(manifest: Manifest) -> dict[str, str]:
    """Hash of every file of a bundle but the manifest, by name; empty where the manifest does not know it."""
    graphs = {name: sha for graph in manifest.graphs.values() for name, sha in graph.sha256.items()}
    tokenizers = {tokens.file: tokens.sha256 for tokens in manifest.tokenizers}
    # By `files` and not by the hashes: a file without one must be looked for all the same.
    return {name: (graphs | tokenizers).get(name, "") for name in files(manifest)}


def verify(bundle: Bundle, hear: Callable[[int], object] | None = None) -> None:
    """Compare the manifest with its own hash, and every file with its hash in the manifest; reads the whole bundle.

    Args:
        hear: Given the size of every file that was read, in bytes.

    Raises:
        BundleError: Names the first file that differs.
    """
    see_seal(bundle.folder)
    for name, expected in hashes(bundle.manifest).items():
        if expected and sha256_of(bundle.path(name)) != expected:
            raise BundleError(f"{bundle.path(name)} has changed since the export; run the same lssgen-export again")
        if hear is not None:
            hear(bundle.path(name).stat().st_size)


_SEAL = re.compile(rb',\n  "seal": "([0-9a-f]{64})"\n}\n\Z')
"""End of a manifest: the hash of the text that it would be without this entry."""

_LIKE_A_SEAL = re.compile(rb'"[^"]*"\s*:\s*"[^"]{64}"\s*}\s*\Z')
"""End of a manifest whose seal itself is damaged."""


def manifest_json(manifest: Manifest) -> bytes:
    """The manifest as it is written: indented, keys in the order of the classes, sealed with its own hash."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    seal = hashlib.sha256(text).hexdigest()
    return text.removesuffix(b"\n}\n") + f',\n  "seal": "{seal}"\n}}\n'.encode()


def see_seal(folder: Path) -> None:
    """Compare a bundle's manifest with its own hash. One without a seal was written by hand, and is believed.

    Raises:
        BundleError: It has changed.
    """
    path = folder / MANIFEST
    try:
        text = read_bytes(path)
    except NoFileError as error:
        raise BundleError(f"{path} {error}; run the same lssgen-export again") from error
    sealed = _SEAL.search(text)
    body = text[: sealed.start()] + b"\n}\n" if sealed else b""
    # A flipped bit within the seal itself must not make it look as if there had been none.
    whole = hashlib.sha256(body).hexdigest() == sealed[1].decode() if sealed else not _LIKE_A_SEAL.search(text)
    if not whole:
        raise BundleError(
            f"{path} has changed since the export; run the same lssgen-export again, or remove its seal if you have "
            "changed it yourself"
        )


def sha256_of(path: Path) -> str:
    """Hash of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
