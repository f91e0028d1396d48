"""Where things live on a user's machine."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Folder for bundles, engines, trained upsamplers and converted checkpoints; LSSGEN_HOME moves it."""
    return Path(os.environ.get("LSSGEN_HOME") or platformdirs.user_data_path("lssgen"))


def bundles() -> Path:
    return home() / "bundles"


def engines() -> Path:
    return home() / "engines"


def upsamplers() -> Path:
    return home() / "upsamplers"


def checkpoints() -> Path:
    return home() / "checkpoints"
