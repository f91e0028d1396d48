"""A graph's key holds everything that decides its bytes: no change of the code may leave a stale graph behind."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import factory
import factory_chroma
import factory_families
import factory_flux2
import factory_qwen
import factory_zimage
import pytest
import torch

from lssgen.export import workshop
from lssgen.export.checkpoint import Checkpoint, Parts
from lssgen.export.workshop import WRITER, sources_of, sources_sha256
from lssgen.models.configs import read_json
from lssgen.models.families import FAMILIES, family_of
from lssgen.models.nets.recipe import Recipe, Wishes

NETS = sorted({family.nets for family in FAMILIES.values()} | {"lssgen.models.nets.transition"})
TINY = {
    "sd": factory_families.tiny_sd,
    "sdxl": factory_families.tiny_sdxl,
    "sd3": factory.tiny_sd3,
    "flux": factory_families.tiny_flux,
    "flux2": factory_flux2.tiny_klein,
    "cogview4": factory_families.tiny_cogview4,
    "zimage": factory_zimage.tiny_zimage,
    "qwen": factory_qwen.tiny_qwen,
    "qwen21": factory_qwen.tiny_qwen21,
    "chroma": factory_chroma.tiny_chroma,
}


@pytest.mark.slow  # a process with torch for every module, 4 s each
@pytest.mark.parametrize("nets", NETS)
def test_every_module_that_is_loaded_to_write_a_graph_is_in_its_key(nets: str) -> None:
    code = (
        f"import sys, importlib\nfor name in {(*WRITER, nets)!r}: importlib.import_module(name)\n"
        "print(*(m for m, x in sys.modules.items() if m.startswith('lssgen') and getattr(x, '__file__', None)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    known = set(sources_of((*WRITER, nets)))
    # A package's __init__ only gathers names of its modules: what else that loads decides nothing.
    packages = [name for name in loaded if Path(str(import_module(name).__file__)).name == "__init__.py"]
    gathered = set(sources_of(packages))
    assert set(loaded) - gathered <= known
    assert {nets, *WRITER, "lssgen.models.nets.recipe", "lssgen.ports"} <= known


def test_the_positions_that_a_graph_has_tables_for_are_in_its_key() -> None:
    assert "lssgen.models.positions" in sources_of(("lssgen.models.nets.flux",))


def test_a_change_of_any_source_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = (*WRITER, "lssgen.models.nets.flux")
    before = sources_sha256(roots)
    for name, path in sources_of(roots).items():
        changed = tmp_path / f"{name}.py"
        changed.write_bytes(path.read_bytes() + b"\n# changed\n")
        monkeypatch.setattr(workshop, "sources_of", lambda _, n=name, c=changed: {**sources_of(roots), n: c})
        sources_sha256.cache_clear()
        assert sources_sha256(roots) != before
        monkeypatch.undo()
    sources_sha256.cache_clear()


class Spy(Parts):
    """Notes whose configuration is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, torch.float32)
        object.__setattr__(self, "read", set())

    def config(self, name: str) -> Any:
        self.read.add(name)  # type: ignore[attr-defined]
        return super().config(name)


@pytest.mark.parametrize("name", TINY)
def test_a_graph_is_built_from_the_configurations_that_are_in_its_key(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(TINY[name](tmp_path / name))
    for recipe in recipes(checkpoint, name):
        spy = Spy(checkpoint)
        recipe.build(spy)
        assert spy.read <= set(recipe.components), recipe.name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TINY)
def test_what_a_recipe_captured_is_in_its_key(name: str, tmp_path: Path) -> None:
    """Numbers that a recipe's function has taken along from the design must be seen in ports or settings."""
    checkpoint = Checkpoint(TINY[name](tmp_path / name))
    for recipe in recipes(checkpoint, name):
        seen = {repr(value) for value in recipe.settings.values()} | {
            repr(size) for port in (*recipe.inputs, *recipe.outputs) for size in port.shape
        }
        for captured in captured_numbers(recipe):
            assert repr(captured) in seen, f"{recipe.name} has taken {captured!r} along, and its key does not know"


def captured_numbers(recipe: Recipe) -> list[object]:
    cells = getattr(recipe.build, "__closure__", None) or ()
    values = [cell.cell_contents for cell in cells]
    return [value for value in values if isinstance(value, int | float | str) and not isinstance(value, bool)]


def recipes(checkpoint: Checkpoint, name: str) -> tuple[Recipe, ...]:
    family = family_of(read_json(checkpoint.folder / "model_index.json"))
    assert family.name == name
    wishes = Wishes(channels=4, max_sequence_length=24, history=family.history)
    blueprint = import_module(family.nets).blueprint(Parts(checkpoint, torch.float32), wishes)
    return tuple(replace(recipe) for recipe in blueprint.recipes)
