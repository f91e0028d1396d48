"""What single files say about themselves, in every way that trainers and programs have agreed on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from factory_families import edm, tiny_flux, tiny_sd, tiny_sdxl
from original_layout import Tensors, clip, open_clip, part, prefixed, unet, vae
from safetensors.torch import save_file

from lssgen.errors import LssgenError, ModelError, PlanError
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import ExportConfig
from lssgen.export.export import design
from lssgen.export.hub import Model, find_model
from lssgen.export.single_file import open_single_file
from lssgen.plan.sampling import described, solver_names, with_choice

V, EPSILON = "v_prediction", "epsilon"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("checkpoints") / "sd")


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("checkpoints") / "sdxl", edm(), cross_attention_dim=40)


def levels() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return (1 - betas).cumprod(0)


def tensors_of(sd: Path) -> Tensors:
    return {
        **unet(part(sd, "unet")),
        **vae(part(sd, "vae")),
        **clip(part(sd, "text_encoder"), "cond_stage_model.transformer."),
        "alphas_cumprod": levels(),
        "betas": torch.ones(1000),
    }


def written(path: Path, tensors: Tensors, header: dict[str, str] | None = None) -> str:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, header)
    return str(path)


def opened(sd: Path, tmp_path: Path, header: dict[str, str] | None = None, *, name: str = "m", **options: Any) -> Model:
    more = options.pop("more", {})
    file = written(tmp_path / f"{name}.safetensors", {**tensors_of(sd), **more}, header)
    return find_model(file, base=str(sd), **options)


def predicts(model: Model) -> str:
    return str(model.checkpoint.config("scheduler")["prediction_type"])


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ({"modelspec.prediction_type": "v"}, V),
        ({"modelspec.prediction_type": "V_Prediction"}, V),
        ({"modelspec.prediction_type": "epsilon"}, EPSILON),
        ({"modelspec.predict_key": "v"}, V),
        ({"modelspec.predict_key": "epsilon"}, EPSILON),
        ({"ss_v_parameterization": "True"}, V),
        ({"ss_v_parameterization": "False"}, EPSILON),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, V),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.prediction_type": "v"}, V),
    ],
)
def test_header_says_what_is_predicted(sd: Path, tmp_path: Path, header: dict[str, str], wanted: str) -> None:
    model = opened(sd, tmp_path, header)
    assert predicts(model) == wanted
    assert any("in its header says" in note for note in model.notes)


def test_settings_beside_the_file_say_what_is_predicted(sd: Path, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert predicts(opened(sd, tmp_path)) == V
    (tmp_path / "e.yaml").write_text("model:\n  params:\n    timesteps: 1000\n")
    assert predicts(opened(sd, tmp_path, name="e")) == EPSILON


def test_where_nothing_says_it_the_base_decides_and_a_note_says_how_to_change_it(sd: Path, tmp_path: Path) -> None:
    model = opened(sd, tmp_path, {"modelspec.prediction_type": "None"})
    assert predicts(model) == EPSILON
    (note,) = model.notes
    assert "predicts noise (epsilon), it is assumed" in note
    assert "--prediction-type v_prediction changes that" in note


def test_name_that_speaks_of_v_prediction_is_pointed_at(sd: Path, tmp_path: Path) -> None:
    (note,) = opened(sd, tmp_path, name="mix_vpred_10").notes
    assert "its name speaks of v-prediction" in note


def test_name_that_speaks_of_few_steps_is_pointed_at(sd: Path, tmp_path: Path) -> None:
    assert any("speaks of few steps" in note for note in opened(sd, tmp_path, name="dreams_lightning_4step").notes)
    assert not any("few steps" in note for note in opened(sd, tmp_path, name="dreams").notes)


def test_contradiction_is_refused_until_the_user_decides(sd: Path, tmp_path: Path) -> None:
    header, more = {"modelspec.prediction_type": "epsilon"}, {"v_pred": torch.tensor([])}
    with pytest.raises(
        ModelError, match=r"contradicts itself: its key v_pred says v_prediction and modelspec.*epsilon"
    ):
        opened(sd, tmp_path, header, more=more)
    assert predicts(opened(sd, tmp_path, header, more=more, prediction=EPSILON)) == EPSILON
    assert predicts(opened(sd, tmp_path, header, more=more, prediction=V)) == V


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"modelspec.prediction_type": "sample"}, r"predicts 'sample' \(modelspec.prediction_type.*--prediction-type"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, r"a LoRA: .*--lora"),
        ({"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}, r"an embedding: .*--embedding"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-refiner"}, r"a refiner: choose the base"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-edit"}, r"editing pictures"),
        ({"modelspec.architecture": "stable-diffusion-v1-inpainting"}, r"made for inpainting"),
        ({"modelspec.timestep_range": "0,200"}, r"trained for the timesteps 0,200 alone"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(
    sd: Path, tmp_path: Path, header: dict[str, str], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        opened(sd, tmp_path, header)


def test_whole_range_of_timesteps_is_nothing_special(sd: Path, tmp_path: Path) -> None:
    opened(sd, tmp_path, {"modelspec.timestep_range": "0,999", "modelspec.architecture": "stable-diffusion-v1"})


@pytest.mark.parametrize(
    ("header", "more"),
    [
        ({}, {"ztsnr": torch.tensor([])}),
        ({"ss_zero_terminal_snr": "True"}, {}),
        ({}, {"alphas_cumprod": torch.cat((levels()[:-1], torch.zeros(1)))}),
    ],
    ids=["key", "header", "table"],
)
def test_schedule_that_ends_in_noise_reaches_the_scheduler(
    sd: Path, tmp_path: Path, header: dict[str, str], more: Tensors
) -> None:
    model = opened(sd, tmp_path, {**header, "modelspec.prediction_type": "v"}, more=more)
    scheduler = model.checkpoint.config("scheduler")
    assert scheduler["rescale_betas_zero_snr"] is True
    assert scheduler["timestep_spacing"] == "trailing"
    assert any("zero terminal SNR" in note for note in model.notes)


def test_schedule_that_ends_in_noise_is_walked_by_a_class_that_can_begin_there(sd: Path, tmp_path: Path) -> None:
    """SD 1's own PNDM cannot: the model is exported all the same, and no solver drops what the file says."""
    assert Checkpoint(sd).config("scheduler")["_class_name"] == "PNDMScheduler"
    header = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
    file = written(tmp_path / "z.safetensors", tensors_of(sd), header)
    config = ExportConfig(model=file, base=str(sd), output=tmp_path / "z", resolutions=((64, 64),))
    outline = design(config)
    assert outline.facts.scheduler == "DDIMScheduler"
    assert "zero terminal SNR" in described(outline.facts)
    assert any("DDIMScheduler, since PNDMScheduler cannot begin" in note for note in outline.notes)
    for name in solver_names(outline.facts):
        assert "zero terminal SNR" in described(with_choice(outline.facts, solver=name))
    with pytest.raises(PlanError, match="'deis' does not fit"):
        with_choice(outline.facts, solver="deis")


@pytest.mark.parametrize("key", ["edm_mean", "edm_std", "edm_vpred.sigma_min"])
def test_half_of_a_mark_means_nothing_and_is_mentioned(sd: Path, tmp_path: Path, key: str) -> None:
    notes = opened(sd, tmp_path, more={key: torch.ones(4)}).notes
    assert any("belong to no part" in note and key.split(".")[0] in note for note in notes)


def test_file_without_tensors_is_refused(sd: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "empty.safetensors", {})
    with pytest.raises(ModelError, match=r"empty\.safetensors holds no tensors; fetch the checkpoint again"):
        find_model(file, base=str(sd))


def test_levels_that_are_not_those_of_the_base_are_mentioned(sd: Path, tmp_path: Path) -> None:
    more = {"alphas_cumprod": levels() ** 2}
    assert any("alphas_cumprod" in note for note in opened(sd, tmp_path, more=more).notes)
    half = {"alphas_cumprod": levels().half()}
    assert not any("alphas_cumprod" in note for note in opened(sd, tmp_path, name="half", more=half).notes)


def test_clip_skip_of_the_header_is_mentioned(sd: Path, tmp_path: Path) -> None:
    """Trainers count the last layer as 1, where --clip-skip and diffusers count 0."""
    model = opened(sd, tmp_path, {"modelspec.encoder_layer": "2"})
    assert any("--clip-skip 1 " in note for note in model.notes)


@pytest.mark.parametrize("said", ["1", "None", ""])
def test_a_header_that_asks_for_no_clip_skip_is_not_mentioned(sd: Path, tmp_path: Path, said: str) -> None:
    model = opened(sd, tmp_path, {"ss_clip_skip": said})
    assert not any("clip" in note for note in model.notes)


def test_size_of_the_header_is_the_default_size(sd: Path, tmp_path: Path) -> None:
    model = opened(sd, tmp_path, {"modelspec.resolution": "768x768"})
    assert (model.defaults.height, model.defaults.width) == (768, 768)
    assert model.checkpoint.config("unet")["sample_size"] == 768 // 4


class TestStableDiffusion2:
    """Its two kinds differ in nothing but what was trained."""

    KEY = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"

    @pytest.fixture(autouse=True)
    def kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lssgen.export.single_file.SingleFile.kind", "v2")

    @pytest.mark.parametrize(("spread", "wanted", "size"), [(0.02, EPSILON, 512), (0.3, V, 768)])
    def test_where_nothing_says_it_a_tensor_tells(
        self, sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: float, wanted: str, size: int
    ) -> None:
        norm = next(key for key in tensors_of(sd) if key.endswith("1.transformer_blocks.0.norm1.bias"))
        monkeypatch.setattr("lssgen.export.said.SD2_NORM", norm)
        bias = torch.linspace(-1, 1, len(tensors_of(sd)[norm]))
        model = opened(sd, tmp_path, more={norm: spread * bias / bias.std(correction=0)})
        assert predicts(model) == wanted
        assert (model.defaults.height, model.defaults.width) == (size, size)
        assert any("to judge by one of its tensors" in note and "--prediction-type" in note for note in model.notes)

    def test_what_the_user_says_decides_the_size_too(self, sd: Path, tmp_path: Path) -> None:
        assert opened(sd, tmp_path, prediction=EPSILON).defaults.height == 512
        assert opened(sd, tmp_path, prediction=V).defaults.height == 768

    def test_size_that_the_header_says_counts_more(self, sd: Path, tmp_path: Path) -> None:
        header = {"modelspec.resolution": "768x768", "modelspec.prediction_type": "epsilon"}
        assert opened(sd, tmp_path, header).defaults.height == 768


def xl_tensors(xl: Path) -> Tensors:
    """Without the text encoders, which come from the base."""
    return {**unet(part(xl, "unet")), **vae(part(xl, "vae"))}


def test_normalisation_of_playground_comes_from_the_file(xl: Path, tmp_path: Path) -> None:
    means = {"edm_mean": torch.tensor([1.0, 2, 3, 4]), "edm_std": torch.tensor([5.0, 6, 7, 8])}
    file = written(tmp_path / "p.safetensors", {**xl_tensors(xl), **means})
    with pytest.raises(ModelError, match=r"edm_mean and edm_std.*--base playground"):
        find_model(written(tmp_path / "q.safetensors", {**xl_tensors(xl), **means}), base=str(euler_xl(tmp_path)))
    config = find_model(file, base=str(xl)).checkpoint.config("vae")
    assert config["latents_mean"] == [1, 2, 3, 4]
    assert config["latents_std"] == [5, 6, 7, 8]


def euler_xl(tmp_path: Path) -> Path:
    """The same with SDXL's scheduler."""
    return tiny_sdxl(tmp_path / "euler", cross_attention_dim=40)


def test_continuous_schedule_of_cosxl_reaches_the_scheduler(xl: Path, tmp_path: Path) -> None:
    marks = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    file = written(tmp_path / "c.safetensors", {**xl_tensors(xl), **marks})
    scheduler = find_model(file, base=str(euler_xl(tmp_path))).checkpoint.config("scheduler")
    assert scheduler["_class_name"] == "EDMEulerScheduler"
    assert (scheduler["sigma_max"], scheduler["prediction_type"]) == (120.0, V)
    assert "beta_start" not in scheduler


def test_prediction_type_of_the_user_reaches_the_plan(sd: Path, tmp_path: Path) -> None:
    order = ExportConfig(model=str(sd), output=tmp_path / "bundle", resolutions=((64, 64),))
    assert design(order).facts.scheduler_config["prediction_type"] == EPSILON
    asked = ExportConfig(model=str(sd), output=tmp_path / "bundle", resolutions=((64, 64),), prediction_type=V)
    assert design(asked).facts.scheduler_config["prediction_type"] == V


def test_flow_models_have_no_prediction_type(tmp_path: Path) -> None:
    folder = tiny_flux(tmp_path / "flux")
    order = ExportConfig(model=str(folder), output=tmp_path / "bundle", prediction_type=V)
    with pytest.raises(ModelError, match=r"predicts the velocity of a flow.*leave out --prediction-type"):
        design(order)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
        ("cond_stage_model.transformer.", "cond_stage_model.clip_l.transformer."),
        ("cond_stage_model.transformer.", "clip_l.transformer."),
        ("cond_stage_model.transformer.", "text_encoders.clip_l.transformer."),
    ],
)
def test_text_encoder_is_found_in_every_layout(sd: Path, tmp_path: Path, old: str, new: str) -> None:
    """Some writers left "text_model." out; others put another name in front."""
    tensors = {key.replace(old, new): value for key, value in tensors_of(sd).items()}
    bare = shutil.copytree(sd, tmp_path / "base")
    for file in (bare / "text_encoder").glob("*.safetensors"):
        file.unlink()  # so that it cannot be the base's
    model = find_model(written(tmp_path / "m.safetensors", tensors), base=str(bare))
    came, wanted = (Checkpoint(folder).weights(("text_encoder",)) for folder in (model.checkpoint.folder, sd))
    plain = {key.replace("text_model.", ""): came.tensor(key) for key in came}
    assert all(torch.equal(plain[key.replace("text_model.", "")], wanted.tensor(key)) for key in wanted)
    assert not any("belong to no part" in note for note in model.notes)


def test_open_clip_is_found_in_the_layout_of_sgm(tmp_path: Path) -> None:
    """Stable Diffusion 2 as Stability's later code saves it, with the layer that nobody reads."""
    folder = tiny_sd(tmp_path / "sd")
    encoder = open_clip(part(folder, "text_encoder"), "conditioner.embedders.0.model.")
    last = {key: value for key, value in encoder.items() if ".resblocks.1." in key}
    more = {key.replace(".resblocks.1.", ".resblocks.2."): value.clone() for key, value in last.items()}
    tensors = {key: value for key, value in tensors_of(folder).items() if not key.startswith("cond_stage_model")}
    model = find_model(written(tmp_path / "m.safetensors", {**tensors, **encoder, **more}), base=str(folder))
    assert not model.checkpoint.extra
    assert any(f"{len(more)} tensors of m.safetensors belong to no part" in note for note in model.notes)


def test_tensors_that_no_part_claims_are_counted(sd: Path, tmp_path: Path) -> None:
    more = {
        **prefixed({f"{at}.weight": torch.ones(1) for at in range(3)}, "model_ema."),
        "cond_stage_model.logit_scale": torch.ones(1),
        "first_stage_model.loss.logvar2": torch.ones(1),
    }
    first = opened(sd, tmp_path, more=more)
    note = next(note for note in first.notes if "belong to no part" in note)
    assert note.startswith("5 tensors of m.safetensors")
    assert "model_ema (3)" in note
    assert "cond_stage_model.logit_scale (1)" in note
    assert "first_stage_model.loss (1)" in note
    assert opened(sd, tmp_path, more=more).notes == first.notes  # found again, not only when it is made


def test_encoder_from_the_base_is_mentioned(sd: Path, tmp_path: Path) -> None:
    tensors = {key: value for key, value in tensors_of(sd).items() if not key.startswith("cond_stage_model.")}
    model = find_model(written(tmp_path / "m.safetensors", tensors), base=str(sd))
    assert f"m.safetensors has no text_encoder; taken from {sd}." in model.notes


@pytest.mark.parametrize("value", [[], [float("nan")]])
def test_mark_without_a_number_is_refused(xl: Path, tmp_path: Path, value: list[float]) -> None:
    marks = {"edm_vpred.sigma_max": torch.tensor(value)}
    file = written(tmp_path / "c.safetensors", {**xl_tensors(xl), **marks})
    with pytest.raises(LssgenError, match="is empty or holds NaN"):
        find_model(file, base=str(xl))


def test_header_is_read_as_text_whatever_it_holds(sd: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    written(file, tensors_of(sd))
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    header["__metadata__"] = {"modelspec.prediction_type": ["v"], "modelspec.resolution": 7}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + file.read_bytes()[8 + length :])
    with pytest.raises(ModelError, match=r"predicts .*which no plan reproduces"):
        find_model(str(file), base=str(sd))
    assert open_single_file(file).said["modelspec.resolution"] == "7"
