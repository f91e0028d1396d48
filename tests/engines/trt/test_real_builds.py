"""Real engines, built by TensorRT-RTX without a GPU."""

import _thread
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from attention import attention_bundle, write_graph

from lssgen.bundle import Bundle, Graph, Manifest, Precision, read_bundle
from lssgen.engines.demand import Demand, Profile, fixed, profiles_of
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.engines.trt import make as trt_make
from lssgen.engines.trt.compiler import BuildOptions, Job, build_plan
from lssgen.engines.trt.library import open_library
from lssgen.engines.trt.order import Order, build_engines
from lssgen.engines.trt.report import Bounds, Report
from lssgen.engines.trt.targets import TARGETS
from lssgen.errors import BackendError, BuildError

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
    job = Job(name="step", onnx=tmp_path / step.file, inputs=step.inputs, profiles=profiles, targets=(target,))
    built = build_plan(open_library("tensorrt-rtx"), job, lambda *_: None)
    assert [attention.head for attention in built.attentions] == [32]
    assert built.findings.unfused(built.attentions, 2) == ()


def test_too_much_scratch_memory_fails_the_build_with_the_node_named(toy: Path, tmp_path: Path, order: Order) -> None:
    with pytest.raises(BuildError, match=r"step needs .* MB of scratch memory at batch 1, .* made by node \w+"):
        built(toy, tmp_path, replace(order, bounds=Bounds(activation_bytes=1000)))
    assert [path.suffix for path in order.folder.iterdir()] == [".lock"]


def test_an_engine_is_built_once(toy: Path, tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    first = build_engines(bundle, order)
    monkeypatch.setattr(trt_make, "build_plan", None)
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


@pytest.fixture
def sigint() -> Iterator[None]:
    """A shell starts what runs in its background with SIGINT ignored; Python then never raises."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_stops_a_build_and_leaves_nothing(toy: Path, tmp_path: Path, order: Order) -> None:
    pressed: list[bool] = []

    def press(*_: object) -> None:
        if not pressed:
            pressed.append(True)
            _thread.interrupt_main()

    bundle = attention_bundle(toy, tmp_path / "bundle")
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, order, press)
    assert [path.suffix for path in order.folder.iterdir()] == [".lock"]


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
    ("text", "words"), [(MIXED, r"node blend \(Mul\): blend: .* of types Half and Float\.$"), (UNKNOWN, r"\(NonZero\)")]
)
def test_a_refused_graph_is_reported_by_node_and_operator(
    toy: Path, tmp_path: Path, order: Order, text: str, words: str
) -> None:
    bundle = one_graph(toy, write_graph(tmp_path, "odd", text, {}, "fp16"), tmp_path)
    with pytest.raises(BuildError, match=f"cannot read step: .*{words}"):
        build_engines(bundle, order)


def test_a_broken_onnx_file_is_said_in_words(toy: Path, tmp_path: Path, order: Order) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    bundle.path("attends.onnx").write_bytes(b"\x0a\xff not a graph")
    with pytest.raises(BuildError, match=r"attends\.onnx is no ONNX graph"):
        build_engines(bundle, order)


def test_every_graph_of_a_bundle_gets_an_engine(toy: Path, order: Order) -> None:
    engines = build_engines(read_bundle(toy), order)
    assert set(engines) == set(read_bundle(toy).manifest.graphs)


def test_running_needs_a_gpu_and_says_so() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"no NVIDIA driver|the NVIDIA driver|no GPU"):
        open_backend("tensorrt-rtx", EngineOptions())


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
    library = open_library("tensorrt-rtx")
    takes: list[str] = []
    for precision in get_args(Precision):
        bundle = attention_bundle(toy, tmp_path / precision, precision=precision)
        step = bundle.manifest.graphs["step"]
        profiles = profiles_of(bundle.manifest, Demand())["step"]
        job = Job(name="step", onnx=bundle.path(step.file), inputs=step.inputs, profiles=profiles, targets=(target,))
        with suppress(BuildError):
            build_plan(library, job, lambda *_: None)
            takes.append(precision)
    assert tuple(takes) == TARGETS[target].precisions
