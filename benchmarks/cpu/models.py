"""The two models that the CPU path is measured on, as checkpoints and as bundles.

`demo` is the trained model of this package. `sd3-123m` has the layout of Stable Diffusion 3 with six layers of width
768, 122.7 M parameters in the transformer, the VAE of the published one in full size, two CLIP encoders of twelve
layers of width 64, and random weights: what it paints is noise, what it takes is real. (With text of the published
widths, 4096 and 2048 instead of 128 and 128, the projections of the text have 4.5 M parameters more: 127.2 M.)
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lssgen.bundle import MANIFEST, Bundle, read_bundle
from lssgen.demo import CHECKPOINT, write_demo_bundle

SIZES: Mapping[str, tuple[int, ...]] = {"demo": (128, 256), "sd3-123m": (256, 512, 1024)}
"""Picture sizes at which steps are measured."""

ZEROS: Mapping[str, int] = {"demo": 0, "sd3-123m": 256}
"""Rows of zeros that stand for T5's tokens where a model has no T5: none in the demo model, which was trained without,
and in the other as many as diffusers has by itself."""

TEXT = 64
"""Width of either text encoder, and of its pooled output."""

TRANSFORMER: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 6,
    "attention_head_dim": 64, "num_attention_heads": 12, "joint_attention_dim": 2 * TEXT, "caption_projection_dim": 768,
    "pooled_projection_dim": 2 * TEXT, "pos_embed_max_size": 192,
}  # fmt: skip


def checkpoint_of(model: str, work: Path) -> Path:
    """Folder of a model in the diffusers layout; written once."""
    if model == "demo":
        return CHECKPOINT
    folder = work / "checkpoints" / model
    if not (folder / "model_index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _write(folder)
    return folder


def bundle_of(model: str, work: Path, zeros: int | None = None) -> Bundle:
    """Bundle of a model; exported once.

    Args:
        model: Name of the model.
        work: Folder for checkpoints and bundles.
        zeros: Rows of zeros for T5's tokens; None: `ZEROS`.
    """
    zeros = ZEROS[model] if zeros is None else zeros
    folder = work / "bundles" / (model if zeros == ZEROS[model] else f"{model}-{zeros}")
    if not (folder / MANIFEST).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if model == "demo":
            write_demo_bundle(folder)
        else:
            _export(model, work, folder, zeros)
    return read_bundle(folder)


def config_of(model: str, work: Path, folder: Path, zeros: int | None = None) -> Any:
    """How a model is exported into a folder, which needs torch."""
    from lssgen.export.config import ExportConfig

    return ExportConfig(
        model=str(checkpoint_of(model, work)), output=folder, probe="small",
        max_sequence_length=ZEROS[model] if zeros is None else zeros,
        resolutions=tuple((size, size) for size in SIZES[model]),
    )  # fmt: skip


def _export(model: str, work: Path, folder: Path, zeros: int) -> None:
    from lssgen.export.export import export

    export(config_of(model, work, folder, zeros))


def _write(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(**TRANSFORMER)
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=1024,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    own = json.loads((CHECKPOINT / "text_encoder" / "config.json").read_text())
    known = {name: own[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    for name in ("text_encoder", "text_encoder_2"):
        config = CLIPTextConfig(
            hidden_size=TEXT, intermediate_size=4 * TEXT, num_hidden_layers=12, num_attention_heads=4,
            projection_dim=TEXT, max_position_embeddings=77, **known,
        )  # fmt: skip
        CLIPTextModelWithProjection(config).save_pretrained(folder / name)
        shutil.copytree(CHECKPOINT / name.replace("text_encoder", "tokenizer"), _tokenizer(folder, name))
        rules = _tokenizer(folder, name) / "tokenizer_config.json"
        rules.write_text(json.dumps({**json.loads(rules.read_text()), "model_max_length": 77}))
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    shutil.copyfile(CHECKPOINT / "model_index.json", folder / "model_index.json")
    print(f"sd3-123m: {sum(p.numel() for p in transformer.parameters()) / 1e6:.1f} M parameters", flush=True)


def _tokenizer(folder: Path, name: str) -> Path:
    return folder / name.replace("text_encoder", "tokenizer")
