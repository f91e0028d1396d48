"""LoRAs in the slots of a bundle: as merged, weighed by stage, exchanged and taken out again to the bit."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from slotting import factors_of, lora_for, pairs, relative

import lssgen
from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.registry import open_backend
from lssgen.errors import ModelError, PlanError
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.lora.asked import Lora, lora_texts
from lssgen.lora.styled import styled
from lssgen.ports import Array
from lssgen.runtime import Options, Pipeline
from lssgen.runtime.loras import LoraBank

WORDS = Options(num_inference_steps=4, height=128, width=128, min_resolution=64, seed=3, scaling_space="latent")


def opened(bundle: Bundle) -> Pipeline:
    return Pipeline(bundle, open_backend("onnxruntime", threads=1))


def latents(pipeline: Pipeline, **words: object) -> Array:
    return pipeline("a red circle", **{**WORDS, **words}).latents  # type: ignore[arg-type]


def test_a_lora_in_the_slots_is_the_lora_in_the_weights(
    slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path
) -> None:
    merged = styled(slotted, Lora(loras["ink"], 0.6), tmp_path / "styles")
    with opened(slotted) as pipeline, opened(merged) as other:
        plain, wanted = latents(pipeline), latents(other)
        pipeline.set_loras({loras["ink"]: 0.6})
        got = latents(pipeline)
    assert relative(wanted, plain) > 1e-2, "the LoRA matters"
    # float32 sums in another order, over both stages.
    assert relative(got, wanted) < 1e-5


def test_two_loras_are_both_in_the_weights(slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path) -> None:
    first = styled(slotted, Lora(loras["ink"], 0.6), tmp_path / "styles")
    merged = styled(first, Lora(loras["oil"], -0.5), tmp_path / "styles")
    with opened(slotted) as pipeline, opened(merged) as other:
        got = latents(pipeline, loras=(f"{loras['ink']}:0.6", f"{loras['oil']}:-0.5"))
        assert relative(got, latents(other)) < 1e-5  # as above


def test_a_lora_of_clip_is_heard_too(slotted: Bundle, tmp_path: Path) -> None:
    layers = {**factors_of(slotted).layers, **factors_of(slotted, "text").layers}
    assert {name.partition(".")[0] for name in layers} == {"transformer", "text_encoder", "text_encoder_2"}
    path = lora_for(layers, tmp_path / "style.safetensors", 3, seed=7)
    merged = styled(slotted, Lora(path, 0.4), tmp_path / "styles")
    with opened(slotted) as pipeline, opened(merged) as other:
        plain, wanted = latents(pipeline), latents(other)
        got = latents(pipeline, loras=(f"{path}:0.4",))
        words = latents(pipeline, loras=(f"{path}:0/0.4",))
        np.testing.assert_array_equal(latents(pipeline), plain)
    assert relative(got, wanted) < 1e-5  # float32 sums in another order
    assert not np.array_equal(words, got), "the words are the same, and the first stage's step is not"


def test_what_is_taken_out_leaves_nothing(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline:
        before = latents(pipeline)
        for choice in ({loras["ink"]: 1.0}, {loras["ink"]: 0.3, loras["oil"]: 2.0}, {loras["wide"]: 1.0}):
            pipeline.set_loras(choice)
            assert not np.array_equal(latents(pipeline), before)
            pipeline.set_loras({})
            np.testing.assert_array_equal(latents(pipeline), before)


def test_the_slots_cost_no_bit_of_a_picture_without_a_lora(slotted: Bundle, sd3: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        model=str(sd3),
        output=tmp_path / "plain",
        resolutions=((64, 64), (128, 128)),
        transitions=("latent",),
        max_sequence_length=24,
        threads=1,
    )
    with opened(slotted) as pipeline, opened(export(config)) as other:
        got, plain = latents(pipeline), latents(other)
    # ONNX Runtime fuses a bias with the GELU behind it only where nothing is added between: one rounding less.
    assert relative(got, plain) < 1e-6


def test_a_lora_is_the_same_whatever_was_in_the_slots_before(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline, opened(slotted) as other:
        first = latents(other, loras=(str(loras["oil"]),))
        latents(pipeline, loras=(str(loras["ink"]),))  # takes the rows that the other would have had
        np.testing.assert_array_equal(latents(pipeline, loras=(str(loras["oil"]),)), first)


def test_a_run_names_its_own_loras_in_place_of_those_that_are_set(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline:
        plain, oil = latents(pipeline), latents(pipeline, loras=(str(loras["oil"]),))
        pipeline.set_loras({loras["ink"]: 1.0})
        np.testing.assert_array_equal(latents(pipeline, loras=()), plain)
        np.testing.assert_array_equal(latents(pipeline, loras=(str(loras["oil"]),)), oil)


def test_stages_may_have_strengths_of_their_own(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline:
        plain, whole = latents(pipeline), latents(pipeline, loras=(f"{loras['ink']}:1",))
        first, second = (latents(pipeline, loras=(f"{loras['ink']}:{said}",)) for said in ("1/0", "0/1"))
        np.testing.assert_array_equal(latents(pipeline, loras=(f"{loras['ink']}:1/1",)), whole)
        assert len({array.tobytes() for array in (plain, whole, first, second)}) == 4
        with pytest.raises(PlanError, match="has 3 strengths, and the run has 2 stages"):
            latents(pipeline, loras=(f"{loras['ink']}:1/0.5/1",))


def test_pictures_of_a_batch_are_those_of_each_alone(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline:
        alone = latents(pipeline, loras=(str(loras["ink"]),))
        together = latents(pipeline, loras=(str(loras["ink"]),), num_images=3, batch=3)
    np.testing.assert_array_equal(together[0], alone[0])


def test_the_record_of_a_run_names_its_loras_and_a_picture_no_folder(
    slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path
) -> None:
    from lssgen.bundle import sha256_of
    from lssgen.runtime.record import parameters_of, read_record, record_of, settings_from_file, write_record

    with opened(slotted) as pipeline:
        result = pipeline("a", **{**WORDS, "loras": (f"{loras['ink']}:0.5",)})
        write_record(record_of(pipeline, result.request, finished=True), tmp_path / "run.json")
    assert read_record(tmp_path / "run.json").lora_sha256 == {str(loras["ink"]): sha256_of(loras["ink"])}
    assert settings_from_file(tmp_path / "run.json").options.get("loras") == (f"{loras['ink']}:0.5",)
    assert parameters_of(result.pictures[0], result.request)["loras"] == ["ink.safetensors:0.5"]


# --- The bank ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bank(slotted: Bundle) -> LoraBank:
    return LoraBank(slotted, open_backend("onnxruntime", threads=1))


def test_slots_are_taken_from_those_that_nobody_uses(bank: LoraBank, loras: Mapping[str, Path]) -> None:
    ink, oil, wide = (bank.read((str(loras[name]),), 1) for name in ("ink", "oil", "wide"))
    assert bank.place(ink)
    assert bank.place(oil)
    assert not bank.place(wide, {one.stamp for one in ink}), "4 and 6 ranks are more than 8"
    np.testing.assert_array_equal(np.flatnonzero(bank.weights(ink, 0)), range(4))
    np.testing.assert_array_equal(np.flatnonzero(bank.weights(oil, 0)), range(4, 7))
    assert bank.place(wide)
    assert np.count_nonzero(bank.weights(wide, 0)) == 6


def test_the_rows_on_the_device_are_the_files(bank: LoraBank, slotted: Bundle, loras: Mapping[str, Path]) -> None:
    factors = factors_of(slotted)
    name = "transformer.transformer_blocks.1.attn.to_k.weight"
    tensors = pairs(factors.layers, 3, seed=2)
    bank.place(bank.read((str(loras["oil"]),), 1))
    first, second, end = factors.places[name]
    rows = bank.buffer("step").read()
    np.testing.assert_array_equal(rows[:3, first:second], tensors[name.replace("weight", "lora_A.weight")])
    np.testing.assert_array_equal(rows[:3, second:end], tensors[name.replace("weight", "lora_B.weight")].T)
    assert not rows[3:].any()


def test_a_file_that_changes_is_another_lora(bank: LoraBank, slotted: Bundle, tmp_path: Path) -> None:
    path = lora_for(factors_of(slotted).layers, tmp_path / "style.safetensors", 2, seed=5)
    before = bank.read((str(path),), 1)
    lora_for(factors_of(slotted).layers, path, 3, seed=6)
    after = bank.read((str(path),), 1)
    assert before[0].stamp != after[0].stamp
    assert (before[0].rank, after[0].rank) == (2, 3)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_more_ranks_than_there_are_are_refused_with_both_numbers(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline:
        with pytest.raises(ModelError, match=r"vast\.safetensors has rank 9, .* room for 8: .*--lora-slots N"):
            pipeline.set_loras({loras["vast"]: 1.0})
        with pytest.raises(ModelError, match=r"rank 4, wide\.safetensors of rank 6 have rank 10 together.* for 8"):
            pipeline.set_loras({loras["ink"]: 1.0, loras["wide"]: 1.0})
        with pytest.raises(ModelError, match="have rank 10 together"):
            pipeline.paint("a", **{**WORDS, "loras": (str(loras["ink"]), str(loras["wide"]))})


def test_a_bundle_without_slots_says_how_to_export_it(sd3_bundle: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(sd3_bundle) as pipeline:
        with pytest.raises(PlanError, match=r"has no slots for loras: export it with --lora-slots N --lora-rank R"):
            pipeline.set_loras({loras["ink"]: 1.0})
        with pytest.raises(PlanError, match="or merge them into its weights: lssgen export --lora"):
            latents(pipeline, loras=(str(loras["ink"]),))
        pipeline.set_loras({})


QUERY = "transformer.transformer_blocks.0.attn.to_q"
DOWN, UP = np.ones((2, 16), np.float32), np.ones((16, 2), np.float32)
PAIR = {f"{QUERY}.lora_A.weight": DOWN, f"{QUERY}.lora_B.weight": UP}
T5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_k"
BAD: Mapping[str, tuple[Mapping[str, Array], str]] = {
    "another family": ({"unet.down.attentions.0.proj_in.lora_A.weight": DOWN,
                        "unet.down.attentions.0.proj_in.lora_B.weight": UP}, "no weight, or no slot, for unet"),
    "another size": ({f"{QUERY}.lora_A.weight": DOWN[:, :7], f"{QUERY}.lora_B.weight": UP}, "is for another model"),
    "a layer without a slot": ({"transformer.pos_embed.proj.lora_A.weight": np.ones((2, 4, 2, 2), np.float32),
                                "transformer.pos_embed.proj.lora_B.weight": np.ones((16, 2, 1, 1), np.float32)},
                               "no weight, or no slot, for transformer.pos_embed.proj"),
    "T5": ({**PAIR, f"{T5}.lora_down.weight": DOWN, f"{T5}.lora_up.weight": UP},
           "changes text encoders too, .* no slot, for lora_te3.* export the checkpoint with --lora"),
    "unknown layers": ({"what.lora_A.weight": DOWN, "what.lora_B.weight": UP}, "no weight, or no slot, for what"),
    "DoRA": ({**PAIR, f"{QUERY}.lora_magnitude_vector.weight": np.ones(16, np.float32)},
             "is more than low-rank sums .* export the checkpoint with --lora"),
    "LoHa": ({f"{QUERY}.hada_w1_a": DOWN}, "is a LoHa"),
    "NaN": ({**PAIR, f"{QUERY}.lora_A.weight": DOWN * np.nan}, "is damaged"),
    "nothing": ({}, "has no LoRA keys at all"),
    "overflow": ({**PAIR, f"{QUERY}.lora_B.weight": UP * 1e38, f"{QUERY}.alpha": np.full((), 1e6, np.float32)},
                 "too large for fp32"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_fit_the_slots_is_refused_when_it_is_set(slotted: Bundle, tmp_path: Path, bad: str) -> None:
    tensors, said = BAD[bad]
    save_file(dict(tensors), tmp_path / "style.safetensors")
    with opened(slotted) as pipeline, pytest.raises(ModelError, match=said) as error:
        pipeline.set_loras({tmp_path / "style.safetensors": 1.0})
    assert "\n" not in str(error.value)


def test_strengths_and_files_that_are_none_are_refused(
    slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.safetensors").write_bytes(loras["ink"].read_bytes()[:1000])
    with opened(slotted) as pipeline:
        for path, scale, said in (
            (loras["ink"], float("nan"), "strength nan .* is not a finite number"),
            (tmp_path / "none.safetensors", 1.0, "there is no LoRA"),
            (tmp_path / "cut.safetensors", 1.0, "cannot be read as a LoRA"),
        ):
            with pytest.raises(ModelError, match=said):
                pipeline.set_loras({path: scale})
        with pytest.raises(ModelError, match="is not a finite number"):
            latents(pipeline, loras=(f"{loras['ink']}:inf",))


def test_what_is_refused_leaves_the_loras_that_are_set(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with opened(slotted) as pipeline:
        pipeline.set_loras({loras["ink"]: 1.0})
        before = latents(pipeline)
        with pytest.raises(ModelError):
            pipeline.set_loras({loras["vast"]: 1.0})
        np.testing.assert_array_equal(latents(pipeline), before)


def test_texts_of_loras_hold_their_numbers() -> None:
    texts = lora_texts({"a b.safetensors": 0.1, Path("c:d"): (0.2, 1.0)})
    assert texts == ("a b.safetensors:0.1", "c:d:0.2/1.0")


def test_a_manifest_whose_slots_cannot_be_true_is_refused(slotted: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace
    from shutil import copytree

    from msgspec.structs import replace as struct_replace

    from lssgen.bundle import MANIFEST, manifest_json
    from lssgen.errors import BundleError

    copytree(slotted.folder, tmp_path / "bad")
    step = slotted.manifest.graphs["step"]
    for layers in ({"a.weight": (3,)}, {"a.weight": (3, 4)}, {"a.weight": (0, 4)}):
        bad = struct_replace(factors_of(slotted), layers=layers)
        feeds = {**step.feeds, "lora_factors": bad}
        graphs = {**slotted.manifest.graphs, "step": replace(step, feeds=feeds)}
        (tmp_path / "bad" / MANIFEST).write_bytes(manifest_json(replace(slotted.manifest, graphs=graphs)))
        with pytest.raises(BundleError, match="lora_factors of graph 'step' has not the columns of its layers"):
            read_bundle(tmp_path / "bad")


def test_lssgen_load_takes_loras(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with lssgen.load(slotted.folder, engine="onnxruntime", threads=1) as pipeline:
        pipeline.set_loras({loras["ink"]: 1.0})
        assert json.dumps(pipeline("a", **WORDS).request.loras) == json.dumps([f"{loras['ink']}:1.0"])


def test_openvino_paints_with_slots_as_onnx_runtime_does(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    backend = open_backend("openvino", threads=1, inference_precision="fp32")
    with opened(slotted) as pipeline, Pipeline(slotted, backend) as other:
        wanted = latents(pipeline, loras=(str(loras["ink"]),))
        plain = latents(other)
        # float32 in another order of sums, through the steps of two stages.
        assert relative(latents(other, loras=(str(loras["ink"]),)), wanted) < 1e-4
        np.testing.assert_array_equal(latents(other), plain)
