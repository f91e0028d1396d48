"""Real engines, built by TensorRT-RTX without a GPU."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from attention import attention_bundle, write_graph
from machine import compile_here

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.demand import Demand, Extent, Profile, fixed, profiles_of
from lssgen.engines.registry import open_backend
from lssgen.engines.trt import make as trt_make
from lssgen.engines.trt import network as trt_network
from lssgen.engines.trt.child import compile_apart
from lssgen.engines.trt.job import Job
from lssgen.engines.trt.library import require_library
from lssgen.engines.trt.network import decomposable_model, has_switch
from lssgen.engines.trt.options import Bounds, BuildOptions
from lssgen.engines.trt.order import Order, build_engines
from lssgen.engines.trt.progress import quiet
from lssgen.engines.trt.report import Report
from lssgen.engines.trt.targets import TARGETS
from lssgen.errors import BackendError, BuildError
from lssgen.manifest import Graph, Manifest, Precision

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(flavour="tensorrt-rtx", targets=("sm89",), folder=tmp_path / "engines")


def built(toy: Path, tmp_path: Path, order: Order, precision: Precision = "fp16", heads: int = 4) -> Report:
    bundle = attention_bundle(toy, tmp_path / "bundle", precision=precision, heads=heads)
    return build_engines(bundle, order)["step"].report


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("targets", [("sm86",), ("sm89", "sm120"), ()])
def test_one_engine_holds_all_resolutions_and_its_attention_is_fused(
    toy: Path, tmp_path: Path, order: Order, precision: Precision, targets: Sequence[str]
) -> None:
    report = built(toy, tmp_path, replace(order, targets=tuple(targets)), precision)
    assert [profile.axes["height"].best for profile in report.profiles] == [4, 8]
    assert report.targets == (tuple(targets) or ("sm80", "sm86", "sm89", "sm120", "sm121"))
    assert (report.attentions, report.unfused) == (1, ())
    assert len(report.activation_bytes) == 2
    assert 17_000 < report.weight_bytes < 60_000  # 8704 weights of two bytes, and constants


@pytest.mark.parametrize(("precision", "heads"), [("fp32", 4), ("fp16", 8)])
def test_attention_without_a_fused_kernel_is_built_from_parts_and_reported(
    toy: Path, tmp_path: Path, order: Order, precision: Precision, heads: int
) -> None:
    (unfused,) = built(toy, tmp_path, order, precision, heads).unfused
    assert (unfused.node, unfused.profiles, unfused.expected) == ("attend", 2, True)


ALONE = """
<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,height,64] q, float[batch,height,64] k, float[batch,height,64] v)
  => (float[batch,height,64] next_latent) {
  q1 = Cast<to=TYPE>(q)
  k1 = Cast<to=TYPE>(k)
  v1 = Cast<to=TYPE>(v)
  [attend] a = Attention<q_num_heads=HEADS, kv_num_heads=HEADS>(q1, k1, v1)
  next_latent = Cast<to=1>(a)
}
"""
"""An attention with nothing around it that the compiler could take it apart into."""


@pytest.mark.parametrize(("precision", "heads"), [("fp32", 4), ("fp16", 8)])
def test_attention_without_a_fused_kernel_is_an_error_unless_it_may_be_split(
    tmp_path: Path, precision: Precision, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the library's own switch, so that the graph stays as it is; fp32, and heads of 8."""
    assert has_switch(require_library("tensorrt-rtx").module)
    step = write_graph(tmp_path, "alone", ALONE.replace("HEADS", str(heads)), {}, precision)
    profiles = (Profile({"batch": fixed(1), "height": Extent(16, 64, 256)}),)  # at one size it finds a way by itself
    onnx = tmp_path / step.file
    job = Job(flavour="tensorrt-rtx", name="step", onnx=onnx, inputs=step.inputs, profiles=profiles, targets=("sm89",))
    assert [one.node for one in compile_here(job, tmp_path / "plan", quiet).unfused] == ["attend"]
    monkeypatch.setattr(trt_network, "_attentions", lambda *_: ())  # nobody turns the switch
    with pytest.raises(BuildError, match=r"cannot build step: .*CHECK.*is_decomposable"):
        compile_here(job, tmp_path / "plan", quiet)


def test_a_library_without_the_switch_reads_an_attribute_of_a_copy(
    toy: Path, tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle", precision="fp32")
    before = bundle.path("attends.onnx").read_bytes()
    assert before != decomposable_model(bundle.path("attends.onnx"))
    monkeypatch.setattr(trt_network, "has_switch", lambda _: False)
    monkeypatch.setattr(trt_make, "compile_apart", compile_here)
    (unfused,) = build_engines(bundle, order)["step"].report.unfused
    assert unfused.node == "attend"
    assert bundle.path("attends.onnx").read_bytes() == before


def test_building_needs_no_onnx_package_where_the_library_has_the_switch(
    toy: Path, tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle", precision="fp32")
    monkeypatch.setattr(trt_make, "compile_apart", compile_here)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert build_engines(bundle, order)["step"].report.attentions == 1


def test_an_engine_whose_weights_can_be_streamed_is_built(toy: Path, tmp_path: Path, order: Order) -> None:
    """NVIDIA documents weight streaming of TensorRT-RTX; it does not go with memory of our own alone."""
    streaming = replace(order, options=BuildOptions(weight_streaming=True))
    report = built(toy, tmp_path, streaming)
    assert report.options["weight_streaming"] is True
    assert report.unfused == ()


MASKED = """
<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,height,64] latent, float[batch,height] keep) => (float[batch,height,64] next_latent) {
  x = Cast<to=TYPE>(latent)
  kept = Cast<to=TYPE>(keep)
  one = Constant<value_float=1.0>()
  far = Constant<value_float=10000.0>()
  one_t = CastLike(one, x)
  far_t = CastLike(far, x)
  missing = Sub(kept, one_t)
  bias = Mul(missing, far_t)
  axes = Constant<value_ints=[1,2]>()
  row = Unsqueeze(bias, axes)
  batch = Shape<start=0,end=1>(keep)
  tokens = Shape<start=1,end=2>(keep)
  heads = Constant<value_ints=[1]>()
  square = Concat<axis=0>(batch, heads, tokens, tokens)
  mask = Expand(row, square)
  q = MatMul(x, w_q)
  k = MatMul(x, w_k)
  v = MatMul(x, w_v)
  [attend] a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, mask)
  next_latent = Cast<to=1>(a)
}
"""
"""A padding mask as CogView4's step has it: added to the scores, the same for every head and query."""


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_attention_under_a_padding_mask_is_one_kernel(tmp_path: Path, target: str, precision: Precision) -> None:
    weights = dict.fromkeys(("w_q", "w_k", "w_v"), (64, 64))
    step = write_graph(tmp_path, "masked", MASKED, weights, precision)
    profiles = tuple(Profile({"batch": fixed(2), "height": fixed(tokens)}) for tokens in (1248, 4320))
    onnx = tmp_path / step.file
    job = Job(flavour="tensorrt-rtx", name="step", onnx=onnx, inputs=step.inputs, profiles=profiles, targets=(target,))
    facts = compile_apart(job, tmp_path / "plan", quiet)
    assert (facts.attentions, facts.unfused) == (1, ())


def test_too_much_scratch_memory_fails_the_build_with_the_node_named(toy: Path, tmp_path: Path, order: Order) -> None:
    with pytest.raises(BuildError, match=r"step needs .* MB of scratch memory at batch 1, .* made by node \w+"):
        built(toy, tmp_path, replace(order, bounds=Bounds(activation_bytes=1000)))
    assert [path.suffix for path in order.folder.iterdir()] == [".lock"]


def test_an_engine_is_built_once(toy: Path, tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    first = build_engines(bundle, order)
    monkeypatch.setattr(trt_make, "compile_apart", None)
    assert build_engines(bundle, order) == first


def test_other_weights_are_another_engine(toy: Path, tmp_path: Path, order: Order) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    (first,) = build_engines(bundle, order).values()
    step = bundle.manifest.graphs["step"]
    other = replace(bundle.manifest, graphs={"step": replace(step, sha256={**step.sha256, step.data[0]: "0" * 64})})
    (second,) = build_engines(Bundle(bundle.folder, other), order).values()
    assert first.key != second.key


def test_the_stored_graph_stays_as_it_was(toy: Path, tmp_path: Path, order: Order) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    before = bundle.path("attends.onnx").read_bytes()
    build_engines(bundle, order)
    assert bundle.path("attends.onnx").read_bytes() == before


def test_progress_grows_to_the_end(toy: Path, tmp_path: Path, order: Order) -> None:
    shares: list[float] = []
    bundle = attention_bundle(toy, tmp_path / "bundle")
    build_engines(bundle, order, lambda *told: shares.append(told[2]))
    assert shares[-1] == 1
    assert shares == sorted(shares)


MIXED = """
<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,4] latent) => (float[batch,4] next_latent) {
  half = Cast<to=10>(latent)
  [blend] next_latent = Mul(half, latent)
}
"""
UNKNOWN = """
<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,4] latent) => (int64[2,found] next_latent) { [search] next_latent = NonZero(latent) }
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [(MIXED, r"node blend \(Mul\): blend: .* of types Half and Float\. To"), (UNKNOWN, r"\(NonZero\)")],
)
def test_a_refused_graph_is_reported_by_node_and_operator(
    toy: Path, tmp_path: Path, order: Order, text: str, words: str
) -> None:
    bundle = one_graph(toy, write_graph(tmp_path, "odd", text, {}, "fp16"), tmp_path)
    with pytest.raises(BuildError, match=rf"cannot read step from .*odd\.onnx: .*{words}") as raised:
        build_engines(bundle, order)
    assert "polygraphy debug reduce" in str(raised.value)


def test_a_broken_onnx_file_is_said_in_words(toy: Path, tmp_path: Path, order: Order) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    bundle.path("attends.onnx").write_bytes(b"\x0a\xff not a graph")
    with pytest.raises(BuildError, match=r"tensorrt-rtx cannot read step from .*attends\.onnx: "):
        build_engines(bundle, order)


def test_every_graph_of_a_bundle_gets_an_engine(toy: Path, order: Order) -> None:
    engines = build_engines(read_bundle(toy), order)
    assert set(engines) == set(read_bundle(toy).manifest.graphs)


def test_running_needs_a_gpu_and_says_so() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"no NVIDIA driver|the NVIDIA driver|no GPU"):
        open_backend("tensorrt-rtx")


def test_what_can_be_refitted_is_not_built_without_a_gpu(toy: Path, order: Order) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"not built ahead of time.* Leave --refit out, or build on the GPU"):
        build_engines(read_bundle(toy), replace(order, options=BuildOptions(refit=True)))


def one_graph(toy: Path, step: Graph, folder: Path) -> Bundle:
    manifest: Manifest = read_bundle(toy).manifest
    return Bundle(folder, replace(manifest, graphs={"step": step}))


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.rtx])
def test_the_table_of_targets_says_what_the_compiler_takes(toy: Path, tmp_path: Path, target: str) -> None:
    takes: list[str] = []
    for precision in get_args(Precision):
        bundle = attention_bundle(toy, tmp_path / precision, precision=precision)
        step = bundle.manifest.graphs["step"]
        profiles = profiles_of(bundle.manifest, Demand())["step"]
        onnx = bundle.path(step.file)
        job = Job(
            flavour="tensorrt-rtx", name="step", onnx=onnx, inputs=step.inputs, profiles=profiles, targets=(target,)
        )
        with suppress(BuildError):
            compile_apart(job, tmp_path / "plan", quiet)
            takes.append(precision)
    assert tuple(takes) == TARGETS[target].precisions
