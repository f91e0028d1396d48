"""The demo model's bundle, for runs that name none."""

import sys
from pathlib import Path

from lssgen import paths
from lssgen.demo import is_current, write_demo_bundle
from lssgen.durable import clear_partial, locked


def demo_bundle(prog: str) -> Path:
    """Its folder; made now if it never was, or by another version of lssgen. Waits for whoever is making it.

    Raises:
        BundleError: A file of this package is damaged.
        OSError: The folder cannot be written.
    """
    folder = paths.bundles() / "demo"
    if is_current(folder):
        return folder
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not is_current(folder):  # nobody has made it while this one waited
            print(f"{prog}: making the demo model's bundle in {folder}, this once", file=sys.stderr)
            clear_partial(folder)
            write_demo_bundle(folder)
    return folder
