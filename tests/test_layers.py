"""The picture of the house, kept true: who may import whom, and which heavy library lives in which room."""

import ast
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lssgen"

# What a bundle is, and what every room that works with one may know.
BUNDLES = {"errors", "ports", "plan", "manifest", "soundness", "bundle", "jsons", "files"}

# A room (longest prefix wins) and the rooms it may import, besides itself.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "paths": set(),
    "ports": set(),
    "choices": set(),
    "durable": set(),
    "files": set(),
    "jsons": {"files"},
    "images": {"files"},
    "machine": set(),
    "progress": set(),
    "plan": {"errors", "choices", "jsons"},
    "manifest": {"errors", "ports", "plan"},
    "soundness": {"ports", "plan", "manifest"},
    "bundle": {"errors", "manifest", "files", "jsons", "soundness"},
    "demo": {"errors", "durable", "jsons", "manifest", "bundle"},
    "verification": {"errors", "paths", "durable", "jsons", "manifest", "bundle"},
    "ort": set(),
    "measured": {"durable", "jsons", "machine", "plan", "bundle"},
    "schedules": {"durable", "jsons", "bundle"},
    "parity": {"errors", "ort", "ports", "manifest"},
    "engines": {*BUNDLES, "choices", "machine", "ort"},  # engines.trt by name only, when it is chosen
    "engines.trt": {*BUNDLES, "choices", "progress", "paths", "durable", "verification", "parity", "engines"},
    "engines.cpu": {*BUNDLES, "choices", "machine", "paths", "durable", "parity", "engines"},
    "testing": {*BUNDLES, "engines"},
    "models": {"errors", "jsons", "plan"},
    "models.nets": {*BUNDLES, "paths", "durable", "models"},
    "lora": {*BUNDLES, "durable", "models"},
    "export": {
        *BUNDLES,
        "choices",
        "machine",
        "progress",
        "paths",
        "durable",
        "parity",
        "lora",
        "models",
        "models.nets",
    },
    "training": {
        "choices",
        "durable",
        "errors",
        "files",
        "images",
        "jsons",
        "machine",
        "models",
        "models.nets",
        "paths",
        "plan",
        "progress",
    },
    "runtime": {
        *BUNDLES,
        "images",
        "choices",
        "paths",
        "durable",
        "verification",
        "engines",
        "lora",
        "measured",
        "schedules",
    },
    "serving": {*BUNDLES, "choices", "paths", "durable", "verification", "engines", "lora", "runtime", "schedules"},
    "serving.http": {
        "choices",
        "durable",
        "engines",
        "errors",
        "files",
        "images",
        "jsons",
        "lora",
        "paths",
        "plan",
        "runtime",
        "serving",
        "verification",
    },
    "serving.triton": {*BUNDLES, "durable", "engines", "runtime", "serving"},
    "serving.ray": {"bundle", "engines", "errors", "jsons", "runtime", "serving", "serving.http"},
    "bench": {*BUNDLES, "choices", "machine", "paths", "durable", "engines", "engines.cpu", "measured", "runtime"},
    "calibration": {
        *BUNDLES,
        "choices",
        "durable",
        "engines",
        "engines.trt",
        "images",
        "models",
        "parity",
        "measured",
        "progress",
        "runtime",
        "schedules",
    },
    "commands": {"*"},
    "cli": {"commands"},
    "__main__": {"cli"},
    "": {"runtime", "serving"},  # lssgen/__init__.py
}

# A library and the rooms that may name it. A name below TYPE_CHECKING counts too: hints are imports for a reader.
LIBRARIES: dict[str, set[str]] = {
    "torch": {"models.nets", "export", "training"},
    "diffusers": {"models.nets", "export", "training"},
    "transformers": {"models.nets", "export"},
    "onnx": {"export", "lora", "parity", "engines.trt", "calibration"},
    "onnx_ir": {"export", "parity", "calibration"},
    "onnxscript": {"export"},
    "onnxruntime": {"ort"},
    "tensorrt": {"engines.trt"},
    "tensorrt_rtx": {"engines.trt"},
    "openvino": {"engines.cpu"},
    "matplotlib": {"bench", "calibration"},
    "ruptures": {"bench"},
    "mlperf_loadgen": {"bench"},
    "pytest": {"bench"},
    "cuda": {"engines"},
    "PIL": {
        "images",
        "runtime",
        "serving",
        "serving.http",
        "serving.ray",
        "serving.triton",
        "training",
        "calibration",
        "commands",
    },
    "tokenizers": {"runtime", "export"},
    "starlette": {"serving.http", "serving.ray"},
    "uvicorn": {"serving.http"},
    "prometheus_client": {"serving.http"},
    "opentelemetry": {"serving.http"},
    "ray": {"serving.ray"},
    "triton_python_backend_utils": {"serving.triton"},
}


def _room(module: str) -> str:
    return max((room for room in ROOMS if module == room or module.startswith(f"{room}.") or not room), key=len)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only, they say which room is entered"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _modules(root: Path = ROOT) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def _circle(root: Path) -> list[str]:
    """Modules of a package that import each other in a ring, the first one again at the end; empty if there is none.

    Imports for hints and inside functions count. That Python runs a package's __init__ before its modules does not.
    """
    modules = {f"{root.name}.{module}".rstrip("."): path for module, path in _modules(root)}
    graph = {
        module: {_owner(name, modules) for name in _imports(path)} & set(modules) for module, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def _owner(name: str, modules: Collection[str]) -> str:
    """The module that an import of `name` reads: itself, or the one that it is a name in."""
    return name if name in modules else name.rpartition(".")[0]


@pytest.mark.parametrize(("module", "path"), _modules(), ids=lambda value: str(value) if isinstance(value, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    room = _room(module)
    for name in _imports(path):
        if name.startswith("lssgen."):
            target = _room(name.removeprefix("lssgen."))
            allowed = ROOMS[room] | {room}
            assert target in allowed or "*" in allowed, f"{room or 'lssgen'} may not import {target} ({name})"


@pytest.mark.parametrize(("module", "path"), _modules(), ids=lambda value: str(value) if isinstance(value, str) else "")
def test_heavy_libraries_stay_in_their_rooms(module: str, path: Path) -> None:
    for name in _imports(path):
        library = name.split(".")[0]
        if library in LIBRARIES:
            assert _room(module) in LIBRARIES[library], f"{library} does not belong into {module}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    circle = _circle(ROOT)
    assert not circle, " <- ".join(circle)


@pytest.mark.parametrize(
    ("first", "second", "circle"),
    [
        ("from house.b import x", "import ast", False),
        ("from house.b import x", "from house.a import y", True),
        ("from house.b import x", "from house import a", True),
        ("from house.b import x", "if TYPE_CHECKING:\n    from house.a import y", True),
        ("from house.b import x", "def f():\n    import house.a", True),
        ("from house.b import x", "from house import z", False),
    ],
)
def test_circles_are_seen_in_hints_and_functions_too(tmp_path: Path, first: str, second: str, circle: bool) -> None:
    (tmp_path / "house").mkdir()
    for name, text in (("__init__", ""), ("a", first), ("b", second)):
        (tmp_path / f"house/{name}.py").write_text(text)
    assert set(_circle(tmp_path / "house")) == ({"house.a", "house.b"} if circle else set())
