"""The folder of a bundle while it is made: kill the export at any moment, run it again, and it goes on.

A graph is known by its key, the hash of everything it was made from. It is written under `.export`, renamed to its
place when it is whole, and only then noted down; the manifest is swapped in last, so a reader sees the old bundle or
the new one. File names hold the key, so that a new graph never overwrites one that the old manifest names.
"""

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import msgspec

from lssgen import durable
from lssgen.bundle import MANIFEST, Bundle, files, manifest_json, sha256_of
from lssgen.errors import ExportError
from lssgen.jsons import JsonError, read_json
from lssgen.manifest import Graph, Manifest
from lssgen.soundness import first_fault

WORK = ".export"
OWN_FILE = re.compile(r"[a-z_]+-[0-9a-f]{12}\.(onnx|data)|tokenizer(_\d)?\.json")


@dataclass(frozen=True)
class Store:
    """A bundle's folder, open for writing; see `open_store`.

    Attributes:
        folder: The bundle.
        known: Graphs that are whole, by key.
    """

    folder: Path
    known: dict[str, Graph] = field(default_factory=dict[str, Graph])

    def find(self, key: str) -> Graph | None:
        """A graph that was finished before and is still what it was."""
        graph = self.known.get(key)
        if graph is None or not all(_unchanged(self.folder / name, sha) for name, sha in graph.sha256.items()):
            return None
        return graph

    @contextmanager
    def draft(self, name: str) -> Generator[Path]:
        """A folder to write into; it is gone afterwards, whatever happened."""
        folder = self.folder / WORK / f"draft-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, graph: Graph, draft: Path | None = None) -> None:
        """Move a graph's files out of the draft, if they are there, and note that it is whole."""
        if draft is not None:
            for name in graph.sha256:
                durable.put(draft / name, self.folder / name)
        # After its files: a note means that they are whole.
        durable.write_whole(self.folder / WORK / f"{graph.key}.json", msgspec.json.encode(graph))
        self.known[graph.key] = graph

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole or not at all."""
        durable.write_whole(self.folder / name, data)

    def finish(self, manifest: Manifest) -> Bundle:
        """Swap the manifest in and clear away what it does not name.

        Raises:
            ExportError: Nobody could read the bundle. The folder stays as it was.
        """
        if fault := first_fault(manifest):
            raise ExportError(f"the bundle could not be read: {fault}. This is a mistake of lssgen; report it")
        # Before anything is deleted: files that the old manifest names are there until the new one is.
        durable.write_whole(self.folder / MANIFEST, manifest_json(manifest))
        named = set(files(manifest))
        for path in self.folder.iterdir():
            if OWN_FILE.fullmatch(path.name) and path.name not in named:
                path.unlink()
        # The lock lies in it, and is held: on Windows that one file stays.
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        return Bundle(self.folder, manifest)


@contextmanager
def open_store(folder: Path) -> Generator[Store]:
    """Open a bundle's folder for writing; it is made where it does not exist.

    Raises:
        ExportError: The folder holds something else, cannot be written, or another export is writing into it.
    """
    work = folder / WORK
    try:
        # An export that was stopped before its end has left no manifest yet, but its work folder.
        if folder.exists() and not (folder / MANIFEST).exists() and not work.exists() and any(folder.iterdir()):
            raise ExportError(f"{folder} holds files and is not a bundle; choose a new or an empty folder for --output")
        durable.check_writable(work)
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written ({error.strerror}); choose another folder for --output"
        ) from error
    lock = durable.locked(work / "lock", wait=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ExportError(
            f"another lssgen-export is writing into {folder}; wait for it, or choose another folder"
        ) from error
    try:
        durable.clear_folder(folder)
        # Notes last: they are newer than the manifest.
        yield Store(folder, {**_graphs_of_manifest(folder), **_graphs_noted(work)})
    finally:
        lock.release()


def _graphs_of_manifest(folder: Path) -> dict[str, Graph]:
    """Graphs of a finished bundle. A manifest that cannot be read counts for nothing: it will be written anew."""
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
    except JsonError:
        return {}
    return {graph.key: graph for graph in manifest.graphs.values()}


def _graphs_noted(work: Path) -> dict[str, Graph]:
    """Graphs of an export that did not finish."""
    found: dict[str, Graph] = {}
    for note in work.glob("*.json"):
        try:
            graph = read_json(note, Graph)
        except JsonError:
            continue
        found[graph.key] = graph
    return found


def _unchanged(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256
