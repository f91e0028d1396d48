"""Whatever stands in a training's files: the same pairs, or one line that says what to do, and no other error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lssgen.errors import TrainingError
from lssgen.models.nets.latent_upsampler import LatentUpSampler, UpSamplerConfig
from lssgen.training.autoencoder import load_autoencoder
from lssgen.training.cache import EncodeJob, encode_pairs
from lssgen.training.config import PairRecipe, TrainConfig
from lssgen.training.latents import CachedPairs
from lssgen.training.pictures import RandomCrops, find_pictures
from lssgen.training.sealed import write_sealed
from lssgen.training.state import KIND, forget_steps_after, read_state, write_state
from lssgen.training.trainer import Trainer

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
RECIPE = PairRecipe(height=32, width=32)
SHAPE = UpSamplerConfig(in_channels=4, out_channels=4, block_out_channels=(4,), norm_num_groups=2)
QUIET = [].append
bounded = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))

Change = Callable[[bytes], bytes]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A bit flipped, an end cut off, or bytes put in or in the place of others."""
    place, more = draw(st.floats(0, 1)), draw(st.binary(max_size=64))
    bit = 1 << draw(st.integers(0, 7))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "replace"]))

    def change(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        match kind:
            case "flip":
                return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            case "cut":
                return data[:at]
            case "insert":
                return data[:at] + more + data[at:]
            case _:
                return data[:at] + more + data[at + len(more) :]

    return change


class Bench:
    """A cache of three pairs and a state after two steps."""

    def __init__(self, vae: Path, images: Path, folder: Path) -> None:
        self.folder, self.autoencoder = folder, load_autoencoder(str(vae), CPU)
        self.encode = EncodeJob(
            crops=RandomCrops(find_pictures(images, RECIPE).paths, RECIPE, 0), total=3, autoencoder=self.autoencoder,
            device=CPU, folder=folder / "cache", workers=0, with_pictures=False,
        )  # fmt: skip
        self.pairs = encode_pairs(self.encode, QUIET).pairs
        (self.shard,) = self.encode.folder.rglob("*.pairs")
        trainer = self.trainer()
        for _ in trainer.run(CachedPairs(pairs=self.pairs, seed=0, device=CPU), save_every=2):
            pass
        self.file = folder / "state.bin"
        self.sealed = self.file.read_bytes()
        state = read_state(self.file, CPU)
        assert state is not None
        self.state = state

    def trainer(self) -> Trainer:
        config = TrainConfig(pairs=RECIPE, steps=2, batch=1, image_loss="none")
        return Trainer(LatentUpSampler(SHAPE), self.autoencoder, config, CPU, self.folder, {"pictures": "ten"})

    def resume(self) -> str:
        """What is said of the state that stands there; empty where it is taken."""
        try:
            self.trainer().resume(QUIET)
        except TrainingError as error:
            return str(error)
        return ""


@pytest.fixture(scope="module")
def bench(vae: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(vae, images, tmp_path_factory.mktemp("fuzz"))


@bounded
@given(change=changes())
def test_a_shard_that_was_changed_gives_the_same_pairs(bench: Bench, change: Change) -> None:
    bench.shard.write_bytes(change(bench.shard.read_bytes()))
    again = encode_pairs(bench.encode, QUIET).pairs
    assert all(map(torch.equal, again.tensors, bench.pairs.tensors))


@bounded
@given(change=changes())
def test_a_state_that_was_changed_is_refused(bench: Bench, change: Change) -> None:
    changed = change(bench.sealed)
    bench.file.write_bytes(changed)
    said = bench.resume()
    assert said.endswith("delete it to start again") if changed != bench.sealed else not said
    assert "\n" not in said


@bounded
@given(content=st.binary(max_size=300))
def test_bytes_that_are_sealed_but_not_a_state_are_refused(bench: Bench, content: bytes) -> None:
    write_sealed(bench.file, KIND, content)
    assert "was written by another version" in bench.resume()


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=4)),
)  # fmt: skip
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


KEYS = ("", "config", "vae_sha256", "upsampler", "made_from", "undecodable", "step", "model", "optimizer")
"""Parts of a state; the first one is all of it."""


@bounded
@given(value=values, key=st.sampled_from(KEYS))
def test_a_state_with_something_else_in_it_is_refused(bench: Bench, value: Any, key: str) -> None:
    write_state(bench.file, bench.state | {key: value} if key else value)
    said = bench.resume()
    harmless = (key == "step" and value == 1) or key == "undecodable" or bench.state.get(key) == value
    assert said or harmless
    assert "\n" not in said


@bounded
@given(junk=st.lists(st.binary(max_size=40), max_size=6), steps=st.integers(0, 4))
def test_a_log_of_anything_is_read(bench: Bench, junk: list[bytes], steps: int) -> None:
    lines = [b'{"step": %d}' % (step + 1) for step in range(4)]
    (bench.folder / "log.jsonl").write_bytes(b"\n".join([*junk, *lines, *junk]))
    forget_steps_after(steps, bench.folder, QUIET)
    assert (bench.folder / "log.jsonl").read_bytes() == b"".join(line + b"\n" for line in lines[:steps])


def test_the_bench_takes_its_own_state(bench: Bench) -> None:
    bench.file.write_bytes(bench.sealed)
    assert not bench.resume()
