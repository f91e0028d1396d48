"""Reports: what a build log says, and what is refused."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from test_cache import report_of

from lssgen.bundle import read_bundle
from lssgen.engines.demand import Profile, fixed
from lssgen.engines.memory import in_turn_bytes
from lssgen.engines.trt.library import Log, require_library
from lssgen.engines.trt.need import Need, device_bytes, io_bytes, misfits
from lssgen.engines.trt.options import Bounds
from lssgen.engines.trt.order import Order
from lssgen.engines.trt.report import Attention, Unfused, check, check_quantised, findings
from lssgen.engines.trt.targets import TARGETS, rtx_targets
from lssgen.errors import BackendError, BuildError
from lssgen.manifest import Quantisation

REPORT = report_of(1000, "hash")
LAYERS = """Layers:
Name: __myl_Conv_myl0_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [1,4,16,16], Datatype: Float }], \
Constants: [], Outputs: [ { Name: y, Dimensions: [1,64,16,16], Strides: [1], Datatype: Half, Format: l }], \
TacticName: t, StreamId: 0, Metadata: [ONNX Layer: first][ONNX Layer: conv]
Name: _gemm_mha_v2_myl0_5, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: z, Dimensions: [4,256,16], \
Datatype: Half, Format: l }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: attend]
"""
LOG = [
    "Total Activation Memory: 100 bytes",
    "Total Activation Memory: 900 bytes",
    "Total Weights Memory: 50 bytes",
    LAYERS,
]


def test_a_log_gives_memory_layers_and_fused_attention() -> None:
    found = findings(LOG)
    assert (found.activation_bytes, found.weight_bytes) == ((100, 900), 50)
    assert found.fused == {"attend": 1}
    assert found.largest == (64 * 16 * 16 * 2, "first, conv")


def layer(name: str, kind: str, inputs: str, constants: str, *nodes: str) -> str:
    """A row of a build's log, shortened."""
    first, second = (
        f"[ {', '.join(f'{{ Name: x, Dimensions: [2,32], Datatype: {one} }}' for one in types.split())}]"
        for types in (inputs, constants)
    )
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {first}, Constants: {second}, Outputs: [ {{ Name: y, Dimensions: "
        f"[2,32], Datatype: Half }}], TacticName: t, StreamId: 0, Metadata: {metadata}"
    )


CODED = "\n".join(
    (
        "Layers:",
        layer("q+k", "gemm", "FP8", "FP8 Float", "a.to_q/MatMul", "a.to_q.weight/Decode", "a.to_k/MatMul"),
        layer("ff", "gemm", "FP4E2M1 FP8", "FP4E2M1 Float", "ff/MatMul"),
        layer("Fc", "runtime_fusion", "Half", "Half Int8", "w/MatMul"),
        layer("round", "kgen", "Half", "", "a.to_q.input/Encode"),  # rounds, and multiplies nothing
        layer("other", "gemm", "Half", "Half", "proj_out/MatMul"),
        layer("_gemm_mha_v2_1", "kgen", "FP8 FP8 FP8", "", "attn/Softmax"),
        layer("_gemm_mha_v2_2", "kgen", "Half Half Half", "", "attn/Attention"),
    )
)


def test_products_and_attentions_of_codes_are_counted_by_what_they_multiply() -> None:
    assert findings([CODED]).coded == {"FP8": 2, "FP4E2M1": 1, "INT8": 1, "FP8 attention": 1}


def test_convolutions_of_codes_are_counted_where_they_are_computed() -> None:
    """Once each: the layers that add the bias or round for the next one name the convolution's node too."""
    rows = (
        layer("conv1", "correlation", "Int8", "Int8 Float", "a.conv1/Conv", "a.conv1.weight/Decode"),
        layer("bias", "kgen", "Float Half", "Half", "a.conv1/Conv", "a.norm2/GroupNormalization"),
        layer("conv2", "correlation", "FP8", "FP8 Float Half", "a.conv2/Conv", "a.conv2.input/Decode"),
        layer("conv_in", "correlation", "Half", "Half Float", "conv_in/Conv"),
        layer(
            "weights", "correlation", "Half", "Half Float", "b.conv1/Conv", "b.conv1.weight/Decode"
        ),  # decoded beforehand
        layer("out", "gemm", "Int8", "Int8 Float", "proj_in/Conv", "to_q/MatMul"),
    )
    assert findings(["\n".join(("Layers:", *rows))]).coded == {"INT8": 2, "FP8": 1}


def test_fewer_of_them_than_the_bundle_promises_are_no_engine() -> None:
    report = replace(REPORT, coded=findings([CODED]).coded)
    profiles = len(report.profiles)
    kept = Quantisation(format="nvfp4", engine="tensorrt-rtx", products=4 // profiles, attention=1 // profiles)
    check_quantised(report, kept)
    check_quantised(report, None)
    check_quantised(report, replace(kept, products=99, by="ModelOpt"))  # whose count nobody knows
    with pytest.raises(BuildError, match=r"computes 4 of \d+ products in nvfp4 \(2 FP8, 1 FP4E2M1, 1 INT8, 1 FP8 att"):
        check_quantised(report, replace(kept, products=99))
    with pytest.raises(BuildError, match=r"computes 1 of \d+ attentions in nvfp4"):
        check_quantised(report, replace(kept, attention=9))
    assert "in few bits: 1 FP4E2M1, 2 FP8, 1 FP8 attention, 1 INT8" in str(report)


def test_an_attention_fused_in_one_profile_of_two_is_unfused() -> None:
    attentions = (Attention("attend", "HALF", 64), Attention("other", "FLOAT", 64))
    assert findings(LOG).unfused(attentions, 2) == (
        Unfused(node="attend", profiles=1, expected=False),
        Unfused(node="other", profiles=2, expected=True),
    )


@pytest.mark.parametrize(
    ("dtype", "head", "fuses"),
    [("HALF", 64, True), ("BF16", 16, True), ("FLOAT", 64, False), ("HALF", 8, False), ("HALF", 512, False)],
)
def test_kernels_exist_for_16_bits_and_heads_of_16_to_256(dtype: str, head: int, fuses: bool) -> None:
    assert Attention("a", dtype, head).fusible is fuses


def test_a_drop_in_fused_attention_fails_with_the_node_named() -> None:
    dropped = replace(REPORT, unfused=(Unfused(node="attend", profiles=1, expected=False),))
    with pytest.raises(BuildError, match=r"step: 1 of 1 attentions were not fused \(attend\).*--allow-unfused 1"):
        check(dropped, Bounds())
    check(dropped, Bounds(unfused=1))
    check(replace(REPORT, unfused=(Unfused(node="attend", profiles=1, expected=True),)), Bounds())


def test_scratch_above_the_bound_fails_with_the_node_named() -> None:
    with pytest.raises(BuildError, match=r"needs 20 MB of scratch memory at height 64, .* 15 MB.*made by node conv"):
        check(replace(REPORT, activation_bytes=(20_000_000,)), Bounds(activation_bytes=15_000_000))


def test_scratch_that_the_library_does_not_tell_is_not_taken_for_small(caplog: pytest.LogCaptureFixture) -> None:
    check(replace(REPORT, activation_bytes=()), Bounds())
    assert "scratch memory of 0 profiles in its log, and the engine has 1" in caplog.text


def test_a_report_reads_like_a_line() -> None:
    assert str(REPORT) == (
        "step: fp16 for sm89 in 1.5 s; 0.0 MB, weights 0.0 MB, scratch of each profile 0.0 MB; 1 of 1 attentions fused"
    )


def test_an_engine_fits_exactly_what_it_was_built_for_or_less() -> None:
    need = Need(
        graph="step", content="c", backend="tensorrt-rtx", version="1.7", targets=("sm89",), options={"tf32": False},
        profiles=(Profile({"height": fixed(64)}),),
    )  # fmt: skip
    wider = replace(REPORT, targets=("sm86", "sm89"), profiles=(*REPORT.profiles, Profile({"height": fixed(128)})))
    assert misfits(need, REPORT) == misfits(need, wider) == ""
    assert misfits(replace(need, content="d"), REPORT) == "was made from other weights"
    assert "1.7, and this is tensorrt-rtx 1.8" in misfits(replace(need, version="1.8"), REPORT)
    assert misfits(replace(need, targets=("sm120",)), REPORT) == "was built for sm89, and not for sm120"
    assert misfits(replace(need, profiles=wider.profiles), REPORT) == "lacks the profile height 128"
    assert "tf32" in misfits(replace(need, options={"tf32": True}), REPORT)


def test_predicted_memory_is_weights_scratch_and_tensors(toy: Path) -> None:
    step = read_bundle(toy).manifest.graphs["step"]
    profile = Profile({"batch": fixed(1), "branches": fixed(2), "height": fixed(8), "width": fixed(8)})
    report = replace(REPORT, inputs=step.inputs, outputs=step.outputs, profiles=(profile,), weight_bytes=1000)
    latent = 4 * 8 * 8 * 4
    tensors = 5 * latent + (8 + 2 + 2) * 4  # latents, histories, noise; row, guidance weights, text
    assert io_bytes(report) == tensors
    assert device_bytes([report, report], in_turn=False) == 2 * 1000 + 20 + 2 * tensors
    assert device_bytes([report, report], in_turn=True) == 1000 + 20 + 2 * tensors


def test_small_networks_stay_beside_the_one_whose_turn_it_is() -> None:
    assert in_turn_bytes([1600, 900, 100, 12]) == 1600 + 100 + 12
    assert in_turn_bytes([]) == 0


def test_streamed_weights_may_stay_on_the_host() -> None:
    streamed = replace(REPORT, options={"weight_streaming": True}, weight_bytes=1000)
    assert device_bytes([streamed], in_turn=True) == device_bytes([streamed], in_turn=False) - 1000


def test_targets_are_understood_in_every_spelling() -> None:
    assert rtx_targets(("8.9", "SM120", "86"), "fp16") == ("sm86", "sm89", "sm120")


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        (
            "sm75",
            "bf16",
            r"sm75, .*Turing\), cannot hold a network in bf16; it takes fp16, and bf16 fits sm80, sm86",
        ),
        ("sm90", "fp16", r"TensorRT-RTX does not build for sm90, H100.*--engine tensorrt"),
        ("sm42", "fp16", r"there is no target 'sm42'; choose from sm75, sm80"),
    ],
)
def test_an_impossible_target_is_refused_with_those_that_can(target: str, precision: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        rtx_targets((target,), precision)


def test_tensorrt_rtx_knows_every_target_of_the_table() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
    known = {name.lower() for name in trt.ComputeCapability.__members__} - {"none", "current"}
    assert {name for name, target in TARGETS.items() if target.rtx} == known


def test_an_error_is_told_without_the_librarys_own_source_lines() -> None:
    line = (
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error "
        "(Network has dynamic inputs (x), but no profile. In check at /_src/optimizer.cpp:12)"
    )
    assert Log(0, errors=[line, "later"]).reason() == "Network has dynamic inputs (x), but no profile."
    assert Log(0, errors=["plain  words"]).reason() == "plain words"


@pytest.mark.parametrize("module", [None, ModuleType("tensorrt")])  # the second is what stubs alone look like
def test_a_library_that_is_not_installed_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(BackendError, match=r'needs the Python package tensorrt, .*pip install "lssgen\[tensorrt\]"'):
        require_library("tensorrt")


def test_an_order_has_a_folder_of_its_own_below_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    assert Order(flavour="tensorrt").folder == tmp_path / "engines"
