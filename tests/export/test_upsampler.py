"""Which latents an upsampler knows: what is refused, what is converted, and what the bundle says about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from factory import tiny_upsampler, write_json
from factory_families import PLAYGROUND, tiny_sdxl

from lssgen.bundle import read_bundle, sha256_of
from lssgen.errors import UpsamplerError
from lssgen.export import upsampler as room
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.manifest import Upsampler
from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.models.nets.upsampler import WEIGHTS_FILE
from lssgen.models.published import PUBLISHED, PublishedUpsampler

SDXL = {"scaling_factor": 0.13025}


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("checkpoints") / "playground", vae=PLAYGROUND)


@pytest.fixture
def order(playground: Path, tmp_path: Path) -> ExportConfig:
    """Playground with an upsampler for SDXL's latents."""
    upsampler = tiny_upsampler(tmp_path / "sdxl", **SDXL)
    return ExportConfig(
        model=str(playground), output=tmp_path / "bundle", resolutions=((32, 32), (64, 64)), upsampler=upsampler,
        threads=1,
    )  # fmt: skip


@pytest.fixture
def called_published(order: ExportConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny upsampler counts as the published one for SDXL, and its folder says nothing."""
    assert order.upsampler is not None
    (order.upsampler / "lssgen.json").unlink()
    known = PublishedUpsampler(name="SDXL", vae=SDXL, lent_to=(PLAYGROUND,))
    monkeypatch.setattr(room, "PUBLISHED", {sha256_of(order.upsampler / WEIGHTS_FILE): known})


def recorded(order: ExportConfig) -> tuple[Upsampler, str]:
    manifest = export(order).manifest
    assert manifest.upsampler is not None
    return manifest.upsampler, " ".join(manifest.notes)


@pytest.mark.slow
def test_the_exported_graph_converts_by_the_formula_and_back(order: ExportConfig) -> None:
    """V = P * std / 0.5 + mean is the VAE's latent, Z = 0.13025 V what the upsampler was trained with."""
    bundle = export(replace(order, convert_latents=True))
    assert order.upsampler is not None
    session = ort.InferenceSession(bundle.path(bundle.manifest.graphs["transition_resnet"].file))
    latent, noise = torch.randn(2, 4, 8, 8), np.zeros((2, 4, 16, 16), np.float32)
    (got,) = session.run(None, {"latent": latent.numpy(), "noise": noise, "mix": np.asarray([[1, 0]] * 2, np.float32)})
    mean, std = (torch.tensor(PLAYGROUND[name]).reshape(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        large = LatentUpSampler.from_pretrained(order.upsampler)(0.13025 * (latent * std / 0.5 + mean))
    # One pass in float32, sums in another order: a few 1e-6 of values around 1.
    torch.testing.assert_close(torch.from_numpy(got), (large / 0.13025 - mean) / std * 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("written")
def test_the_bundle_says_what_it_converts_to(order: ExportConfig) -> None:
    record, notes = recorded(replace(order, convert_latents=True))
    assert record.converted_to == SDXL
    assert "trained for latents with scaling_factor 0.13025; those of this model are converted" in notes
    read = read_bundle(order.output).manifest.upsampler
    assert read is not None
    assert read.converted_to == SDXL


@pytest.mark.usefixtures("called_published")
def test_conversion_remakes_the_transition_and_nothing_else(order: ExportConfig, written: list[str]) -> None:
    export(order)
    written.clear()
    export(replace(order, convert_latents=True))
    assert written == ["transition_resnet"]


def test_another_normalisation_is_refused_with_the_flag_that_converts(order: ExportConfig, written: list[str]) -> None:
    with pytest.raises(
        UpsamplerError, match=r"0\.13025, but those of playground have .*latents_mean.*--convert-latents"
    ):
        export(order)
    assert written == []


@pytest.mark.usefixtures("written", "called_published")
def test_a_published_upsampler_is_lent_unconverted_as_it_was_published(order: ExportConfig) -> None:
    record, notes = recorded(order)
    assert record.converted_to is None
    assert "research" in record.licence
    assert "not converted, as published: --convert-latents does that" in notes
    assert recorded(replace(order, convert_latents=True))[0].converted_to == SDXL


@pytest.mark.usefixtures("called_published")
def test_a_published_upsampler_is_refused_by_a_model_it_was_not_published_for(
    order: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert order.upsampler is not None
    for_sd = PublishedUpsampler(name="SD", vae={"scaling_factor": 0.18215})
    monkeypatch.setattr(room, "PUBLISHED", {sha256_of(order.upsampler / WEIGHTS_FILE): for_sd})
    with pytest.raises(UpsamplerError, match=r"trained for latents with scaling_factor 0\.18215"):
        export(order)


@pytest.mark.usefixtures("written")
def test_equal_normalisations_need_no_conversion(order: ExportConfig) -> None:
    assert order.upsampler is not None
    write_json(order.upsampler / "lssgen.json", PLAYGROUND)
    for convert in (False, True):
        record, notes = recorded(replace(order, convert_latents=convert))
        assert record.converted_to is None
        assert "trained for latents" not in notes


@pytest.mark.usefixtures("written")
def test_an_upsampler_of_unknown_latents_cannot_be_converted_for(order: ExportConfig) -> None:
    assert order.upsampler is not None
    (order.upsampler / "lssgen.json").unlink()
    assert recorded(order)[0].converted_to is None
    with pytest.raises(UpsamplerError, match=r"nothing says which latents .* write scaling_factor, .*lssgen\.json"):
        export(replace(order, convert_latents=True))


@pytest.mark.parametrize(
    "said", [{"scaling_factor": "big"}, {"scaling_factor": 0}, {"latents_mean": [1.0]}, {"shift_factor": [0.1]}]
)
def test_a_normalisation_that_is_none_is_refused(order: ExportConfig, said: dict[str, Any]) -> None:
    assert order.upsampler is not None
    write_json(order.upsampler / "lssgen.json", said)
    with pytest.raises(UpsamplerError, match=rf"{next(iter(said))} in .*lssgen\.json is .*; it must be"):
        export(order)


def test_every_published_upsampler_is_of_another_latent_space() -> None:
    """Else a mix-up of two with equally many channels would go unnoticed."""
    spaces = [(one.vae["scaling_factor"], one.vae.get("shift_factor")) for one in PUBLISHED.values()]
    assert len(set(spaces)) == len(spaces) == 5
    assert all(len(sha256) == 64 for sha256 in PUBLISHED)
