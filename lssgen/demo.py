"""The demo model as a bundle, made without torch from what this package ships.

The package holds the model's weights once, as a checkpoint in half precision (`models/demo`), and beside it what an
export of that checkpoint is made of besides weights: graphs, tokenizers and manifest (`models/demo_bundle`), and a
layout that says where in the graphs' data files every weight lies. `examples/demo_model/make_bundle.py` writes them.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from lssgen.bundle import MANIFEST, hashes, see_seal, sha256_of
from lssgen.durable import whole_folder
from lssgen.errors import BundleError
from lssgen.jsons import JsonError, decode_json, read_json
from lssgen.manifest import FORMAT, Manifest

CHECKPOINT = Path(__file__).parent / "models" / "demo"
SHIPPED = Path(__file__).parent / "models" / "demo_bundle"
LAYOUT = "layout.json"
NAME = "lssgen/models/demo"
"""Name that the shipped manifest has for the checkpoint; a user's own export names its folder."""


class Weight(msgspec.Struct, frozen=True, array_like=True):
    """A weight's place in a data file.

    Attributes:
        name: Folder in the checkpoint, a dot, and the tensor's key in that folder's safetensors file.
        offset: First byte; zeros fill up what lies between two weights.
        nbytes: Number of bytes, float32 and little-endian.
        transposed: True where the rows in the file are the tensor's columns.
    """

    name: str
    offset: int
    nbytes: int
    transposed: bool


Layout = dict[str, tuple[Weight, ...]]
"""Weights of every data file, by its name, in the order in which they lie there."""


def write_demo_bundle(folder: Path) -> None:
    """Write the demo model's bundle in place of `folder`, whole or not at all; in a second or less, and 41 MB.

    For whoever holds the lock of that place, where others may write it too.

    Raises:
        BundleError: A file of this package is missing or damaged: what comes out is not what was exported.
        OSError: The folder cannot be written.
    """
    try:
        see_seal(SHIPPED)
        layout = read_json(SHIPPED / LAYOUT, Layout)
        expected = hashes(read_json(SHIPPED / MANIFEST, Manifest))
    except (FileNotFoundError, JsonError, BundleError) as error:
        raise _damaged(error) from error
    with whole_folder(folder) as draft:
        for name, sha256 in expected.items():
            # Compared while the draft is nobody's bundle yet: a damaged package leaves none.
            if _written(name, layout.get(name), draft / name) != sha256:
                raise _damaged(f"{name} comes out otherwise than it was exported")
        shutil.copyfile(SHIPPED / MANIFEST, draft / MANIFEST)


def is_current(folder: Path) -> bool:
    """True where a folder holds the demo model's bundle for this lssgen: as this package makes it, or the user's own.

    One that another version's package made is not, nor is one in another version's format.
    """
    try:
        found = (folder / MANIFEST).read_bytes()
        said = decode_json(found, _Said)
        shipped = (SHIPPED / MANIFEST).read_bytes()
    except (OSError, JsonError):
        return False
    # The user's own export under the demo's name is left alone; only what a package made is made again.
    return said.format == FORMAT and (said.source.model != NAME or found == shipped)


class _Source(msgspec.Struct):
    model: str


class _Said(msgspec.Struct):
    """What every format's manifest says."""

    format: int
    source: _Source


def _written(name: str, weights: Sequence[Weight] | None, path: Path) -> str:
    """Write a file of the bundle: a copy, or one made of weights; returns its hash."""
    try:
        if weights is None:
            shutil.copyfile(SHIPPED / name, path)
            return sha256_of(path)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for piece in _pieces(weights):
                file.write(piece)
                digest.update(piece)
        return digest.hexdigest()
    except (FileNotFoundError, SafetensorError) as error:
        raise _damaged(error) from error


def _pieces(weights: Sequence[Weight]) -> Iterator[bytes]:
    """Bytes of a data file, a weight at a time."""
    at = 0
    for weight in weights:
        folder, _, key = weight.name.partition(".")
        with safe_open(_weights_of(folder), framework="numpy") as tensors:
            # The exported files are little-endian float32 on every machine, and their hashes are those of such bytes.
            tensor = tensors.get_tensor(key).astype("<f4")
        yield bytes(weight.offset - at)
        yield np.ascontiguousarray(tensor.T if weight.transposed else tensor).tobytes()
        at = weight.offset + weight.nbytes


def _weights_of(folder: str) -> Path:
    """The one safetensors file of a component.

    Raises:
        FileNotFoundError: There is none.
    """
    found = next((CHECKPOINT / folder).glob("*.safetensors"), None)
    if found is None:
        raise FileNotFoundError(f"{CHECKPOINT / folder} has no weights")
    return found


def _damaged(reason: object) -> BundleError:
    return BundleError(
        f"the demo model in {CHECKPOINT.parent} is damaged ({reason}); "
        "install lssgen again: pip install --force-reinstall --no-deps lssgen"
    )
