"""JSON files of a checkpoint folder in the diffusers layout."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lssgen.errors import ModelError
from lssgen.jsons import JsonError, NoFileError, decode_json, read_bytes

INDEX = "model_index.json"

NAME = re.compile(r"\w{1,100}")
"""Names of parts: each is that of a folder."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the few lines that git keeps in the place of a large file, until Git LFS fetches it."""


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """See that a file is itself, and not what git has in its place.

    Raises:
        ModelError: It is a pointer of Git LFS.
    """
    if beginning.startswith(POINTER):
        raise ModelError(
            f"{path} is a pointer of Git LFS and not the file itself, which was never fetched: run `git lfs pull` in "
            "that folder, or fetch the checkpoint with `hf download`"
        )


def read_json(path: Path) -> Mapping[str, Any]:
    """One JSON object.

    Raises:
        ModelError: The file is missing, or holds no JSON object.
    """
    try:
        data = read_bytes(path)
        refuse_pointer(path, data)
        return decode_json(data, dict[str, Any])
    except NoFileError as error:
        raise ModelError(f"{path} {error}; is the folder a diffusers checkpoint?") from error
    except JsonError as error:
        raise ModelError(f"{path} {error}; download the checkpoint again") from error


def configs_from_folder(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Configuration of every component that a checkpoint's model_index.json names and that has one.

    Returns:
        By component; schedulers from scheduler_config.json, all others from config.json.

    Raises:
        ModelError: No model_index.json, or a file that is not JSON.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    for name in read_json(folder / INDEX):
        if not NAME.fullmatch(name):
            raise ModelError(
                f"{folder / INDEX} names a part {name[:40]!r}, which is not the name of a folder; download the "
                "checkpoint again"
            )
        file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if not name.startswith("_") and file.is_file():
            configs[name] = read_json(file)
    return configs
