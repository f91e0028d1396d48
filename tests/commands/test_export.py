"""lssgen-export: flags, refusals, tables."""

import subprocess
import sys
from pathlib import Path

import pytest

from lssgen.commands.export import build_parser, config_from_args, main
from lssgen.export.config import ExportConfig
from lssgen.lora.asked import Lora
from lssgen.models.aliases import ALIASES


def config(flags: str) -> ExportConfig:
    """What flags ask for."""
    return config_from_args(build_parser().parse_args(["--model", "sd3", *flags.split()]))


def test_without_flags_everything_is_the_records_default() -> None:
    assert config("") == ExportConfig(model="sd3", output=Path("bundles/sd3"))


def test_flags_reach_the_record() -> None:
    flags = "--resolutions 512,1280x768 --precision bf16 --no-t5 --lora a.safetensors:0.8 --lora b --threads 2"
    found = config(flags)
    assert found.resolutions == ((512, 512), (768, 1280))
    assert found.loras == (Lora(Path("a.safetensors"), 0.8), Lora(Path("b")))
    assert (found.precision, found.t5, found.threads) == ("bf16", False, 2)


def test_a_bundle_is_named_after_its_file() -> None:
    args = build_parser().parse_args(["--model", "my/dreams.safetensors"])
    assert config_from_args(args).output == Path("bundles/dreams")


def test_lora_scale_follows_the_last_colon() -> None:
    assert Lora.from_text("a.safetensors:0.8") == Lora(Path("a.safetensors"), 0.8)
    assert Lora.from_text("a.safetensors") == Lora(Path("a.safetensors"), 1.0)
    assert Lora.from_text("C:\\a.safetensors") == Lora(Path("C:\\a.safetensors"), 1.0)


@pytest.mark.parametrize(
    ("flags", "asked"), [("", (False, ())), ("--skip-layers", (True, ())), ("--skip-layers 7,8,9", (True, (7, 8, 9)))]
)
def test_skip_layers_without_a_list_asks_for_the_authors_choice(flags: str, asked: tuple[bool, object]) -> None:
    assert (config(flags).skip_layers, config(flags).layers_to_skip) == asked


def test_list_models_prints_every_alias_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--list-models"])
    lines = capsys.readouterr().out.splitlines()
    for alias, line in zip(ALIASES.values(), lines, strict=True):
        assert line.startswith(alias.name)
        assert alias.licence in line
        assert ("gated" in line) == alias.gated


def test_unknown_model_is_one_line_and_status_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--model", "sd3.6", "--output", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lssgen-export: UnknownModelError: there is no model called 'sd3.6'")
    assert error.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_without_torch_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom lssgen.cli import main; sys.exit(main(['export', '--model=x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("lssgen export: ExportError: lssgen export needs torch; install it with pip install")
    assert 'pip install "lssgen[export]"' in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "lssgen-export: --model is needed; see lssgen-export --help"),
        ("--model sd3 --tf32", "--tf32 is not an option of engine onnxruntime, but of"),
        ("--model sd3 --lora a:nan", "--lora: strength nan of LoRA a is not a finite number; 1 is the LoRA as it was"),
        ("--model sd3 --list", "--list is not an option; did you mean --list-models?"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(
    flags: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_an_engines_library_is_asked_for_before_the_export(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "lssgen.export.export", None)  # would be named if it were asked for first
    assert main(["--model", "demo", "--engine", "tensorrt", "--output", str(tmp_path / "bundle")]) == 1
    assert "engine 'tensorrt' needs the Python package tensorrt" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_command_runs_as_a_module_too() -> None:
    """`lssgen-run` exports the demo model that way."""
    command_line = [sys.executable, "-m", "lssgen.commands.export", "--list-models"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True)
    assert "sd3" in done.stdout
