"""A bundle with a LoRA in its weights, made from the bundle alone: without its checkpoint, and without torch.

Graphs stay as they are, to the byte, so that engines whose weights can be exchanged need no other build.
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from lssgen.bundle import MANIFEST, Bundle, files, manifest_json, read_bundle, sha256_of
from lssgen.durable import clear_partial, locked, whole_folder
from lssgen.errors import BundleError, ModelError
from lssgen.lora.asked import Lora
from lssgen.lora.deltas import Deltas, read_deltas
from lssgen.lora.placed import Placed, placed_weights
from lssgen.lora.said import CONFIG, places_of
from lssgen.manifest import Graph, Manifest

_LOG = logging.getLogger("lssgen")

_VERSION = 1
"""Changes when the same LoRA would be merged otherwise."""

_LONGEST = 60
"""Characters of a name within a folder's name."""


def styled(bundle: Bundle, lora: Lora, folder: Path) -> Bundle:
    """A bundle with a LoRA merged in, made below a folder, or found there from an earlier time.

    Args:
        bundle: Bundle without it; its step must not be quantised.
        lora: A file or folder on this machine.
        folder: Where such bundles are kept, by what they were made of.

    Raises:
        ModelError: The LoRA does not fit, or is of a kind that only an export merges.
        BundleError: The bundle is quantised or damaged, or the folder cannot be written.
    """
    digest = _digest(bundle, lora)
    place = folder / f"{bundle.folder.resolve().name[:_LONGEST]}@{lora.path.stem[:_LONGEST]}-{digest[:16]}"
    try:
        with locked(place.with_name(f".{place.name}.lock")):
            clear_partial(place)
            with suppress(BundleError):
                return read_bundle(place)
            _LOG.info("merging LoRA %s into %s, this once; it is kept in %s", lora.path, bundle.folder, place)
            return _made(bundle, lora, place, digest)
    except OSError as error:
        raise BundleError(
            f"{place} cannot be written: {error.strerror}; make room there, or set LSSGEN_HOME to another folder"
        ) from error


def _digest(bundle: Bundle, lora: Lora) -> str:
    """Hash of everything that decides what comes out."""
    whole = hashlib.sha256(f"{_VERSION} {sha256_of(bundle.folder / MANIFEST)} {lora.scale!r}".encode())
    for place in places_of(lora.path):
        for path in (place.path, place.path.parent / CONFIG):
            whole.update(f" {place.component} {sha256_of(path) if path.is_file() else ''}".encode())
    return whole.hexdigest()


def _made(bundle: Bundle, lora: Lora, place: Path, digest: str) -> Bundle:
    if quantised := [name for name, graph in bundle.manifest.graphs.items() if graph.quantisation]:
        raise BundleError(
            f"{bundle.folder} is quantised ({quantised[0]}), and a LoRA is merged before that; export the checkpoint "
            "with --lora, and quantise the result"
        )
    weights = placed_weights(bundle)
    deltas = read_deltas(lora, {name: placed[0].shape for name, placed in weights.items()})
    changed = {one.file for name in deltas.by_weight for one in weights[name]}
    with whole_folder(place) as draft:
        for name in files(bundle.manifest):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            # No links: ONNX's own reader refuses weights that have a second name.
            shutil.copyfile(bundle.path(name), draft / name)
        _merge(deltas, weights, draft)
        manifest = _manifest(bundle.manifest, lora, deltas, changed, draft, digest)
        (draft / MANIFEST).write_bytes(manifest_json(manifest))
    return read_bundle(place)


def _merge(deltas: Deltas, weights: Mapping[str, tuple[Placed, ...]], folder: Path) -> None:
    """Change weights where they lie.

    Raises:
        ModelError: One becomes too large for its type.
    """
    for name, delta in deltas.by_weight.items():
        for one in weights[name]:
            with np.errstate(over="ignore"):  # seen below
                value = delta.added_to(one.read(folder / one.file)).astype(one.dtype)
            if not np.isfinite(value.astype(np.float32)).all():
                raise ModelError(f"{name} becomes too large for {one.dtype.name} with this LoRA; ask for less strength")
            one.write(folder / one.file, value)


def _manifest(old: Manifest, lora: Lora, deltas: Deltas, changed: set[str], folder: Path, digest: str) -> Manifest:
    graphs = {name: _graph(graph, changed, folder, digest) for name, graph in old.graphs.items()}
    merged = f"LoRA {lora.path.name} is merged in with strength {lora.scale:g}."
    hashes = {f"lora/{place.path.name}": sha256_of(place.path) for place in places_of(lora.path)}
    source = replace(old.source, sha256={**old.source.sha256, **hashes})
    return replace(old, graphs=graphs, source=source, notes=(*old.notes, merged, *deltas.notes))


def _graph(graph: Graph, changed: set[str], folder: Path, digest: str) -> Graph:
    mine = [name for name in graph.data if name in changed]
    if not mine:
        return graph
    key = hashlib.sha256(f"{graph.key} {digest}".encode()).hexdigest()
    hashes = {name: sha256_of(folder / name) for name in mine}
    # The probes were those of other weights.
    return replace(graph, key=key, sha256={**graph.sha256, **hashes}, probes=())
