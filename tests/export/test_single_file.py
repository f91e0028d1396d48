"""A single file becomes the folder that it was made from."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from factory import liven, tiny_clip, write_json
from factory_families import tiny_flux, tiny_sd, tiny_sdxl
from hub_fakes import says_it_has
from huggingface_hub.errors import OfflineModeIsEnabled
from original_layout import Tensors, clip, inverse, open_clip, part, prefixed, unet, vae
from safetensors.torch import save_file
from torch import nn

from lssgen import paths
from lssgen.errors import ExportError, FetchError, ModelError, UnknownModelError
from lssgen.export import hub, single_file
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import ExportConfig
from lssgen.export.export import design, export
from lssgen.export.hub import find_model
from lssgen.export.single_file import BASES, open_single_file
from lssgen.models.aliases import ALIASES

SD3_HINTS = ("joint_blocks.1.x", "joint_blocks.0.x_block.attn2.ln_q", "context_embedder.weight")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is written to the user's own folder."""
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("checkpoints") / "sd")


def sd_tensors(sd: Path) -> Tensors:
    """As CompVis's code saves Stable Diffusion 1."""
    return {
        **unet(part(sd, "unet")),
        **vae(part(sd, "vae")),
        **clip(part(sd, "text_encoder"), "cond_stage_model.transformer."),
        "alphas_cumprod": torch.ones(1000),
    }


def sd3_tensors(sd3: Path, prefix: str = "model.diffusion_model.") -> Tensors:
    """As Stability's code saves the transformer of Stable Diffusion 3."""
    tensors = inverse(convert_sd3_transformer_checkpoint_to_diffusers, SD3_HINTS, part(sd3, "transformer"))
    return prefixed(tensors, prefix)


def saved(path: Path, tensors: Tensors) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def other_clip(folder: Path, width: int, projection: int, *, identity: bool = False) -> None:
    """Another text encoder in the place of one; the tiny ones are all of one width, and published ones are not."""
    module = tiny_clip(width, projection)
    liven(module)
    if identity:
        torch.nn.init.eye_(module.text_projection.weight)
    module.save_pretrained(folder)


def assert_same(folder: Path | Checkpoint, original: Path, parts: Iterable[str]) -> None:
    """Every tensor that an export reads of these parts is equal, in value and type."""
    checkpoint = folder if isinstance(folder, Checkpoint) else Checkpoint(folder)
    for name in parts:
        module = nn.ModuleDict({name: Checkpoint(original).skeleton(name, torch.float32)})
        came, wanted = (found.weights((name,)).fit(module) for found in (checkpoint, Checkpoint(original)))
        assert set(came) == set(wanted)
        for key in wanted:
            torch.testing.assert_close(came.tensor(key), wanted.tensor(key), rtol=0, atol=0)


def test_stable_diffusion_1_becomes_the_folder_it_was(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALIASES, "sd15", replace(ALIASES["sd15"], source=str(sd), local=True))
    file = saved(tmp_path / "dreams_v1.2.safetensors", sd_tensors(sd))
    model = find_model(str(file))
    assert (model.name, model.source, model.licence) == ("dreams_v1.2", str(file), "unknown")
    assert model.checkpoint.folder.parent == paths.checkpoints()
    assert_same(model.checkpoint, sd, ("unet", "vae", "text_encoder"))


def test_half_precision_stays_half(sd: Path, tmp_path: Path) -> None:
    tensors = {key: value.half() for key, value in unet(part(sd, "unet")).items()}
    file = saved(tmp_path / "half.safetensors", {**sd_tensors(sd), **tensors})
    weights = find_model(str(file), base=str(sd)).checkpoint.weights(("unet", "vae"))
    assert {weights[key].dtype for key in weights if key.startswith("unet")} == {torch.float16}
    assert {weights[key].dtype for key in weights if key.startswith("vae")} == {torch.float32}


def test_stable_diffusion_xl_has_two_text_encoders(tmp_path: Path) -> None:
    base = tiny_sdxl(tmp_path / "sdxl", cross_attention_dim=40)
    other_clip(base / "text_encoder_2", 24, 12)
    tensors = {
        **unet(part(base, "unet")),
        **vae(part(base, "vae")),
        **clip(part(base, "text_encoder"), "conditioner.embedders.0.transformer."),
        **open_clip(part(base, "text_encoder_2"), "conditioner.embedders.1.model."),
    }
    model = find_model(str(saved(tmp_path / "xl.safetensors", tensors)), base=str(base))
    assert_same(model.checkpoint, base, ("unet", "vae", "text_encoder", "text_encoder_2"))


def test_stable_diffusion_3_with_what_the_file_lacks_from_its_base(sd3: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "sd3.safetensors", {**sd3_tensors(sd3), **vae(part(sd3, "vae"))})
    checkpoint = find_model(str(file), base=str(sd3)).checkpoint
    assert set(checkpoint.extra) == {"text_encoder", "text_encoder_2", "text_encoder_3"}
    assert_same(checkpoint, sd3, ("transformer", "vae", *checkpoint.extra))


def test_stable_diffusion_3_with_its_text_encoders(sd3: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sd3, tmp_path / "base")
    other_clip(base / "text_encoder", 16, 16, identity=True)
    other_clip(base / "text_encoder_2", 24, 16)
    small = clip(part(base, "text_encoder"), "text_encoders.clip_l.transformer.")
    tensors = {
        **sd3_tensors(base),
        **vae(part(base, "vae")),
        **{key: value for key, value in small.items() if "projection" not in key},  # files leave it out
        **clip(part(base, "text_encoder_2"), "text_encoders.clip_g.transformer."),
        **prefixed(part(base, "text_encoder_3"), "text_encoders.t5xxl.transformer."),
    }
    checkpoint = find_model(str(saved(tmp_path / "all.safetensors", tensors)), base=str(base)).checkpoint
    assert not checkpoint.extra
    assert_same(checkpoint, base, ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"))


def test_file_with_nothing_but_a_transformer_needs_no_prefix(sd3: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "bare.safetensors", sd3_tensors(sd3, prefix=""))
    checkpoint = find_model(str(file), base=str(sd3), without=("text_encoder_3",)).checkpoint
    assert set(checkpoint.extra) == {"vae", "text_encoder", "text_encoder_2"}
    assert_same(checkpoint, sd3, ("transformer",))


def test_flux_in_one_file_with_a_transformer_in_the_names_of_diffusers(tmp_path: Path) -> None:
    base = tiny_flux(tmp_path / "flux")
    tensors = {
        **part(base, "transformer"),
        **vae(part(base, "vae"), prefix="vae."),
        **clip(part(base, "text_encoder"), "text_encoders.clip_l.transformer."),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.eye(16),
        **prefixed(part(base, "text_encoder_2"), "text_encoders.t5xxl.transformer."),
    }
    model = find_model(str(saved(tmp_path / "all_in_one.safetensors", tensors)), base=str(base))
    assert_same(model.checkpoint, base, ("transformer", "vae", "text_encoder", "text_encoder_2"))


@pytest.mark.slow  # diffusers takes FLUX apart at its published width only: half a gigabyte, a block of each kind
def test_flux_in_the_original_names_and_eight_bits(tmp_path: Path) -> None:
    base = tiny_flux(tmp_path / "flux")
    config = base / "transformer" / "config.json"
    width = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}
    write_json(config, json.loads(config.read_text()) | width)
    shapes = Checkpoint(base).skeleton("transformer", torch.float32).state_dict()
    tensors = {
        key: torch.randint(0, 120, value.shape, dtype=torch.uint8).view(torch.float8_e4m3fn)
        for key, value in shapes.items()
    }
    save_file(tensors, base / "transformer" / "diffusion_pytorch_model.safetensors")
    hints = ("double_blocks.0.x", "single_blocks.0.x", "guidance_in.x")
    original = inverse(convert_flux_transformer_checkpoint_to_diffusers, hints, tensors)
    file = saved(tmp_path / "flux-fp8.safetensors", prefixed(original, "model.diffusion_model."))
    del tensors, original
    checkpoint = find_model(str(file), base=str(base)).checkpoint
    assert set(checkpoint.extra) == {"vae", "text_encoder", "text_encoder_2"}
    assert_same(checkpoint, base, ("transformer",))


def test_second_export_finds_the_folder_and_another_base_makes_another(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "model.safetensors", sd_tensors(sd))
    first = find_model(str(file), base=str(sd)).checkpoint.folder
    other = shutil.copytree(sd, tmp_path / "other")
    settings = other / "scheduler" / "scheduler_config.json"
    write_json(settings, json.loads(settings.read_text()) | {"steps_offset": 0})
    assert find_model(str(file), base=str(other)).checkpoint.folder != first
    monkeypatch.setattr(single_file, "save_file", pytest.fail)
    assert find_model(str(file), base=str(sd)).checkpoint.folder == first


def test_nothing_half_converted_stays(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = saved(tmp_path / "model.safetensors", sd_tensors(sd))
    monkeypatch.setattr(single_file, "save_file", full)
    with pytest.raises(ExportError, match=r"cannot be converted to .*No space left.*LSSGEN_HOME moves it"):
        find_model(str(file), base=str(sd))
    assert [path.suffix for path in paths.checkpoints().iterdir()] == [".lock"]


def test_file_is_exported_as_the_folder_is(config: ExportConfig, sd3: Path, written: list[str], tmp_path: Path) -> None:
    file = saved(tmp_path / "sd3.safetensors", {**sd3_tensors(sd3), **vae(part(sd3, "vae"))})
    bundle = export(replace(config, model=str(file), base=str(sd3), upsampler=sd3 / "upsampler"))
    assert "step" in written
    assert bundle.manifest.source.model == str(file)
    assert bundle.manifest.facts.name == "sd3"


def test_keys_that_announce_v_prediction_reach_the_scheduler(sd: Path, tmp_path: Path) -> None:
    tensors = {**sd_tensors(sd), "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    config = find_model(str(saved(tmp_path / "v.safetensors", tensors)), base=str(sd)).checkpoint.config("scheduler")
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_a_file_whose_name_tells_few_steps_is_sampled_with_few(sd: Path, tmp_path: Path) -> None:
    """What its base says about steps, guidance and timesteps is about another model."""
    file = saved(tmp_path / "hyper_sd_8steps.safetensors", sd_tensors(sd))
    outline = design(ExportConfig(model=str(file), output=tmp_path / "bundle", base=str(sd)))
    facts = outline.facts
    assert (facts.defaults.num_inference_steps, facts.defaults.guidance_scale) == (8, 0.0)
    assert (facts.scheduler, facts.scheduler_config["timestep_spacing"]) == ("EulerDiscreteScheduler", "trailing")
    assert any("By its name, hyper_sd_8steps.safetensors is taken for" in note for note in outline.notes)


def test_every_kind_of_file_has_an_alias() -> None:
    assert set(BASES.values()) <= set(ALIASES)


def test_missing_parts_are_named_with_a_way_out(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALIASES, "sd15", replace(ALIASES["sd15"], source=str(sd), local=True))
    file = saved(tmp_path / "unet.safetensors", unet(part(sd, "unet")))
    with pytest.raises(ModelError, match=r"has no vae, text_encoder. Say where from with --base.*--base sd15 to fetch"):
        find_model(str(file))


def test_of_a_base_on_the_hub_only_lacking_weights_are_fetched(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []

    def snapshot(*_: object, allow_patterns: list[str], **__: object) -> str:
        fetched.append([name for name in allow_patterns if name.endswith(".safetensors")])
        return str(sd)

    names = [path.relative_to(sd).as_posix() for path in sd.rglob("*.*")]
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd / "model_index.json"))
    says_it_has(monkeypatch, names)
    monkeypatch.setattr(hub.hub, "snapshot_download", snapshot)
    file = saved(tmp_path / "model.safetensors", {**unet(part(sd, "unet")), **vae(part(sd, "vae"))})
    find_model(str(file), base="somebody/sd")
    assert fetched == [[], ["text_encoder/model.safetensors"]]


def test_base_without_the_missing_weights_cannot_help(sd: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sd, tmp_path / "base")
    (base / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    tensors = {key: value for key, value in sd_tensors(sd).items() if not key.startswith("first_stage_model.")}
    with pytest.raises(ModelError, match=r"has no vae, and its base cannot help: .*vae has no weights"):
        find_model(str(saved(tmp_path / "model.safetensors", tensors)), base=str(base))


def test_without_the_hub_the_file_asks_for_a_folder(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub.hub, "hf_hub_download", offline)
    file = saved(tmp_path / "model.safetensors", sd_tensors(sd))
    with pytest.raises(FetchError, match=r"tokenizers come from sd15, but .*HF_HUB_OFFLINE.*With --base FOLDER"):
        find_model(str(file))


def test_base_of_another_kind_does_not_fit(sd: Path, sd3: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "model.safetensors", sd_tensors(sd))
    with pytest.raises(ModelError, match=r"does not fit .*sd3.*cannot convert its transformer"):
        find_model(str(file), base=str(sd3))


def test_weights_that_do_not_fit_the_base_are_listed(sd: Path, tmp_path: Path) -> None:
    tensors = sd_tensors(sd)
    del tensors["model.diffusion_model.out.2.bias"]
    with pytest.raises(ModelError, match=r"(?s)is it of the same kind\?.*missing \(1\): unet.conv_out.bias"):
        find_model(str(saved(tmp_path / "model.safetensors", tensors)), base=str(sd))


def test_tensors_that_no_conversion_knows_are_listed(sd: Path, sd3: Path, tmp_path: Path) -> None:
    for base, tensors in ((sd, sd_tensors(sd)), (sd3, sd3_tensors(sd3))):
        file = saved(tmp_path / "model.safetensors", {**tensors, "model.diffusion_model.new.weight": torch.ones(1)})
        with pytest.raises(ModelError, match=r"leaves 1 tensors over: .*new.weight"):
            find_model(str(file), base=str(base))


def test_base_may_lack_what_is_not_asked_for(sd3: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sd3, tmp_path / "base")
    shutil.rmtree(base / "text_encoder_3")
    shutil.rmtree(base / "tokenizer_3")
    file = saved(tmp_path / "model.safetensors", sd3_tensors(sd3))
    checkpoint = find_model(str(file), base=str(base), without=("text_encoder_3", "tokenizer_3")).checkpoint
    assert set(checkpoint.extra) == {"vae", "text_encoder", "text_encoder_2"}
    with pytest.raises(ModelError, match="names text_encoder_3, but there is no such folder"):
        find_model(str(file), base=str(base))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.ckpt", "is pickled, and reading a pickle can run code"),
        ("model.gguf", "is quantised; give the safetensors file"),
        ("model.safetensors", "is not a whole safetensors file"),
    ],
)
def test_file_of_another_sort_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match=words):
        find_model(str(tmp_path / name))


def test_file_that_is_not_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(UnknownModelError, match=r"there is no file models/none.safetensors"):
        find_model("models/none.safetensors")


def test_quantised_file_is_refused(sd: Path, tmp_path: Path) -> None:
    tensors = {**sd_tensors(sd), "model.diffusion_model.out.2.scale_weight": torch.ones(1)}
    with pytest.raises(ModelError, match=r"is quantised \(model.diffusion_model.out.2.scale_weight\)"):
        find_model(str(saved(tmp_path / "fp8.safetensors", tensors)))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.ones(1)}, r"of a kind that diffusers does not know.*say which with --base"),
        ({"single_stream_modulation.lin.weight": torch.ones(1)}, "of the kind 'flux-2-dev'"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 9, 3, 3)}, "of the kind 'inpainting'"),
    ],
    ids=["nothing", "flux 2", "inpainting"],
)  # fmt: skip
def test_file_of_an_unknown_kind_is_refused(tmp_path: Path, tensors: Tensors, words: str) -> None:
    with pytest.raises(UnknownModelError, match=words):
        find_model(str(saved(tmp_path / "model.safetensors", tensors)))


def test_only_files_have_a_base(sd: Path) -> None:
    with pytest.raises(UnknownModelError, match="only these have a base; leave out --base"):
        find_model(str(sd), base="sd15")


UNET = "model.diffusion_model.input_blocks"
ATTENTION = f"{UNET}.2.1.transformer_blocks.0.attn2.to_k.weight"
BIG_CLIP = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
MMDIT = "model.diffusion_model.joint_blocks"
KEY_NORM = "double_blocks.0.img_attn.norm.key_norm.scale"


@pytest.mark.parametrize(
    ("alias", "shapes"),
    [
        ("sd15", {f"{UNET}.0.0.weight": (320, 4, 3, 3), ATTENTION: (320, 768)}),
        ("sd21", {f"{UNET}.0.0.weight": (320, 4, 3, 3), ATTENTION: (320, 1024)}),
        ("sdxl", {f"{UNET}.0.0.weight": (320, 4, 3, 3), BIG_CLIP: (1280,)}),
        ("playground", {f"{UNET}.0.0.weight": (320, 4, 3, 3), BIG_CLIP: (1280,), "edm_mean": (4,)}),
        ("sd3", {f"{MMDIT}.0.context_block.adaLN_modulation.1.bias": (9216,),
                 "model.diffusion_model.pos_embed": (1, 36864, 1)}),
        ("sd3.5-medium", {f"{MMDIT}.0.context_block.adaLN_modulation.1.bias": (9216,),
                          "model.diffusion_model.pos_embed": (1, 147456, 1)}),
        ("sd3.5-large", {f"{MMDIT}.37.x_block.mlp.fc1.weight": (2, 2)}),
        ("flux-schnell", {KEY_NORM: (128,)}),
        ("flux-dev", {KEY_NORM: (128,), "guidance_in.in_layer.bias": (2,), "img_in.weight": (2, 64)}),
    ],
)  # fmt: skip
def test_published_files_are_recognised(tmp_path: Path, alias: str, shapes: dict[str, tuple[int, ...]]) -> None:
    file = saved(tmp_path / "model.safetensors", {key: torch.zeros(shape) for key, shape in shapes.items()})
    assert open_single_file(file).alias == alias
