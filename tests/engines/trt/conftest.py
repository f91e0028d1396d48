"""Machines on doubles."""

import gc
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import trt_double
from cuda_double import CudaDouble
from machine import Machine, Make, compile_here

from lssgen.bundle import read_bundle
from lssgen.engines import cuda as cuda_module
from lssgen.engines.trt import library as trt_library
from lssgen.engines.trt import make as trt_make
from lssgen.engines.trt.library import Flavour, Library
from lssgen.engines.trt.options import BuildOptions
from lssgen.engines.trt.order import Order, build_engines


@pytest.fixture
def make(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a machine; `device` are arguments of `CudaDouble`. In the end, nothing was freed while it was in use."""
    devices: list[CudaDouble] = []

    def made(
        flavour: Flavour = "tensorrt-rtx", *, built: bool = True, streaming: bool = False, **device: Any
    ) -> Machine:
        cuda = CudaDouble(**device)
        devices.append(cuda)
        monkeypatch.setattr(cuda_module, "bindings", lambda: cuda)
        monkeypatch.setattr(trt_make, "compile_apart", compile_here)
        library = Library(flavour, trt_double.module(cuda, rtx=flavour == "tensorrt-rtx"))
        monkeypatch.setitem(trt_library._libraries, flavour, library)
        bundle = read_bundle(copytree(toy, tmp_path / "bundle"))
        options = BuildOptions(weight_streaming=streaming)
        order = Order(flavour=flavour, targets=("sm89",), options=options, folder=tmp_path / "engines")
        return Machine(cuda, bundle, order, library, build_engines(bundle, order) if built else {})

    yield made
    gc.collect()
    assert not [broken for cuda in devices for broken in cuda.broken]
