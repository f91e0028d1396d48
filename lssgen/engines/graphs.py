"""From the file of a graph back to the bundle that it is part of: a backend is given files."""

from pathlib import Path

from lssgen.bundle import MANIFEST, Bundle, Graph, read_bundle


def bundle_of(graph: Path) -> tuple[Bundle, str] | None:
    """The bundle that a graph's file is part of, and the graph's name there; None where it is of no bundle.

    Raises:
        BundleError: There is a manifest, and it cannot be read.
    """
    for folder in graph.parents:
        if (folder / MANIFEST).is_file():
            bundle = read_bundle(folder)
            for name, own in bundle.manifest.graphs.items():
                if bundle.path(own.file) == graph:
                    return bundle, name
    return None


def stored_bytes(bundle: Bundle, graph: Graph) -> int:
    """Bytes of a graph's files: hardly more than its weights."""
    return sum(bundle.path(name).stat().st_size for name in (graph.file, *graph.data))
