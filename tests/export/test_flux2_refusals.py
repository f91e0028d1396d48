"""FLUX.2 checkpoints that no bundle can be made of, and what is said about them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factory import tiny_vae
from factory_flux2 import mistral_tokenizer, qwen_tokenizer, tiny_dev, tiny_klein
from safetensors.torch import load_file, save_file

from lssgen.errors import ExportError, ModelError, UnknownModelError
from lssgen.export.config import ExportConfig
from lssgen.export.export import Design, design, export

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_klein(tmp_path_factory.mktemp("checkpoints") / "klein")


@pytest.fixture
def copy(klein: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(klein, tmp_path / "klein"))


def designed(folder: Path, **choices: object) -> Design:
    order = ExportConfig(model=str(folder), output=folder.with_name("bundle"), resolutions=((64, 64),), **choices)  # type: ignore[arg-type]
    return design(order)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("variant", ["Flux2KleinKVPipeline", "Flux2KleinInpaintPipeline"])
def test_a_variant_of_the_pipeline_is_refused_by_its_name(copy: Path, variant: str) -> None:
    change(copy / "model_index.json", _class_name=variant)
    with pytest.raises(UnknownModelError, match=f"pipeline '{variant}', which no record knows"):
        designed(copy)


def test_a_text_encoder_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is of another size.* make 48, and the transformer reads 60"):
        designed(tiny_klein(tmp_path / "klein", joint_attention_dim=60))


def test_a_text_encoder_with_too_few_layers_is_refused(copy: Path) -> None:
    change(copy / "text_encoder" / "config.json", num_hidden_layers=20, layer_types=["full_attention"] * 20)
    with pytest.raises(ModelError, match="hidden states of layer 27 are read, but the text encoder has 20 layers"):
        designed(copy)


@pytest.mark.parametrize(("make", "write"), [(tiny_klein, qwen_tokenizer), (tiny_dev, mistral_tokenizer)])
def test_a_missing_chat_template_is_refused(
    make: Callable[[Path], Path], write: Callable[[Path, None], None], tmp_path: Path
) -> None:
    folder = make(tmp_path / "checkpoint")
    shutil.rmtree(folder / "tokenizer")
    write(folder / "tokenizer", None)
    with pytest.raises(ModelError, match=r"the chat template of .*tokenizer cannot be filled"):
        export(ExportConfig(model=str(folder), output=tmp_path / "bundle", resolutions=((64, 64),), probe="none"))


def test_a_vae_without_statistics_is_refused(copy: Path) -> None:
    file = copy / "vae" / WEIGHTS
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("bn.")}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"no bn\.running_mean and bn\.running_var, by which FLUX\.2 normalises"):
        designed(copy)


def test_statistics_that_are_none_are_refused(copy: Path) -> None:
    file = copy / "vae" / WEIGHTS
    tensors = load_file(file)
    save_file({**tensors, "bn.running_var": -torch.ones(16)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="are not statistics: some are not finite, or a variance is negative"):
        designed(copy)


def test_a_vae_of_another_family_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    tiny_vae(4).save_pretrained(copy / "vae")
    with pytest.raises(ModelError, match=r"is a AutoencoderKL; FLUX\.2 dev and klein is exported with Auto"):
        designed(copy)


def test_more_tokens_than_there_are_places_are_refused(copy: Path) -> None:
    assert designed(copy, max_sequence_length=4096).wishes.max_sequence_length == 4096
    with pytest.raises(ExportError, match="cannot read 4097 tokens"):
        designed(copy, max_sequence_length=4097)


def test_a_family_without_reference_pictures_says_so(sd3: Path, tmp_path: Path) -> None:
    order = ExportConfig(model=str(sd3), output=tmp_path, resolutions=((64, 64),), references=((64, 64),))
    with pytest.raises(ExportError, match="sees no reference pictures; export without --references"):
        design(order)


def test_a_reference_picture_without_a_token_is_refused(copy: Path) -> None:
    with pytest.raises(ExportError, match="a reference picture of 4 x 64 px has no token of 8 px"):
        designed(copy, references=((64, 4),))
