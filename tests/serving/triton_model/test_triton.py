"""A bundle in Triton: its repository by Triton's own protobuf, its model by the rules of the Python backend."""

import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Generator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pb_utils
import pytest
from google.protobuf import text_format
from PIL import Image
from toy_bundle import toy_in_stages

import lssgen
from lssgen.bundle import Bundle, read_bundle
from lssgen.cli import main
from lssgen.errors import ServingError
from lssgen.runtime.pictures import SOURCE_TYPE
from lssgen.serving.triton.ports import INPUTS
from lssgen.serving.triton.repository import TritonModel, config_text, export_triton

PUBLISHED: dict[str, set[str]] = {
    "TritonError": {"code", "message", *pb_utils.TritonError.__dict__.keys() & {
        "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"
    }},
    "Tensor": {"name", "as_numpy", "triton_dtype", "to_dlpack", "is_cpu", "shape", "from_dlpack"},
    "InferenceRequest": {
        "inputs", "request_id", "correlation_id", "flags", "set_flags", "timeout", "parameters", "trace", "exec",
        "async_exec", "requested_output_names", "get_response_sender", "is_cancelled", "set_release_flags",
    },
    "InferenceResponse": {"output_tensors", "has_error", "error", "parameters"},
    "InferenceResponseSender": {"send", "is_cancelled"},
}  # fmt: skip
"""Methods of the classes in `c_python_backend_utils`; source: python_backend, src/pb_stub.cc."""

OF_THE_STAND_IN = {"sent", "closed", "cancelled", "sender"}


@pytest.fixture(scope="module")
def small(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_in_stages(toy, tmp_path_factory.mktemp("triton") / "toy")


@pytest.fixture(scope="module")
def repository(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TritonModel(
        name="toy", engine_options={"threads": 1}, server_options={"sizes": [[64, 64]], "batches": [1, 2]}
    )
    return export_triton(small, tmp_path_factory.mktemp("models"), model, say=print)


@pytest.fixture(scope="module")
def triton(repository: Path) -> Generator[Any]:
    """The model as Triton's stub loads it: from its file, by the name of its version's folder."""
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    patch.delitem(sys.modules, "lssgen.serving.triton.model", raising=False)
    spec = importlib.util.spec_from_file_location("1.model", repository / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = parsed((repository / "config.pbtxt").read_text())
    parameters = {key: {"string_value": value.string_value} for key, value in config.parameters.items()}
    model.initialize(
        {
            "model_config": json.dumps({"name": "toy", "parameters": parameters}),
            "model_repository": str(repository),
            "model_version": "1",
            "model_instance_device_id": "0",
        }
    )
    until(model.is_ready)
    yield model
    model.finalize()
    patch.undo()


def parsed(text: str) -> Any:
    """A configuration, by the protobuf that Triton's client ships."""
    place = find_spec("tritonclient")
    assert place is not None
    assert place.submodule_search_locations is not None
    path = Path(place.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if "model_config_pb2" not in sys.modules:
        sys.modules["model_config_pb2"] = module
        spec.loader.exec_module(module)
    return text_format.Parse(text, sys.modules["model_config_pb2"].ModelConfig())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def request(*outputs: str, **inputs: Any) -> pb_utils.InferenceRequest:
    types = {"TYPE_STRING": np.object_, "TYPE_INT32": np.int32, "TYPE_UINT64": np.uint64}
    types |= {"TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_}
    tensors = [
        pb_utils.Tensor(name, np.array([value.encode() if isinstance(value, str) else value], types[INPUTS[name].type]))
        for name, value in inputs.items()
    ]
    return pb_utils.InferenceRequest(tensors, outputs)


def told(response: pb_utils.InferenceResponse) -> dict[str, Any]:
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def ask(triton: Any, *outputs: str, **inputs: Any) -> list[pb_utils.InferenceResponse]:
    asked = request(*outputs, **inputs)
    assert triton.execute([asked]) is None, "a decoupled model returns nothing"
    until(lambda: asked.sender.closed)
    return asked.sender.sent


def test_the_configuration_is_one_by_tritons_protobuf(repository: Path) -> None:
    config = parsed((repository / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("toy", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [port.name for port in config.input] == list(INPUTS)
    assert [port.name for port in config.input if not port.optional] == ["prompt"]
    assert {port.name: tuple(port.dims) for port in config.output}["pixels"] == (-1, -1, 3)
    assert json.loads(config.parameters["server_options"].string_value)["sizes"] == [[64, 64]]


def test_a_gpu_is_asked_for_where_the_engine_wants_one() -> None:
    kinds = {engine: parsed(config_text(TritonModel(name="m", engine=engine))).instance_group[0].kind for engine in
             ("onnxruntime", "openvino", "tensorrt")}  # fmt: skip
    assert kinds == {"onnxruntime": 2, "openvino": 2, "tensorrt": 1}  # KIND_CPU, KIND_GPU


def test_the_repository_has_the_whole_bundle(repository: Path, small: Bundle) -> None:
    inside = read_bundle(repository / "1" / "bundle")
    assert inside.manifest == small.manifest


def test_the_bundle_s_own_weights_can_still_be_read_by_onnx(repository: Path, small: Bundle) -> None:
    for folder in (small.folder, repository / "1" / "bundle"):
        assert {path.stat().st_nlink for path in folder.rglob("*") if path.is_file()} == {1}
        onnx.load(folder / "step.onnx")


def test_a_size_that_the_bundle_cannot_have_is_refused_before_anything_is_written(
    small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export-triton", str(small.folder), "--output", str(tmp_path / "out"), "--sizes", "63"]
    assert main(words) == 1
    assert "63" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_is_the_one_that_the_pipeline_paints(triton: Any, small: Bundle) -> None:
    responses = ask(triton, prompt="a fox", seed=7, n=2, num_inference_steps=5)
    with lssgen.load(small.folder, threads=1) as pipeline:
        expected = pipeline("a fox", seed=7, num_images=2, num_inference_steps=5).images
    by_index = {int(told(one)["index"][0]): told(one) for one in responses}
    assert sorted(by_index) == [0, 1]
    for index, wanted in enumerate(expected):
        given = by_index[index]
        assert np.array_equal(given["pixels"], np.asarray(wanted))
        image = Image.open(BytesIO(given["image"][0]))
        assert np.array_equal(np.asarray(image), np.asarray(wanted))
        assert SOURCE_TYPE in image.text["XML:com.adobe.xmp"]  # type: ignore[attr-defined]
        assert json.loads(given["parameters"][0])["seed"] == int(given["seed"][0]) == 7 + index


def test_previews_come_before_the_picture(triton: Any) -> None:
    responses = [told(one) for one in ask(triton, "kind", "pixels", prompt="a fox", previews=True)]
    assert [one["kind"][0] for one in responses] == ["preview", "picture"]
    assert [one["pixels"].shape for one in responses] == [(32, 32, 3), (64, 64, 3)]
    assert set(responses[0]) == {"kind", "pixels"}, "what is not asked for is not made"


def test_further_words_come_as_json(triton: Any) -> None:
    (one,) = ask(triton, "parameters", prompt="a fox", options='{"eta": 0.0, "min_resolution": 64}', width=64)
    assert json.loads(told(one)["parameters"][0])["min_resolution"] == 64


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"prompt": "a", "width": 61}, "61"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "options": "{"}, "options"),
        ({"prompt": "a", "options": '{"sneed": 1}'}, "did you mean 'seed'"),
        ({"prompt": "a", "num_inference_steps": -1}, "num_inference_steps"),
        ({"n": 1}, "prompt is needed"),
    ],
)
def test_what_makes_no_sense_is_an_invalid_argument(triton: Any, inputs: dict[str, Any], words: str) -> None:
    (response,) = ask(triton, **inputs)
    error = response.error()
    assert error is not None
    assert error.code() == pb_utils.TritonError.INVALID_ARG
    assert words in error.message()


def test_several_values_and_bytes_that_are_not_text_are_refused(triton: Any) -> None:
    for array in (np.array([b"a", b"b"], np.object_), np.array([b"\xff"], np.object_)):
        asked = pb_utils.InferenceRequest([pb_utils.Tensor("prompt", array)])
        triton.execute([asked])
        until(lambda asked=asked: asked.sender.closed)
        assert asked.sender.sent[0].error().code() == pb_utils.TritonError.INVALID_ARG  # type: ignore[union-attr]


def test_a_request_that_is_cancelled_is_answered_and_the_next_is_painted(triton: Any) -> None:
    asked = request(prompt="a fox", num_inference_steps=200)
    asked.sender.cancelled = True
    triton.execute([asked])
    until(lambda: asked.sender.closed)
    error = asked.sender.sent[-1].error()
    assert error is None or error.code() == pb_utils.TritonError.CANCELLED
    assert len(ask(triton, "kind", prompt="a fox")) == 1


def test_requests_that_come_together_each_get_their_own(triton: Any) -> None:
    asked = [request("seed", prompt="a fox", seed=seed) for seed in range(12)]
    triton.execute(asked)
    until(lambda: all(one.sender.closed for one in asked))
    assert [int(told(one.sender.sent[0])["seed"][0]) for one in asked] == list(range(12))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_stand_in_has_no_method_that_the_published_class_lacks(name: str) -> None:
    own = getattr(pb_utils, name)
    made = {method for method in vars(own) if not method.startswith("_")}
    assert made <= PUBLISHED[name] | OF_THE_STAND_IN


def test_the_model_uses_nothing_that_the_stand_in_lacks() -> None:
    source = Path(lssgen.__file__).parent / "serving" / "triton" / "model.py"
    used = set(re.findall(r"pb_utils\.([A-Za-z_]+)", source.read_text()))
    assert used
    assert all(hasattr(pb_utils, name) for name in used)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 65])
def test_a_name_that_triton_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(ServingError, match="cannot be a model's name"):
        TritonModel(name=name)


def test_the_command_writes_it_and_writes_it_again(small: Bundle, tmp_path: Path) -> None:
    words = ["export-triton", str(small.folder), "--output", str(tmp_path), "--name", "x", "--sizes", "64"]
    assert main(words) == 0
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "x" / "1").iterdir()) == ["bundle", "model.py"]


def test_a_folder_with_something_else_is_left_alone(
    small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "diary").write_text("dear")
    assert main(["export-triton", str(small.folder), "--output", str(tmp_path), "--name", "x"]) == 1
    assert "is not a model of Triton's" in capsys.readouterr().err
    assert (tmp_path / "x" / "diary").read_text() == "dear"
