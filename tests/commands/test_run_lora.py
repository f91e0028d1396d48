"""`lssgen run --lora`: LoRAs of a run, on record, and refused in one line."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lssgen.bundle import Bundle
from lssgen.commands.export import build_parser, config_from_args
from lssgen.commands.run import main
from lssgen.errors import ExportError

FLAGS = (
    "--threads", "1", "--quiet", "--scaling-space", "latent", "--size", "128", "--min-resolution", "64",
    "--steps", "3", "--save-latents",
)  # fmt: skip


def painted(bundle: Bundle, name: str, *flags: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    assert (
        main(["a red circle", "--bundle", str(bundle.folder), "-o", f"{name}.png", *FLAGS, f"{name}.npy", *flags]) == 0
    )
    return np.load(f"{name}.npy")


def test_loras_of_a_run_are_on_record_and_painted_with_again(
    slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--lora", f"{loras['ink']}:0.5", "--lora", str(loras["oil"]))
    plain, with_loras = painted(slotted, "plain"), painted(slotted, "styled", *flags)
    assert not np.array_equal(plain, with_loras)
    record = json.loads(Path("styled.run.json").read_text())
    assert record["configuration"]["loras"] == list(flags[1::2])
    assert set(record["lora_sha256"]) == {str(loras["ink"]), str(loras["oil"])}
    assert main(["--config", "styled.run.json", "-o", "again.png", "--save-latents", "again.npy", "--quiet"]) == 0
    np.testing.assert_array_equal(np.load("again.npy"), with_loras)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lora", "{vast}"), "vast.safetensors has rank 9, and the slots of this bundle have room for 8"),
        (("--lora", "{ink}:nan"), "is not a finite number"),
        (("--lora", "{ink}:1/2/3"), "has 3 strengths, and the run has 2 stages"),
        (("--lora", "nowhere.safetensors:0.5"), "there is no LoRA nowhere.safetensors"),
    ],
)
def test_loras_that_cannot_be_used_are_refused_in_a_line(
    slotted: Bundle,
    loras: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [flag.format(**loras) for flag in flags]
    assert main(["a", "--bundle", str(slotted.folder), *FLAGS, "x.npy", *named]) == 1
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.glob("*.png"))


def test_a_bundle_without_slots_is_told(
    toy: Path,
    loras: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["a", "--bundle", str(toy), "--quiet", "--scaling-space", "latent", "--lora", str(loras["ink"])]) == 1
    assert "export it with --lora-slots N --lora-rank R" in capsys.readouterr().err


def test_slots_are_asked_for_at_the_export() -> None:
    args = build_parser().parse_args(
        ["--model", "sd3", "--lora-slots", "2", "--lora-rank", "32", "--lora-layers", "all"]
    )
    config = config_from_args(args)
    assert (config.lora_slots, config.lora_rank, config.lora_layers) == (2, 32, "all")


@pytest.mark.parametrize("flags", ["--lora-rank 8", "--lora-layers all"])
def test_what_slots_are_like_is_not_said_without_slots(flags: str) -> None:
    args = build_parser().parse_args(["--model", "sd3", *flags.split()])
    with pytest.raises(ExportError, match="ask for some, --lora-slots N"):
        config_from_args(args)


@pytest.mark.parametrize("flags", ["--lora-slots -1", "--lora-rank 0", "--lora-layers some", "--lora-slots 65"])
def test_impossible_slots_are_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        build_parser().parse_args(["--model", "sd3", *flags.split()])
    assert error.value.code == 2
    assert flags.split()[0] in capsys.readouterr().err
