"""What README and docs promise: every command parses, every link leads somewhere, every room is on the map."""

import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from lssgen.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"\s*lssgen[ -][a-z-]+ ")
PACKAGE = ROOT / "lssgen"
ROOMS = sorted(f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
MODULES = sorted(path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("_"))


def _commands() -> list[str]:
    text = "\n".join(page.read_text().replace("\\\n", " ") for page in PAGES)
    return sorted({line.strip() for line in text.splitlines() if line.startswith("    ") and COMMAND.match(line)})


def _split(command: str) -> tuple[str, list[str]]:
    """Name and flags of "lssgen run ..." and "lssgen-run ..."."""
    program, *words = shlex.split(command, comments=True)
    return (program.removeprefix("lssgen-"), words) if program != "lssgen" else (words[0], words[1:])


def _links() -> list[tuple[str, str]]:
    pattern = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
    return [(str(page.relative_to(ROOT)), link) for page in PAGES for link in pattern.findall(page.read_text())]


@pytest.mark.parametrize("command", _commands())
def test_command_in_the_docs_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a scheduler's folder is, which is read as soon as it is named
    shutil.copytree(PACKAGE / "models" / "demo" / "scheduler", tmp_path / "checkpoints" / "other" / "scheduler")
    name, flags = _split(command)
    import_module(f"lssgen.commands.{name.replace('-', '_')}").build_parser().parse_args(flags)


@pytest.mark.parametrize(("page", "link"), _links())
def test_link_in_the_docs_leads_to_a_file(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("room", [*ROOMS, *MODULES])
def test_room_is_on_the_map_in_the_readme(room: str) -> None:
    assert re.search(rf"`(lssgen/)?{re.escape(room)}`", _section("The rooms"))


def test_nothing_is_on_the_map_that_is_not_there() -> None:
    names = re.findall(r"`(?:lssgen/)?([a-z_]+(?:/|\.py))`", _section("The rooms"))
    inside = {f"{folder.name}/" for folder in PACKAGE.rglob("*") if folder.is_dir()}
    assert set(names) <= {*ROOMS, *MODULES, *inside}


def test_every_page_is_on_the_map_of_the_documentation() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert [page for page in sorted(pages) if f"({page})" not in index] == []


def test_the_sizes_of_an_installation_are_those_that_were_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "install_size.json").read_text())["sizes"]
    sizes = {(one["extra"], one["torch"]): (one["download_bytes"], one["installed_bytes"]) for one in found}
    rows = {"`onnxruntime`": "", "`export`, torch for the CPU": "CPU", "`export`, torch with CUDA": "CUDA"}
    rows["`tensorrt-rtx`"] = ""
    for row, torch in rows.items():
        extra = row.split("`")[1]
        assert f"| {row} | {' | '.join(map(_size, sizes[extra, torch]))} |" in _section("Installing")


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _section(title: str) -> str:
    return (ROOT / "README.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def test_readme_shows_every_command() -> None:
    assert {_split(command)[0] for command in _commands()} >= set(COMMANDS)
