"""Where things live on a user's machine."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Folder for bundles, engines, trained upsamplers and converted checkpoints; LSSGEN_HOME moves it."""
    # "~" may come as it was written: no shell has read a line of a Dockerfile, a unit or a .env file.
    return Path(os.environ.get("LSSGEN_HOME") or platformdirs.user_data_path("lssgen")).expanduser()


def bundles() -> Path:
    return home() / "bundles"


def find_bundle(name: str | Path) -> Path:
    """A bundle's folder: the path itself, or a folder of that name among the user's bundles."""
    named = bundles() / name
    return named if not Path(name).exists() and named.exists() else Path(name)


def loras() -> Path:
    return home() / "loras"


def styles() -> Path:
    """Folder for bundles that a server has merged LoRAs into."""
    return home() / "styles"


def engines() -> Path:
    return home() / "engines"


def upsamplers() -> Path:
    return home() / "upsamplers"


def checkpoints() -> Path:
    return home() / "checkpoints"
