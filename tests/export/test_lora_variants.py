"""Whatever PEFT writes is merged as PEFT merges it, or refused by its name."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from factory_families import tiny_sd, tiny_sdxl
from peft import (
    BdLoraConfig,
    IA3Config,
    KasaConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MontecloraConfig,
    OFTConfig,
    PeftModel,
    VeloraConfig,
    VeraConfig,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lssgen.errors import ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.lora.asked import Lora

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
PARTS = ("unet", "text_encoder")
CLASSES: Mapping[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}

UNET: Mapping[str, Mapping[str, Any]] = {
    "alpha 16": {"lora_alpha": 16},
    "alpha zero": {"lora_alpha": 0},
    "rsLoRA": {"lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "rank_pattern": {r"attn\d.to_(q|k)": 2, "to_v": 3},
        "alpha_pattern": {rf"^{BLOCK}\.attn1\.to_q$": 9, "attn2.*": 5, "to_v": 7},
    },
    "DoRA": {"lora_alpha": 6, "use_dora": True},
    "DoRA of convolutions": {"target_modules": ["conv_in", "conv1"], "use_dora": True},
    "convolutions": {"target_modules": ["conv_in", "conv2", "to_q"]},
    "biases of factors": {"target_modules": ["conv_in", "to_out.0"], "lora_bias": True},
    "biases of its layers": {"target_modules": ["conv_in", "to_out.0"], "bias": "lora_only"},
    "all biases": {"bias": "all"},
    "whole layers": {"modules_to_save": ["conv_out", "conv_norm_out"]},
    "fan in, fan out": {"fan_in_fan_out": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora", "lora_alpha": 2},
    "MiCA": {"init_lora_weights": "mica"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "KaSA": {"kasa_config": KasaConfig()},
    "BD-LoRA": {
        "target_modules": ["to_q", "to_k"],
        "use_bdlora": BdLoraConfig(target_modules_bd_a=["to_q"], target_modules_bd_b=["to_k"], nblocks=2),
    },
    "MonteCLoRA": {"monteclora_config": MontecloraConfig()},
    "VeLoRA": {"velora_config": VeloraConfig(num_groups=2)},
    "some layers": {"target_modules": r".*up_blocks.*to_[qv]"},
}
TEXT: Mapping[str, Mapping[str, Any]] = {
    "projections": {"lora_alpha": 3},
    "table": {"target_modules": ["token_embedding", "q_proj"]},
    "DoRA of a table": {"target_modules": ["token_embedding"], "use_dora": True},
    "tokens": {"trainable_token_indices": [3, 5]},
    "named tokens": {"trainable_token_indices": {"token_embedding": [7]}},
}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("checkpoints") / "sd")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT speaks of what it chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trained(model: Path, part: str, folder: Path, config: Any, cls: Any = None) -> Path:
    """An adapter whose every number has moved, as PEFT saves it."""
    torch.manual_seed(0)
    adapted = get_peft_model((cls or CLASSES[part]).from_pretrained(str(model / part)), config)
    for name, value in adapted.named_parameters():
        if value.requires_grad:
            value.data = (value + 0.2 * torch.randn_like(value)).abs() if "magn" in name else torch.randn_like(value)
    adapted.save_pretrained(folder)
    return folder


def by_peft(model: Path, part: str, folder: Path, scale: float, cls: Any = None) -> nn.ModuleDict:
    adapted = PeftModel.from_pretrained((cls or CLASSES[part]).from_pretrained(str(model / part)), str(folder))
    for module in adapted.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(scale)
    return nn.ModuleDict({part: adapted.merge_and_unload()})


def by_us(model: Path, part: str, loras: list[Lora], parts: tuple[str, ...] = PARTS) -> Mapping[str, Tensor]:
    checkpoint = Checkpoint(model)
    module = nn.ModuleDict({part: checkpoint.skeleton(part, torch.float32)})
    weights = checkpoint.with_loras(loras, parts, "unet").weights((part,)).fit(module)
    return {name: weights.tensor(name) for name in weights}


def assert_merged_alike(
    model: Path, part: str, folder: Path, scale: float = 1.0, cls: Any = None, parts: tuple[str, ...] = PARTS
) -> None:
    wanted, found = (
        by_peft(model, part, folder, scale, cls).state_dict(),
        by_us(model, part, [Lora(folder, scale)], parts),
    )
    plain = by_us(model, part, [], parts)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)  # the same sums in another order
    if "zero" not in str(folder):
        assert any(not torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("variant", UNET)
def test_adapters_of_the_denoiser_are_merged_as_peft_merges_them(sd: Path, tmp_path: Path, variant: str) -> None:
    settings: dict[str, Any] = {"r": 4, "target_modules": ["to_q", "to_v"], **UNET[variant]}
    folder = trained(sd, "unet", tmp_path / variant, LoraConfig(**settings))
    assert_merged_alike(sd, "unet", folder, scale=0.5)


@pytest.mark.parametrize("variant", TEXT)
def test_adapters_of_the_text_encoder_are_merged_as_peft_merges_them(sd: Path, tmp_path: Path, variant: str) -> None:
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "fc1"], **TEXT[variant]}
    folder = trained(sd, "text_encoder", tmp_path / "adapter", LoraConfig(**settings))
    assert_merged_alike(sd, "text_encoder", folder)


def test_file_in_the_folder_is_read_with_the_configuration_beside_it(sd: Path, tmp_path: Path) -> None:
    folder = trained(sd, "unet", tmp_path / "adapter", LoraConfig(r=4, lora_alpha=16, target_modules=["to_q"]))
    found = by_us(sd, "unet", [Lora(folder / "adapter_model.safetensors")])
    for name, value in by_us(sd, "unet", [Lora(folder)]).items():
        assert torch.equal(found[name], value)


def test_model_that_an_adapter_was_trained_for_tells_two_encoders_apart(tmp_path: Path) -> None:
    model = tiny_sdxl(tmp_path / "sdxl")
    parts = ("unet", "text_encoder", "text_encoder_2")
    for part, cls in {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}.items():
        config = LoraConfig(r=2, lora_alpha=7, target_modules=["q_proj", "fc1"])
        folder = trained(model, part, tmp_path / f"for {part}", config, cls)
        assert_merged_alike(model, part, folder, cls=cls, parts=parts)


def test_folder_with_an_adapter_for_each_part_is_read_whole(sd: Path, tmp_path: Path) -> None:
    for part, layer in {"unet": "to_q", "text_encoder": "q_proj"}.items():
        trained(sd, part, tmp_path / "both" / part, LoraConfig(r=2, lora_alpha=6, target_modules=[layer]))
    for part in PARTS:
        wanted = by_peft(sd, part, tmp_path / "both" / part, 1.0).state_dict()
        found = by_us(sd, part, [Lora(tmp_path / "both")])
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"lora_alpha": 16}, {"lora_alpha": 5, "use_rslora": True}, {"use_dora": True}])
def test_configuration_that_diffusers_puts_into_the_header_counts(
    sd: Path, tmp_path: Path, settings: Mapping[str, Any]
) -> None:
    unet: Any = UNet2DConditionModel.from_pretrained(str(sd / "unet"))
    patterns = {"rank_pattern": {"to_v": 2}, "alpha_pattern": {r"attn2.*": 3}}
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], **patterns, **settings))
    for name, value in unet.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            value.data = torch.randn_like(value)
    unet.save_lora_adapter(tmp_path)
    unet.fuse_lora()
    unet.unload_lora()
    found = by_us(sd, "unet", [Lora(tmp_path)])
    for name, value in nn.ModuleDict({"unet": unet}).state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_two_doras_are_merged_as_peft_merges_them(sd: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, use_dora=True, target_modules=["to_q"])
    folders = [trained(sd, "unet", tmp_path / name, config) for name in ("one", "two")]
    adapted = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(str(sd / "unet")), str(folders[0]), "one")
    adapted.load_adapter(str(folders[1]), "two")
    merged = nn.ModuleDict({"unet": adapted.merge_and_unload(adapter_names=["one", "two"])})
    found = by_us(sd, "unet", [Lora(folder) for folder in folders])
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (LoHaConfig, {"r": 2}, "LoHa"),
        (LoKrConfig, {"r": 2}, "LoKr"),
        (OFTConfig, {"r": 2, "oft_block_size": 0}, "OFT"),
        (IA3Config, {"feedforward_modules": []}, "IA3"),
        (VeraConfig, {"r": 2, "target_modules": [f"{BLOCK}.attn1.to_q"]}, "VeRA"),
        (LoraConfig, {"r": 2, "alora_invocation_tokens": [1]}, "aLoRA"),
        (LoraConfig, {"r": 2, "use_qalora": True, "qalora_group_size": 2}, "QA-LoRA"),
        (LoraConfig, {"r": 2, "target_parameters": ["attn1.to_k.weight"]}, "bare parameters"),
        (LoraConfig, {"r": 2, "init_lora_weights": "pissa_niter_4"}, "random decomposition"),
    ],
)
def test_adapter_that_cannot_be_merged_is_refused_by_its_name(
    sd: Path, tmp_path: Path, kind: Any, settings: Mapping[str, Any], name: str
) -> None:
    folder = trained(sd, "unet", tmp_path / "adapter", kind(**{"target_modules": ["to_q"], **settings}))
    with pytest.raises(ModelError, match=name):
        by_us(sd, "unet", [Lora(folder)])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "loftq"}, "LoftQ"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"layer_replication": [[0, 2]]}, "repeated layers"),
        ({"use_sublora": True}, "not known here: use_sublora"),
        ({"lora_alpha": "much"}, "'much' for lora_alpha; expected a number"),
        ({"lora_alpha": float("nan")}, "JSON is malformed"),
        ({"lora_alpha": 10**400}, "for lora_alpha; expected a number"),
        ({"alpha_pattern": ["to_q"]}, "alpha_pattern of .* expected numbers by the layers' names"),
        ({"alpha_pattern": {"to_q": None}}, "for alpha_pattern of 'to_q'; expected a number"),
        ({"alpha_pattern": {"to_(q": 3}}, r"'to_\(q', which is not a regular expression"),
        ({"alpha_pattern": {"(" * 900: 3}}, "not a regular expression"),
        ({"rank_pattern": {"a" * 2000: 3}}, "pattern of 2000 characters; 1000 are read"),
        ({"rank_pattern": {f"a{n}": 3 for n in range(5000)}}, "5000 patterns; 4096 are read"),
        ({"r": 8}, "says rank 8 for .*to_q, whose factors have rank 2"),
        ({"use_bdlora": {"nblocks": 0}}, "0 blocks; expected 1"),
        ({"trainable_token_indices": ["a"]}, "not whole numbers"),
    ],
    ids=str,
)
def test_configuration_that_makes_no_sense_here_is_refused(
    sd: Path, tmp_path: Path, setting: Mapping[str, Any], said: str
) -> None:
    folder = trained(sd, "unet", tmp_path / "adapter", LoraConfig(r=2, target_modules=["to_q"]))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **setting}))
    with pytest.raises(ModelError, match=said):
        by_us(sd, "unet", [Lora(folder)])
