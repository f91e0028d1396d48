"""lssgen-export: flags, refusals, tables."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from lssgen.commands import export as command
from lssgen.models.aliases import ALIASES


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("512", ((512, 512),)),
        ("512,1024", ((512, 512), (1024, 1024))),
        ("768x512,1536X1024", ((512, 768), (1024, 1536))),
    ],
)
def test_resolutions_are_sides_or_width_by_height(text: str, sizes: tuple[tuple[int, int], ...]) -> None:
    assert command.resolutions(text) == sizes


@pytest.mark.parametrize("text", ["", "512,", "big", "512x", "1x2x3", "-512", "51.2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size; write 512, or 768x1024 for width x height"):
        command.resolutions(text)


def test_lora_scale_follows_the_last_colon() -> None:
    assert command.lora("a.safetensors:0.8") == (Path("a.safetensors"), 0.8)
    assert command.lora("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert command.lora("C:\\a.safetensors") == (Path("C:\\a.safetensors"), 1.0)


def test_skip_layers_without_a_list_asks_for_the_authors_choice() -> None:
    parse = command.build_parser().parse_args
    assert parse(["--model", "sd3"]).skip_layers is None
    assert parse(["--model", "sd3", "--skip-layers"]).skip_layers == ()
    assert parse(["--model", "sd3", "--skip-layers", "7,8,9"]).skip_layers == (7, 8, 9)


def test_list_models_prints_every_alias_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list-models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for alias, line in zip(ALIASES.values(), lines, strict=True):
        assert line.startswith(alias.name)
        assert alias.licence in line
        assert ("gated" in line) == alias.gated


def test_unknown_model_is_one_line_and_status_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--model", "sd3.6", "--output", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lssgen-export: UnknownModelError: there is no model called 'sd3.6'")
    assert error.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_without_torch_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lssgen.export.export", None)
    assert command.main(["--model", "sd3"]) == 1
    assert 'install it with pip install "lssgen[export]"' in capsys.readouterr().err


def test_model_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main([])
    assert "--model is needed" in capsys.readouterr().err


def test_command_runs_as_a_module_too() -> None:
    """`lssgen-run` exports the demo model that way."""
    command_line = [sys.executable, "-m", "lssgen.commands.export", "--list-models"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True)
    assert "sd3" in done.stdout
