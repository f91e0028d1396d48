"""Write what the package ships of the demo model's bundle: everything but the weights, and where these lie.

    python examples/demo_model/make_bundle.py

Exports the demo model and takes from the export its graphs, tokenizers and manifest, under names that stay the same
from export to export. `lssgen.demo` makes the bundle of them on the user's machine, where there is no torch. Run it
again when something that decides the graphs has changed; tests/test_demo_bundle.py says when.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx

from lssgen.bundle import MANIFEST, Bundle, manifest_json
from lssgen.demo import CHECKPOINT, LAYOUT, NAME, SHIPPED, Weight
from lssgen.manifest import Graph, Manifest


def main() -> None:
    from lssgen.export.config import ExportConfig
    from lssgen.export.export import export

    with TemporaryDirectory() as place:
        config = ExportConfig(model="demo", output=Path(place) / "demo")
        files = shipped(export(config, say=lambda line: print(line, flush=True)))
    SHIPPED.mkdir(exist_ok=True)
    for path in SHIPPED.iterdir():
        path.unlink()
    for name, content in files.items():
        (SHIPPED / name).write_bytes(content)
    print(f"{SHIPPED}: {len(files)} files, {sum(map(len, files.values())) / 1e3:.0f} kB")


def shipped(bundle: Bundle) -> dict[str, bytes]:
    """What is shipped of an exported bundle, by file name."""
    files: dict[str, bytes] = {}
    graphs: dict[str, Graph] = {}
    layout: dict[str, list[Weight]] = {}
    for name, graph in bundle.manifest.graphs.items():
        model = onnx.load(bundle.path(graph.file), load_external_data=False)
        file, data = f"{name}.onnx", {f"{name}.data": graph.sha256[old] for old in graph.data}
        layout |= {new: list(_weights(model)) for new in data}
        files[file] = _with_data_in(model, f"{name}.data")
        sha256 = {file: hashlib.sha256(files[file]).hexdigest(), **data}
        graphs[name] = replace(graph, file=file, data=tuple(data), sha256=sha256)
    files |= {tokens.file: bundle.path(tokens.file).read_bytes() for tokens in bundle.manifest.tokenizers}
    return {**files, LAYOUT: _one_a_line(layout), MANIFEST: _manifest(replace(bundle.manifest, graphs=graphs))}


def _weights(model: onnx.ModelProto) -> Iterator[Weight]:
    """The weights of a graph that lie outside of it, in their order there."""
    (transposed,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == "lssgen.transposed")
    places = {
        weight.name: {entry.key: entry.value for entry in weight.external_data}
        for weight in model.graph.initializer
        if weight.external_data
    }
    for name, place in sorted(places.items(), key=lambda item: int(item[1]["offset"])):
        yield Weight(name, int(place["offset"]), int(place["length"]), name in transposed)


def _with_data_in(model: onnx.ModelProto, file: str) -> bytes:
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = file
    return model.SerializeToString(deterministic=True)


def _one_a_line(layout: Mapping[str, list[Weight]]) -> bytes:
    """JSON with a line for every weight, so that a change can be read in a diff."""
    entries = [
        f'"{file}": [\n' + ",\n".join(msgspec.json.encode(weight).decode() for weight in weights) + "\n]"
        for file, weights in layout.items()
    ]
    return ("{" + ",\n".join(entries) + "}\n").encode()


def _manifest(manifest: Manifest) -> bytes:
    """The manifest, which names the checkpoint as everybody may know it."""
    text = msgspec.json.encode(manifest).replace(str(CHECKPOINT).encode(), NAME.encode())
    return manifest_json(msgspec.json.decode(text, type=Manifest))


if __name__ == "__main__":
    main()
