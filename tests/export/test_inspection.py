"""What is wrong with a checkpoint is seen before anything is written, and called by its name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import write_json
from factory_families import tiny_sd, tiny_sdxl
from safetensors.torch import load_file, save_file

from lssgen.errors import ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import ExportConfig
from lssgen.export.export import design, export
from lssgen.models.families import FAMILIES


@pytest.fixture
def copy(sd3: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return shutil.copytree(sd3, tmp_path / "broken")


def changed(file: Path, **fields: Any) -> None:
    write_json(file, {**json.loads(file.read_text()), **fields})


def other_class(copy: Path) -> str:
    changed(copy / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    return r"text_encoder of .* is a CLIPTextModel; Stable Diffusion 3 .*CLIPTextModelWithProjection"


def class_of_another_library(copy: Path) -> str:
    changed(copy / "model_index.json", text_encoder_3=["transformers", "UMT5EncoderModel"])
    return r"text_encoder_3 of .* is a UMT5EncoderModel; .*T5EncoderModel"


def own_code(copy: Path) -> str:
    changed(copy / "transformer" / "config.json", _class_name="MyTransformer2DModel")
    return r"transformer of .* is a MyTransformer2DModel; .*SD3Transformer2DModel"


def quantised_transformer(copy: Path) -> str:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    changed(copy / "transformer" / "config.json", quantization_config=settings)
    return r"transformer of .* is quantised \(bitsandbytes\); give the folder that it was made from"


def quantised_encoder(copy: Path) -> str:
    changed(copy / "text_encoder_3" / "config.json", quantization_config={"quant_method": "gptq"})
    return r"text_encoder_3 of .* is quantised \(gptq\)"


def packed_weights(copy: Path) -> str:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "x.weight": torch.ones(2, dtype=torch.uint8)}, file)
    return r"is quantised \(x\.weight is stored as U8\)"


def pointer(copy: Path) -> str:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 167335342\n")
    return r"vae/diffusion_pytorch_model\.safetensors is a pointer of Git LFS"


def missing_t5(copy: Path) -> str:
    shutil.rmtree(copy / "text_encoder_3")
    return r"names text_encoder_3, but there is no such folder; --no-t5 does without it"


def t5_without_weights(copy: Path) -> str:
    (copy / "text_encoder_3" / "model.safetensors").unlink()
    return r"text_encoder_3 has no weights; .*--no-t5 does without it"


def vae_that_does_not_fit_its_configuration(copy: Path) -> str:
    changed(copy / "vae" / "config.json", block_out_channels=[8, 8, 16])
    return r"does not fit the model that its config describes; tensors(?s:.*)vae\.decoder\.conv_in"


BREAKAGES: tuple[Callable[[Path], str], ...] = (
    other_class,
    class_of_another_library,
    own_code,
    quantised_transformer,
    quantised_encoder,
    packed_weights,
    pointer,
    missing_t5,
    t5_without_weights,
    vae_that_does_not_fit_its_configuration,
)


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda one: one.__name__)
def test_what_is_wrong_is_told_before_anything_is_written(
    config: ExportConfig, copy: Path, written: list[str], breakage: Callable[[Path], str]
) -> None:
    words = breakage(copy)
    with pytest.raises(ModelError, match=words):
        export(replace(config, model=str(copy)))
    assert written == []
    assert not config.output.exists()


@pytest.mark.usefixtures("written")
def test_without_t5_nothing_of_it_is_looked_at(config: ExportConfig, copy: Path) -> None:
    for breakage in (quantised_encoder, class_of_another_library, t5_without_weights):
        breakage(copy)
    export(replace(config, model=str(copy), t5=False))


def test_every_family_knows_the_classes_of_its_parts() -> None:
    for family in FAMILIES.values():
        parts = {
            part for part in (*family.components, *family.optional) if not part.startswith(("tok", "sched", "proc"))
        }
        assert set(family.classes) == parts


def test_configuration_is_read_as_its_library_does(config: ExportConfig, tmp_path: Path) -> None:
    """Fields at their defaults may be left out, and an encoder's configuration may lie inside that of a whole CLIP."""
    folder = tiny_sd(tmp_path / "sd")
    whole = design(replace(config, model=str(folder)))
    file = folder / "text_encoder" / "config.json"
    inside = json.loads(file.read_text())
    assert inside.pop("max_position_embeddings") == 77
    write_json(file, {"model_type": "clip", "text_config": inside, "vision_config": {}, "projection_dim": 16})
    vae = json.loads((folder / "vae" / "config.json").read_text())
    for name in ("in_channels", "out_channels", "act_fn"):
        del vae[name]
    write_json(folder / "vae" / "config.json", vae)
    outline = design(replace(config, model=str(folder)))
    assert outline.facts == whole.facts
    assert [recipe.inputs for recipe in outline.recipes] == [recipe.inputs for recipe in whole.recipes]
    assert Checkpoint(folder).config("text_encoder")["hidden_size"] == 16
    assert Checkpoint(folder).config("vae")["act_fn"] == "silu"


@pytest.mark.usefixtures("written")
def test_depths_of_every_single_layer_are_exported(config: ExportConfig, tmp_path: Path) -> None:
    """As Segmind's SSD-1B gives them."""
    depths = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, (2,)),
        "reverse_transformer_layers_per_block": ((2, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    }
    folder = tiny_sdxl(tmp_path / "ssd", **depths)
    outline = design(replace(config, model=str(folder), resolutions=((64, 64),)))
    assert outline.facts.cost.flops(256) > 0


def test_text_width_of_every_level_is_read(config: ExportConfig, tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "sd", cross_attention_dim=(16, 16))
    design(replace(config, model=str(folder)))
    changed(folder / "unet" / "config.json", cross_attention_dim=[16, 24])
    with pytest.raises(ModelError, match=r"cross_attention_dim of the unet is .*24.*export knows one width"):
        design(replace(config, model=str(folder)))


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        ("unet", "block_out_channels", [], r"unet/config\.json: block_out_channels is \[\], and only whole numbers"),
        ("vae", "block_out_channels", None, r"vae/config\.json: block_out_channels is None"),
        ("text_encoder", "hidden_size", 0, r"text_encoder/config\.json: hidden_size is 0"),
        ("text_encoder", "num_attention_heads", 3, r"text_encoder/config\.json cannot be read as a CLIPTextModel"),
        ("unet", "cross_attention_dim", -1, "cross_attention_dim is -1"),
        ("vae", "scaling_factor", "x", "scaling_factor is x, and only finite numbers"),
        ("text_encoder", "max_position_embeddings", 10**9, "max_position_embeddings is 1000000000"),
        ("text_encoder", "num_hidden_layers", 1.5, r"num_hidden_layers is 1\.5"),
        ("unet", "down_block_types", ["Nope"], "the unet configuration contradicts itself"),
        ("unet", "up_block_types", 5, "the unet configuration contradicts itself"),
        ("unet", "norm_num_groups", 7, "unet of .* cannot be built from its config.json"),
    ],
)
def test_a_field_that_no_network_has_is_named(
    config: ExportConfig, tmp_path: Path, part: str, field: str, value: object, words: str
) -> None:
    folder = tiny_sd(tmp_path / "sd")
    changed(folder / part / "config.json", **{field: value})
    with pytest.raises(ModelError, match=words):
        design(replace(config, model=str(folder), resolutions=((64, 64),)))
