"""LoRAs are merged into the weights they name, whatever the file calls them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factory_families import tiny_flux
from safetensors.torch import save_file
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.lora.asked import Lora

QUERY = "transformer.transformer_blocks.0.attn.to_q"
CLIP = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
PARTS = ("transformer", "text_encoder")


def merged(sd3: Path, file: Path, scale: float, module: str) -> tuple[Tensor, Tensor]:
    """The module's weight before and after."""
    plain = Checkpoint(sd3)
    changed = plain.with_loras([Lora(file, scale)], PARTS, "transformer")
    return (checkpoint.weights(PARTS).tensor(f"{module}.weight") for checkpoint in (plain, changed))


@pytest.mark.parametrize(
    ("module", "down", "up"),
    [
        (QUERY, f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"),
        (QUERY, f"base_model.model.{QUERY}.lora_A.default.weight", f"base_model.model.{QUERY}.lora_B.default.weight"),
        (QUERY, "transformer.transformer_blocks.0.attn.processor.to_q_lora.down.weight",
         "transformer.transformer_blocks.0.attn.processor.to_q_lora.up.weight"),
        (QUERY, "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
         "lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight"),
        (CLIP, f"{CLIP}.lora_linear_layer.down.weight", f"{CLIP}.lora_linear_layer.up.weight"),
        (CLIP, "lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight",
         "lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight"),
    ],
    ids=["peft", "peft raw", "diffusers old", "kohya", "diffusers text", "kohya text"],
)  # fmt: skip
def test_lora_adds_its_product(sd3: Path, tmp_path: Path, module: str, down: str, up: str) -> None:
    narrow, wide = torch.randn(2, 16), torch.randn(16, 2)
    save_file({down: narrow, up: wide}, tmp_path / "lora.safetensors")
    before, after = merged(sd3, tmp_path / "lora.safetensors", 0.5, module)
    torch.testing.assert_close(after, before + 0.5 * wide @ narrow)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux(tmp_path_factory.mktemp("checkpoints") / "flux")


FLUX_PARTS = ("transformer", "text_encoder", "text_encoder_2")
IMAGE, T5 = "transformer.transformer_blocks.0.attn", "text_encoder_2.encoder.block.0.layer.0.SelfAttention"


@pytest.mark.parametrize(
    ("module", "ends"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", (".lora_down.weight", ".lora_up.weight")),
        ("diffusion_model.double_blocks.0.img_attn.qkv", (".lora_down.weight", ".lora_up.weight")),
        ("diffusion_model.double_blocks.0.img_attn.qkv", (".lora_A.weight", ".lora_B.weight")),
        ("double_blocks.0.processor.qkv_lora1", (".down.weight", ".up.weight")),
    ],
    ids=["kohya", "ComfyUI", "ComfyUI, PEFT", "XLabs"],
)
def test_fused_layers_of_the_original_code_come_apart(
    flux: Path, tmp_path: Path, module: str, ends: tuple[str, str]
) -> None:
    narrow, wide = torch.randn(2, 32), torch.randn(96, 2)
    save_file({module + ends[0]: narrow, module + ends[1]: wide}, tmp_path / "lora.safetensors")
    plain, changed = (
        Checkpoint(flux),
        Checkpoint(flux).with_loras([Lora(tmp_path / "lora.safetensors")], FLUX_PARTS, "transformer"),
    )
    for letter, rows in zip("qkv", wide.chunk(3), strict=True):
        before, after = (c.weights(FLUX_PARTS).tensor(f"{IMAGE}.to_{letter}.weight") for c in (plain, changed))
        torch.testing.assert_close(after, before + rows @ narrow)


@pytest.mark.parametrize(
    ("trainer", "module", "rows", "columns"),
    [
        ("lora_unet_final_layer_linear", "transformer.proj_out", 16, 32),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_k", f"{T5}.k", 32, 32),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.k", f"{T5}.k", 32, 32),
    ],
)
def test_alpha_counts_where_diffusers_drops_it_or_the_change(
    flux: Path, tmp_path: Path, trainer: str, module: str, rows: int, columns: int
) -> None:
    narrow, wide = torch.randn(4, columns), torch.randn(rows, 4)
    ends = {"lora_down.weight": narrow, "lora_up.weight": wide, "alpha": torch.tensor(1.0)}
    save_file({f"{trainer}.{end}": value for end, value in ends.items()}, tmp_path / "lora.safetensors")
    changed = Checkpoint(flux).with_loras([Lora(tmp_path / "lora.safetensors")], FLUX_PARTS, "transformer")
    before, after = (c.weights(FLUX_PARTS).tensor(f"{module}.weight") for c in (Checkpoint(flux), changed))
    torch.testing.assert_close(after, before + 1 / 4 * wide @ narrow)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_proj.what",
        "lora_unet_double_blocks_7_img_attn_proj.dora_scale",
        "lora_unet_double_blocks_7_img_attn_proj.lora_up.weight",
    ],
)
def test_what_diffusers_would_leave_out_is_refused(flux: Path, tmp_path: Path, key: str) -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(32, 2)}
    save_file({**tensors, key: torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=rf"keys without a weight:\n  {key}$"):
        Checkpoint(flux).with_loras([Lora(tmp_path / "lora.safetensors")], FLUX_PARTS, "transformer")


def test_alpha_divides_by_the_rank(sd3: Path, tmp_path: Path) -> None:
    name = "lora_unet_transformer_blocks_0_attn_to_q"
    narrow, wide = torch.randn(4, 16), torch.randn(16, 4)
    tensors = {f"{name}.lora_down.weight": narrow, f"{name}.lora_up.weight": wide, f"{name}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "lora.safetensors")
    before, after = merged(sd3, tmp_path / "lora.safetensors", 1.0, QUERY)
    torch.testing.assert_close(after, before + 2 / 4 * wide @ narrow)


def test_alpha_is_found_where_diffusers_stores_it(sd3: Path, tmp_path: Path) -> None:
    narrow, wide = torch.randn(4, 16), torch.randn(16, 4)
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    tensors = {f"{QUERY}.lora_A.weight": narrow, f"{QUERY}.lora_B.weight": wide}
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    before, after = merged(sd3, tmp_path / "lora.safetensors", 1.0, QUERY)
    torch.testing.assert_close(after, before + 8 / 4 * wide @ narrow)


def test_two_loras_add_up(sd3: Path, tmp_path: Path) -> None:
    factors = [(torch.randn(2, 16), torch.randn(16, 2)) for _ in range(2)]
    loras = []
    for index, (narrow, wide) in enumerate(factors):
        file = tmp_path / f"{index}.safetensors"
        save_file({f"{QUERY}.lora_A.weight": narrow, f"{QUERY}.lora_B.weight": wide}, file)
        loras.append(Lora(file, 1.0 - index))
    plain, changed = Checkpoint(sd3), Checkpoint(sd3).with_loras(loras, PARTS, "transformer")
    wanted = plain.weights(PARTS).tensor(f"{QUERY}.weight") + factors[0][1] @ factors[0][0]
    torch.testing.assert_close(changed.weights(PARTS).tensor(f"{QUERY}.weight"), wanted)


def test_keys_that_fit_nothing_are_listed(sd3: Path, tmp_path: Path) -> None:
    tensors = {f"transformer.single_blocks.{n}.lora_{m}.weight": torch.zeros(2, 2) for n in (0, 1) for m in "AB"}
    save_file(tensors, tmp_path / "flux.safetensors")
    with pytest.raises(ModelError, match=r"(?s)keys without a weight:.*single_blocks.0.lora_A.*single_blocks.1.lora_B"):
        Checkpoint(sd3).with_loras([Lora(tmp_path / "flux.safetensors")], PARTS, "transformer")


def test_lora_of_another_width_is_refused(sd3: Path, tmp_path: Path) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.zeros(2, 64), f"{QUERY}.lora_B.weight": torch.zeros(64, 2)}
    save_file(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match=r"changes a weight of shape \[64, 64\], the model's is \[16, 16\]"):
        Checkpoint(sd3).with_loras([Lora(tmp_path / "wide.safetensors")], PARTS, "transformer").weights(PARTS)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_strength_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(ModelError, match=r"strength (nan|inf) of LoRA style\.safetensors is not a finite number"):
        Lora(Path("style.safetensors"), scale)


def test_file_that_is_no_lora_is_refused(sd3: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"not this")
    with pytest.raises(ModelError, match="cannot be read as a LoRA"):
        Checkpoint(sd3).with_loras([Lora(tmp_path / "lora.safetensors")], PARTS, "transformer")


def test_lora_remakes_the_graphs_it_changes(config: ExportConfig, written: list[str], tmp_path: Path) -> None:
    export(config)
    written.clear()
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(2, 16), f"{QUERY}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    weak, strong = (replace(config, loras=(Lora(tmp_path / "lora.safetensors", scale),)) for scale in (0.5, 1.0))
    export(weak)
    bundle = export(strong)
    assert written == ["step", "step"]
    assert any("LoRA lora.safetensors is merged in with strength 1" in note for note in bundle.manifest.notes)
