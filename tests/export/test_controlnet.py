"""A ControlNet beside a checkpoint: where it comes from, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import factory_control as control
import factory_families as factory
import pytest

from lssgen.commands.export import build_parser, config_from_args
from lssgen.errors import LssgenError, ModelError, UnknownModelError
from lssgen.export.config import ExportConfig
from lssgen.export.export import Design, design
from lssgen.manifest import Picture, Row


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factory.tiny_sd(tmp_path_factory.mktemp("sd") / "checkpoint")


def designed(sd: Path, net: Path | str) -> Design:
    return design(ExportConfig(model=str(sd), output=sd.parent / "bundle", controlnet=str(net)))


def test_its_weights_are_the_steps_and_its_picture_an_input(sd: Path, tmp_path: Path) -> None:
    made = designed(sd, control.control_sd(tmp_path / "net"))
    step = next(recipe for recipe in made.recipes if recipe.name == "step")
    assert step.components == ("unet", "controlnet")
    assert Picture(name="control", read_as="cells") in step.feeds.values()
    (row,) = (port for port in step.inputs if isinstance(step.feeds[port.name], Row))
    assert row.shape == ("batch", 7 + made.wishes.history + 1)
    assert made.facts.control is not None
    assert any("The ControlNet is" in note for note in made.notes)


def test_a_folder_that_has_it_as_a_part_will_do(sd: Path, tmp_path: Path) -> None:
    control.control_sd(tmp_path / "pipeline" / "controlnet")
    assert designed(sd, tmp_path / "pipeline").facts.control is not None


def test_the_costs_of_a_plan_count_it(sd: Path, tmp_path: Path) -> None:
    plain = design(ExportConfig(model=str(sd), output=tmp_path / "bundle")).facts.cost
    steered = designed(sd, control.control_sd(tmp_path / "net")).facts.cost
    assert steered.flops(64) > plain.flops(64)


def test_the_command_asks_for_it() -> None:
    args = build_parser().parse_args(["--model", "sdxl", "--controlnet", "owner/name@v1.0"])
    config = config_from_args(args)
    assert config.controlnet == "owner/name@v1.0"
    assert config.output == Path("bundles/sdxl-name")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (control.control_flux, "is a FluxControlNetModel; a sd checkpoint takes a ControlNetModel"),
        (control.control_sdxl, "of the network 16: it was made for another model"),
    ],
)
def test_one_of_another_family_is_refused(sd: Path, tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        designed(sd, make(tmp_path / "net"))


def test_one_of_another_width_is_refused(sd: Path, tmp_path: Path) -> None:
    net = control.control_sd(tmp_path / "net", block_out_channels=(8, 12))
    with pytest.raises(ModelError, match=r"block_out_channels .* \(8, 12\), of the network \(8, 16\)"):
        designed(sd, net)


def test_one_whose_weights_do_not_fit_its_configuration_is_refused(sd: Path, tmp_path: Path) -> None:
    net = control.control_sd(tmp_path / "net")
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps({**config, "conditioning_embedding_out_channels": [4, 7, 8]}))
    with pytest.raises(ModelError, match="controlnet"):
        designed(sd, net)


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "there is no ControlNet nowhere"), (".", "has no config.json")]
)
def test_what_is_not_there_is_refused(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match=words):
        designed(sd, name)


def test_a_single_file_is_refused(sd: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UnknownModelError, match="single files are not read"):
        designed(sd, file)


def test_a_configuration_without_a_class_is_refused(sd: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not say its class"):
        designed(sd, tmp_path)


@pytest.mark.parametrize("channels", [5, 7])
def test_a_unet_of_other_channels_is_refused(tmp_path: Path, channels: int) -> None:
    folder = factory.tiny_sd(tmp_path / "checkpoint", in_channels=channels)
    with pytest.raises(LssgenError, match=rf"takes {channels} channels; export knows 4 and, for inpainting, 9"):
        design(ExportConfig(model=str(folder), output=tmp_path / "bundle"))
