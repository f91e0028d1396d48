"""What tests of several rooms share."""

import os
import sys
from collections.abc import Generator, Mapping
from multiprocessing import active_children
from pathlib import Path

import pytest
from toy_bundle import toy_bundle

from lssgen.bundle import Bundle, read_bundle
from lssgen.demo import write_demo_bundle

# What "auto" chooses is measured, and measurements have no place in tests that ask for nothing else.
os.environ.setdefault("LSSGEN_ENGINE", "onnxruntime")

STATUS = pytest.StashKey[int]()
"""Status that the tests end with."""


@pytest.fixture(scope="session", autouse=True)
def nothing_runs_on() -> Generator[None]:
    """No process outlives the tests: Python would wait for it at the end, where no test can fail any more."""
    yield
    assert active_children() == []


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle with small real ONNX graphs: 64 px in two stages. Copy it before changing it."""
    return toy_bundle(tmp_path_factory.mktemp("bundles") / "toy").folder


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD3 checkpoint with T5 and an upsampler of its own. Copy it before changing it."""
    from factory import tiny_sd3, tiny_upsampler  # torch and diffusers, which most rooms do without

    folder = tiny_sd3(tmp_path_factory.mktemp("checkpoints") / "sd3")
    tiny_upsampler(folder / "upsampler", licence="CC0-1.0", scaling_factor=1.5305, shift_factor=0.0609)
    return folder


@pytest.fixture(scope="session")
def sd3_bundle(sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That checkpoint as a bundle for 64 and 128 px, with gates for skip-layer guidance and 24 T5 tokens."""
    from lssgen.export.config import ExportConfig
    from lssgen.export.export import export

    config = ExportConfig(
        model=str(sd3),
        output=tmp_path_factory.mktemp("bundles") / "sd3",
        resolutions=((64, 64), (128, 128)),
        skip_layers=True,
        layers_to_skip=(0,),
        max_sequence_length=24,
        threads=1,
    )
    return export(config)


@pytest.fixture(scope="session")
def slotted(sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That checkpoint with two slots of rank 4 for LoRAs, for 64 and 128 px."""
    from lssgen.export.config import ExportConfig
    from lssgen.export.export import export

    config = ExportConfig(
        model=str(sd3),
        output=tmp_path_factory.mktemp("bundles") / "slotted",
        resolutions=((64, 64), (128, 128)),
        transitions=("latent",),
        max_sequence_length=24,
        lora_slots=2,
        lora_rank=4,
        threads=1,
    )
    return export(config)


@pytest.fixture(scope="session")
def loras(slotted: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """LoRAs for it by name, of rank 4, 3, 6 and 9."""
    from slotting import factors_of, lora_for

    folder, layers = tmp_path_factory.mktemp("loras"), factors_of(slotted).layers
    ranks = {"ink": 4, "oil": 3, "wide": 6, "vast": 9}
    return {
        name: lora_for(layers, folder / f"{name}.safetensors", rank, seed)
        for seed, (name, rank) in enumerate(ranks.items(), 1)
    }


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model, whole, as users have it after their first run."""
    folder = tmp_path_factory.mktemp("bundles") / "demo"
    write_demo_bundle(folder)
    return read_bundle(folder)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave before the interpreter is taken down, with the status that the tests have earned.

    torch, ONNX Runtime, OpenVINO, TensorRT-RTX and LoadGen share this process, as they do in no other, and take down
    their threads in whatever order: it ended once with a segmentation fault after 8878 tests had passed.
    """
    if STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[STATUS])
