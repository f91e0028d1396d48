"""A model repository for Triton, written whole or not at all.

OUTPUT/NAME/config.pbtxt
OUTPUT/NAME/1/model.py
OUTPUT/NAME/1/bundle/        a copy of the bundle. No hard links: onnx refuses weights that have several, those of the
                             bundle itself too
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from lssgen.bundle import MANIFEST, Bundle, files
from lssgen.durable import clear_partial, locked, whole_folder
from lssgen.engines.registry import needs_gpu
from lssgen.errors import ServingError
from lssgen.runtime.options import Options, request_from_options
from lssgen.serving.triton.ports import INPUTS, OUTPUTS, TritonPort

MODEL = '''"""A bundle of lssgen; the Python of Triton's backend must have lssgen installed."""

from lssgen.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

LONG_COPY = 256_000_000
"""Bytes of a file from which on its copying is said: a second's work of a slow disk."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """What a repository says of a model.

    Attributes:
        name: Name in the repository, and of its folder.
        engine: Engine of lssgen that runs it, as for `lssgen.load`.
        engine_options: Options of that engine, in words that JSON has.
        server_options: Limits and sizes of the engine room, in words that JSON has.
        hooks: Names of the hooks that pictures pass, as `lssgen.runtime.checking.Guard` takes them.
    """

    name: str
    engine: str = ""
    engine_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    server_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    hooks: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ServingError(
                f"{self.name!r} cannot be a model's name in Triton; take letters, digits and _ . - for it, 64 at most"
            )


def export_triton(bundle: Bundle, output: Path, model: TritonModel, *, say: Callable[[str], object]) -> Path:
    """Write a model into a repository; one of that name is replaced.

    Args:
        bundle: What it paints from.
        output: The repository's folder.
        model: What it says.
        say: Hears a line about every file that is copied.

    Returns:
        The model's folder.

    Raises:
        PlanError: The bundle cannot be painted at a size that the server would get ready for.
        ServingError: It cannot be written, another process writes it, or the folder has something else in it.
    """
    for height, width in model.server_options.get("sizes", ()):
        request_from_options(bundle, Options(height=height, width=width))
    place = output / model.name
    if place.exists() and not (place / "config.pbtxt").exists():
        raise ServingError(f"{place} is there and is not a model of Triton's; choose another --name or --output")
    try:
        with locked(output / f".{model.name}.lock", wait=False):
            clear_partial(place)
            with whole_folder(place) as draft:
                (draft / "1").mkdir()
                (draft / "1" / "model.py").write_text(MODEL)
                (draft / "config.pbtxt").write_text(config_text(model))
                _give(bundle, draft / "1" / "bundle", say)
    except filelock.Timeout as error:
        raise ServingError(f"another process is writing {place}; wait for it") from error
    except OSError as error:
        raise ServingError(f"{place} cannot be written: {error.strerror}; choose another --output") from error
    return place


def config_text(model: TritonModel) -> str:
    """config.pbtxt, in protobuf's text form."""
    kind = "KIND_GPU" if needs_gpu(model.engine) else "KIND_CPU"
    parameters = {
        "bundle": "bundle",
        "engine": model.engine,
        "engine_options": json.dumps(dict(model.engine_options)),
        "server_options": json.dumps(dict(model.server_options)),
        "hooks": json.dumps(dict(model.hooks)),
    }
    lines = [
        f"name: {json.dumps(model.name)}",
        'backend: "python"',
        "# The engine room batches, step by step; Triton hands over one request at a time.",
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
        *(_port("input", name, port) for name, port in INPUTS.items()),
        *(_port("output", name, port) for name, port in OUTPUTS.items()),
        *(
            f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _port(side: str, name: str, port: TritonPort) -> str:
    dims = ", ".join(map(str, port.dims))
    optional = " optional: true" if side == "input" and port.optional else ""
    return f"{side} {{ name: {json.dumps(name)} data_type: {port.type} dims: [ {dims} ]{optional} }}"


def _give(bundle: Bundle, folder: Path, say: Callable[[str], object]) -> None:
    """The files of a bundle in another folder."""
    for name in (MANIFEST, *files(bundle.manifest)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if bundle.path(name).stat().st_size > LONG_COPY:
            say(f"copying {name}")
        shutil.copyfile(bundle.path(name), target)
    engines = bundle.folder / "engines"
    if engines.is_dir():
        shutil.copytree(engines, folder / "engines", copy_function=shutil.copyfile)
