"""Files that are not what they should be: every reader says what came, in its own words."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lssgen.errors import ModelError
from lssgen.export.stored import TYPES, find_tensors, read_header
from lssgen.export.weights import open_weights
from lssgen.models.configs import read_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 5135149760\n"


def file_with(path: Path, header: Any, data: bytes = bytes(64)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"w.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        entry(offsets=(-8, 8)),
        entry(offsets=(16, 0)),
        entry(shape=(-2, -2)),
        entry(shape=(2.0, 2.0)),
        entry(shape=(True, 4)),
        entry(shape=(1 << 62, 1 << 62)),
        entry(offsets=(0, 16, 32)),
        entry(shape="4"),
        entry(offsets=(56, 72)),
        {"w.weight": [1]},
        {"w.weight": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
        {"__metadata__": [1], **entry()},
        [1, 2],
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"\xff\xfe{}",
    ],
    ids=lambda header: repr(header)[:40],
)
def test_header_that_makes_no_sense_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(ModelError, match=r"is not a whole safetensors file .*fetch the checkpoint again"):
        read_header(file_with(tmp_path / "m.safetensors", header))


def test_header_says_more_than_places(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", {"modelspec.title": "x"})
    stored, said = read_header(tmp_path / "m.safetensors")
    assert list(stored) == ["w"]
    assert said == {"modelspec.title": "x"}


def test_unknown_type_is_called_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.safetensors holds w\.weight as F6_E2M3, a type that is not known here"):
        find_tensors(file_with(tmp_path / "m.safetensors", entry(dtype="F6_E2M3")))


@pytest.mark.parametrize("dtype", ["U32", "F8_E8M0", "I8", "F4"])
def test_weights_of_a_type_that_no_network_computes_in_are_named(tmp_path: Path, dtype: str) -> None:
    size = {"U32": 4, "F8_E8M0": 1, "I8": 1, "F4": 0.5}[dtype]
    file = file_with(tmp_path / "m.safetensors", entry(offsets=(0, int(4 * size)), dtype=dtype))
    with pytest.raises(ModelError, match=rf"m\.safetensors is quantised.*w\.weight is stored as {dtype}"):
        open_weights({"unet": file})


def test_complex_numbers_are_called_that(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors holds complex numbers \(w\)"):
        open_weights({"unet": tmp_path})


def test_scales_beside_the_weights_are_named(tmp_path: Path) -> None:
    save_file({"w.weight": torch.ones(2), "w.scale_weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"is quantised \(w\.scale_weight"):
        open_weights({"unet": tmp_path})


def test_pointer_of_git_lfs_is_called_that(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"model\.safetensors is a pointer of Git LFS .*git lfs pull"):
        find_tensors(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json is a pointer of Git LFS .*git lfs pull"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", 7, ""])
def test_shards_lie_beside_their_index(tmp_path: Path, name: object) -> None:
    save_file({"w": torch.ones(2)}, tmp_path.parent / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match=r"which is not a file beside it|is damaged"):
        find_tensors(tmp_path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[]", b"\xff{}"], ids=["deep", "list", "bytes"])
def test_json_that_is_no_configuration_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"config\.json .*download the checkpoint again"):
        read_json(tmp_path / "config.json")


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"config\.json .*not a file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ModelError, match="has no weights"):
        find_tensors(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(sorted(TYPES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(TYPES)) | VALUES,
        "shape": st.lists(st.integers(-3, 9), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-9, 99), min_size=2, max_size=2) | VALUES,
    }
)
HEADERS = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), ENTRIES | VALUES, max_size=4)


@given(
    HEADERS.map(lambda header: json.dumps(header).encode()) | st.binary(max_size=99), st.integers(0, 200), st.booleans()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_header_holds_it_is_read_or_refused(tmp_path: Path, header: bytes, data: int, right: bool) -> None:
    file = tmp_path / "m.safetensors"
    length = len(header) if right else data
    file.write_bytes(length.to_bytes(8, "little") + header + bytes(data))
    try:
        stored = find_tensors(file)
    except ModelError:
        return
    for tensor in stored.values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.nbytes <= file.stat().st_size
        assert all(side >= 0 for side in tensor.shape)
