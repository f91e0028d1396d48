"""What README and docs promise: every command parses, every link leads somewhere, every room is on the map."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = sorted(path.name for path in (ROOT / "lssgen").iterdir() if (path / "__init__.py").exists())


def _commands() -> list[str]:
    text = "\n".join(page.read_text().replace("\\\n", " ") for page in PAGES)
    return sorted({line.strip() for line in text.splitlines() if re.match(r"\s*lssgen-[a-z-]+ ", line)})


def _links() -> list[tuple[str, str]]:
    pattern = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
    return [(str(page.relative_to(ROOT)), link) for page in PAGES for link in pattern.findall(page.read_text())]


@pytest.mark.parametrize("command", _commands())
def test_command_in_the_docs_parses(command: str) -> None:
    program, *flags = shlex.split(command, comments=True)
    module = import_module(f"lssgen.commands.{program.removeprefix('lssgen-').replace('-', '_')}")
    module.build_parser().parse_args(flags)


@pytest.mark.parametrize(("page", "link"), _links())
def test_link_in_the_docs_leads_to_a_file(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("room", ROOMS)
def test_room_is_on_the_map_in_the_readme(room: str) -> None:
    assert f"{room}/" in (ROOT / "README.md").read_text()


def test_readme_shows_every_command() -> None:
    shown = {shlex.split(command)[0] for command in _commands()}
    assert shown >= {"lssgen-export", "lssgen-run", "lssgen-plan", "lssgen-train-upsampler"}
