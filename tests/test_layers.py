"""The picture of the house, kept true: who may import whom, and which heavy library lives in which room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lssgen"

# A room (longest prefix wins) and the rooms it may import, besides itself.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "paths": set(),
    "ports": set(),
    "plan": {"errors"},
    "bundle": {"errors", "ports", "plan"},
    "parity": {"errors", "ports", "bundle"},
    "engines": {"errors", "paths", "ports", "plan", "bundle", "engines.trt"},  # the two last lines of a circle that goes
    "engines.trt": {"errors", "paths", "ports", "plan", "bundle", "parity", "engines"},
    "testing": {"errors", "ports", "plan", "bundle", "engines"},
    "models": {"errors", "ports", "plan", "bundle"},
    "models.nets": {"errors", "paths", "ports", "plan", "bundle", "models"},
    "export": {"errors", "paths", "ports", "plan", "bundle", "parity", "models", "models.nets"},
    "training": {"errors", "paths", "models", "models.nets", "export"},
    "runtime": {"errors", "paths", "ports", "plan", "bundle", "engines"},
    "commands": {"*"},
    "": {"errors", "runtime", "bundle", "engines", "plan"},  # lssgen/__init__.py
}

# A library and the rooms that may name it. A name below TYPE_CHECKING counts too: hints are imports for a reader.
LIBRARIES: dict[str, set[str]] = {
    "torch": {"models.nets", "export", "training"},
    "diffusers": {"models.nets", "export", "training"},
    "transformers": {"models.nets", "export"},
    "onnx": {"export", "parity", "engines.trt"},
    "onnx_ir": {"export", "parity"},
    "onnxscript": {"export"},
    "onnxruntime": {"engines", "parity"},
    "tensorrt": {"engines.trt"},
    "tensorrt_rtx": {"engines.trt"},
    "cuda": {"engines"},
    "PIL": {"runtime", "training", "commands"},
    "tokenizers": {"runtime", "export"},
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


def _modules() -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


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
