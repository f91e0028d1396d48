"""JSON files of a checkpoint folder in the diffusers layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lssgen.errors import ModelError

INDEX = "model_index.json"


def read_json(path: Path) -> Mapping[str, Any]:
    """One JSON object.

    Raises:
        ModelError: The file is missing, or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); is the folder a diffusers checkpoint?") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON file: {error}; download the checkpoint again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object; download the checkpoint again")
    return found


def configs_from_folder(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Configuration of every component that a checkpoint's model_index.json names and that has one.

    Returns:
        By component; schedulers from scheduler_config.json, all others from config.json.

    Raises:
        ModelError: No model_index.json, or a file that is no JSON.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    for name in read_json(folder / INDEX):
        file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if not name.startswith("_") and file.is_file():
            configs[name] = read_json(file)
    return configs
