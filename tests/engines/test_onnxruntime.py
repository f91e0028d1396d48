import gc
import weakref
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest
from one_graph import graph

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines import onnxruntime as module
from lssgen.engines.base import HostMark
from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import CUDA, OrtBackend, OrtEngine, predicted
from lssgen.engines.options import OrtCudaOptions, OrtOptions
from lssgen.errors import BackendError, BuildError, BundleError, EngineError, ShapeError
from lssgen.ports import Port
from lssgen.runtime import Pipeline
from lssgen.testing import FakeBuffer

ADD = "(float[batch, 4] x, float[batch, 4] y) => (float[batch, 4] z) { z = Add (x, y) }"
HALF = """(float[batch, 4] x) => (float[batch, 4] z) {
    low = Cast <to = 16> (x)
    sine = Sin (low)
    z = Cast <to = 1> (sine)
}"""


def opened(backend: OrtBackend, bundle: Bundle) -> OrtEngine:
    return backend.open(bundle, Demand())["toy"]


def low_memory() -> OrtBackend:
    return OrtBackend(OrtOptions(threads=1, low_memory=True))


@pytest.fixture
def backend() -> OrtBackend:
    return OrtBackend(OrtOptions(threads=1))


def bound(backend: OrtBackend, bundle: Bundle) -> tuple[Any, dict[str, Any]]:
    buffers = {name: backend.empty((2, 4), np.float32) for name in "xyz"}
    return opened(backend, bundle).bind(buffers), buffers


def test_a_binding_reads_its_inputs_and_writes_its_outputs_in_place(tmp_path: Path, backend: OrtBackend) -> None:
    run, buffers = bound(backend, graph(tmp_path, ADD))
    address = buffers["z"].value.data_ptr()
    for number in (1.0, 2.0):
        buffers["x"].write(np.full((2, 4), number))
        buffers["y"].write(np.ones((2, 4)))
        run()
        assert (buffers["z"].read() == number + 1).all()
    assert buffers["z"].value.data_ptr() == address


def test_what_was_read_stays_the_readers(tmp_path: Path, backend: OrtBackend) -> None:
    _, buffers = bound(backend, graph(tmp_path, ADD))
    buffers["x"].write(np.ones((2, 4)))
    before = buffers["x"].read()
    buffers["x"].write(np.zeros((2, 4)))
    assert (before == 1).all()


def test_one_binding_feeds_the_next_without_the_host(tmp_path: Path, backend: OrtBackend) -> None:
    engine = opened(backend, graph(tmp_path, ADD))
    a, b, one = (backend.empty((2, 4), np.float32) for _ in range(3))
    there, back = engine.bind({"x": a, "y": one, "z": b}), engine.bind({"x": b, "y": one, "z": a})
    a.write(np.zeros((2, 4)))
    one.write(np.ones((2, 4)))
    for _ in range(3):
        there()
        back()
    assert (a.read() == 6).all()


def test_a_write_converts_the_type_and_refuses_another_shape(backend: OrtBackend) -> None:
    buffer = backend.empty((2, 4), np.float32)
    buffer.write(np.arange(8, dtype=np.float64).reshape(4, 2).T)
    assert buffer.read().tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(ShapeError, match=r"shape \(2, 4\) was given an array of shape \(4, 2\)"):
        buffer.write(np.zeros((4, 2)))


def test_ports_are_those_of_the_graph(tmp_path: Path, backend: OrtBackend) -> None:
    engine = opened(backend, graph(tmp_path, ADD))
    assert engine.inputs == (Port("x", "float32", ("batch", 4)), Port("y", "float32", ("batch", 4)))
    assert engine.outputs == (Port("z", "float32", ("batch", 4)),)


def test_buffers_that_do_not_fit_are_refused_when_bound(tmp_path: Path, backend: OrtBackend) -> None:
    engine = opened(backend, graph(tmp_path, ADD))
    x, y, z = backend.empty((2, 4), np.float32), backend.empty((3, 4), np.float32), backend.empty((2, 4), np.float32)
    with pytest.raises(ShapeError, match="axis 'batch' is 2 elsewhere"):
        engine.bind({"x": x, "y": y, "z": z})
    with pytest.raises(ShapeError, match=r"missing \['y'\]"):
        engine.bind({"x": x, "z": z})
    with pytest.raises(ShapeError, match="not a FakeBuffer"):
        engine.bind({"x": FakeBuffer((2, 4), np.float32), "y": x, "z": z})


def test_a_graph_that_fails_while_it_runs_is_named_with_its_shapes(tmp_path: Path, backend: OrtBackend) -> None:
    bundle = graph(tmp_path, "(float[a, b] x, float[c, d] y) => (float[a, d] z) { z = MatMul (x, y) }")
    buffers = {"x": backend.empty((2, 3), np.float32), "y": backend.empty((4, 5), np.float32)}
    run = opened(backend, bundle).bind(buffers | {"z": backend.empty((2, 5), np.float32)})
    with pytest.raises(EngineError, match=r"toy/toy failed .*x\[2, 3\], y\[4, 5\]"):
        run()


def test_a_bfloat16_graph_is_refused_with_what_to_do(tmp_path: Path, backend: OrtBackend) -> None:
    with pytest.raises(BackendError, match="no bfloat16 networks on the CPU; export with --precision fp32 or fp16"):
        opened(backend, graph(tmp_path, HALF))


def test_a_damaged_graph_is_refused_with_its_path(tmp_path: Path, backend: OrtBackend) -> None:
    bundle = graph(tmp_path, ADD)
    path = tmp_path / "toy.onnx"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BuildError, match=r"cannot load toy/toy from .*toy\.onnx"):
        opened(backend, bundle)


def test_a_closed_engine_binds_nothing(tmp_path: Path, backend: OrtBackend) -> None:
    engine = opened(backend, graph(tmp_path, ADD))
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.bind({name: backend.empty((2, 4), np.float32) for name in "xyz"})


def test_a_provider_that_is_not_installed_is_refused_with_the_extra() -> None:
    with pytest.raises(BackendError, match=r"has no WebGPU, only .*lssgen\[onnxruntime-gpu\]"):
        OrtBackend(provider="WebGPU")


def test_the_description_holds_what_decides_speed(backend: OrtBackend) -> None:
    description = backend.describe()
    assert (description["backend"], description["threads"]) == ("onnxruntime", 1)
    assert set(description) >= {"onnxruntime", "provider", "graph_optimization_level"}


def test_in_low_memory_mode_one_graph_is_loaded_at_a_time(toy: Path) -> None:
    opened = low_memory().open(read_bundle(toy), Demand())
    engines = [opened["step"], opened["decode"]]
    assert [engine._session for engine in engines] == [None, None]
    for engine in (*engines, *engines):
        session = weakref.ref(engine.wake())
        assert [one._session is not None for one in engines] == [one is engine for one in engines]
        assert session() is engine._session


def test_a_binding_outlives_its_session_and_frees_it(toy: Path) -> None:
    backend = low_memory()
    opened = backend.open(read_bundle(toy), Demand())
    decode, encode = opened["decode"], opened["encode"]
    latent, picture = backend.empty((1, 4, 4, 4), np.float32), backend.empty((1, 32, 32, 3), np.uint8)
    latent.write(np.ones((1, 4, 4, 4)))
    run = decode.bind({"latent": latent, "picture": picture})
    run()
    first, session = picture.read(), weakref.ref(decode.wake())
    encode.wake()
    gc.collect()
    assert session() is None
    latent.write(np.zeros((1, 4, 4, 4)))
    run()
    assert (first.max(), picture.read().max()) == (160, 128)


def test_a_run_in_low_memory_mode_is_the_same_run(toy: Path) -> None:
    options: Any = {"seed": 1, "num_inference_steps": 4, "scaling_space": "latent"}
    plain, low = (
        Pipeline(read_bundle(toy), OrtBackend(OrtOptions(threads=1, low_memory=low))) for low in (False, True)
    )
    np.testing.assert_array_equal(low("a star", **options).latents, plain("a star", **options).latents)
    assert low.backend.describe()["low_memory"] is True


def test_only_the_graphs_that_are_demanded_are_loaded(toy: Path, backend: OrtBackend) -> None:
    opened = backend.open(read_bundle(toy), Demand(graphs=("text", "step")))
    step = opened["step"]
    with pytest.raises(KeyError):
        opened["decode"]
    opened.require(Demand(graphs=("step", "decode")))
    assert opened["step"] is step
    assert opened["decode"].outputs[0].name == "picture"


def test_a_graph_that_the_bundle_does_not_have_is_refused(toy: Path, backend: OrtBackend) -> None:
    with pytest.raises(BundleError, match=r"has no graph 'transition_resnet'; export the model again"):
        backend.open(read_bundle(toy), Demand(graphs=("transition_resnet",)))


def test_what_was_open_stays_where_more_cannot_be_had(toy: Path, tmp_path: Path, backend: OrtBackend) -> None:
    folder = copytree(toy, tmp_path / "toy")
    opened = backend.open(read_bundle(folder), Demand(graphs=("step",)))
    (folder / "decode.onnx").write_bytes(b"nonsense")
    for _ in range(2):
        with pytest.raises(BuildError, match="cannot load toy/decode"):
            opened.require(Demand(graphs=("step", "decode")))
    assert opened["step"].wake() is not None


def test_the_weights_of_a_bundle_are_predicted_from_its_files(toy: Path) -> None:
    bundle = read_bundle(toy)
    assert bundle.stored_bytes("step") == (toy / "step.onnx").stat().st_size
    assert predicted([40_000_000, 1_600_000_000, 30_000_000], low_memory=False).startswith(
        "predicted device memory: weights of 1670 MB (1670 MB with --low-memory); ONNX Runtime does not say"
    )
    assert "weights of 1600 MB, one network at a time;" in predicted([900_000_000, 1_600_000_000], low_memory=True)


def test_a_small_graph_stays_in_low_memory_mode(toy: Path, tmp_path: Path) -> None:
    folder = copytree(toy, tmp_path / "toy")
    with (folder / "step.onnx").open("ab") as file:
        file.write(b"\xfa\x3f\x80\x80\x04" + bytes(2**16))  # an unknown field of 64 KiB
    opened = low_memory().open(read_bundle(folder), Demand())
    step, decode = opened["step"], opened["decode"]
    step.wake()
    decode.wake()
    assert step._session is not None


def test_a_closed_engine_runs_nothing(tmp_path: Path, backend: OrtBackend) -> None:
    engine = opened(backend, graph(tmp_path, ADD))
    run = engine.bind({name: backend.empty((2, 4), np.float32) for name in "xyz"})
    engine.close()
    with pytest.raises(EngineError, match="was closed and cannot be run"):
        run()


class Session:
    """What ONNX Runtime says about a session on a GPU; its names."""

    made: ClassVar[dict[str, Any]] = {}
    placed: ClassVar[dict[str, list[tuple[str, str]]]] = {}

    def __init__(self, path: Any, options: Any, providers: Any) -> None:
        del path
        Session.made = {"settings": providers[0][1], "options": options}

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=ep, get_nodes=lambda nodes=nodes: [SimpleNamespace(name=n, op_type=o) for n, o in nodes]
            )
            for ep, nodes in self.placed.items()
        ]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(Session, "placed", {CUDA: [("a", "MatMul")], "CPUExecutionProvider": [("b", "Shape")]})
    return Session


def test_fp32_means_fp32_on_a_gpu_unless_tf32_is_asked_for(toy: Path, gpu: type[Session]) -> None:
    for tf32 in (False, True):
        OrtBackend(OrtCudaOptions(device_id=1, tf32=tf32), CUDA).open(read_bundle(toy), Demand(graphs=("step",)))
        assert gpu.made["settings"] == {"device_id": "1", "use_tf32": str(int(tf32))}


def test_work_on_a_gpu_goes_through_a_stream_that_times_it(
    toy: Path, gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(stream=77, event=lambda: "an event", describe=lambda: {"device": "NVIDIA H100"})
    monkeypatch.setattr(module, "_gpu", lambda _: device)
    backend = OrtBackend(OrtCudaOptions(), CUDA)
    backend.open(read_bundle(toy), Demand(graphs=("step",)))
    assert gpu.made["settings"]["user_compute_stream"] == "77"
    assert backend.mark() == "an event"
    assert backend.describe()["device"] == "NVIDIA H100"


def test_without_cuda_bindings_the_hosts_clock_times_a_gpu(gpu: type[Session]) -> None:
    del gpu  # this machine's, which has no GPU
    assert isinstance(OrtBackend(OrtCudaOptions(), CUDA).mark(), HostMark)


def test_a_tensor_without_room_is_one_sentence(backend: OrtBackend) -> None:
    with pytest.raises(
        BackendError, match=r"cpu has no room for a tensor of shape \(1048576, 1048576\) \(4398047 MB\)"
    ):
        backend.empty((2**20, 2**20), np.float32)


def test_an_attention_that_fell_to_the_cpu_is_named_and_refused(toy: Path, gpu: type[Session]) -> None:
    gpu.placed["CPUExecutionProvider"] += [("blocks.0/Attention", "Attention"), ("c", "Concat")]
    with pytest.raises(BackendError, match=r"no cuda kernel for 1 nodes of toy/step, .*: blocks\.0/Attention \(Att"):
        OrtBackend(OrtCudaOptions(), CUDA).open(read_bundle(toy), Demand(graphs=("step",)))


def test_placement_is_asked_for_by_a_word_that_onnx_runtime_knows(toy: Path) -> None:
    """The double above stands for this: the real session tells where its nodes are."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(toy / "step.onnx", options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    assert "Tanh" in nodes
