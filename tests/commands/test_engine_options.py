"""The flags for compiled engines."""

import argparse
from pathlib import Path

import pytest

from lssgen.commands.engine_options import add_engine_options, list_engines, order_from_args, prune_engines
from lssgen.engines.demand import Profile, fixed
from lssgen.engines.trt.cache import Cache
from lssgen.engines.trt.order import Order
from lssgen.engines.trt.report import Report


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    return parser


def test_without_flags_an_order_is_the_default(parser: argparse.ArgumentParser) -> None:
    assert order_from_args(parser.parse_args(["--engine", "tensorrt-rtx"])) == Order(flavour="tensorrt-rtx")


def test_every_flag_is_heard(parser: argparse.ArgumentParser) -> None:
    flags = "--engine tensorrt-rtx --target sm89,sm120 --batch 1,4 --branches 2 --tf32 --refit"
    flags += " --max-scratch 2 --allow-unfused 3"
    order = order_from_args(parser.parse_args([*flags.split(), "--engines", "here"]))
    assert (order.targets, order.demand.batches, order.demand.branches) == (("sm89", "sm120"), (1, 4), (2,))
    assert (order.options.tf32, order.options.refit, order.options.weight_streaming) == (True, True, False)
    assert (order.bounds.activation_bytes, order.bounds.unfused, order.folder) == (2 * 2**30, 3, Path("here"))


@pytest.mark.parametrize("batch", ["0", "1,x"])
def test_a_batch_that_is_no_count_is_refused(
    parser: argparse.ArgumentParser, batch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch", batch])
    assert f"{batch!r} " in capsys.readouterr().err


def test_engines_are_listed_and_pruned(tmp_path: Path) -> None:
    report = Report(
        graph="step", content="c", backend="tensorrt-rtx", version="1.7", targets=("sm89",), precision="fp16",
        options={}, profiles=(Profile({"height": fixed(64)}),), inputs=(), outputs=(), seconds=1.5, plan_bytes=3,
        plan_sha256="", weight_bytes=10, activation_bytes=(20,), attentions=0,
    )  # fmt: skip
    Cache(tmp_path).get_or_build("k", lambda: (b"abc", lambda *_: report))
    assert list_engines(tmp_path).startswith("k  tensorrt-rtx 1.7  step: fp16 for sm89 in 1.5 s; ")
    assert prune_engines(tmp_path, 1) == "deleted 0 engines, 0.0 MB"
    assert prune_engines(tmp_path, 0) == "deleted 1 engines, 0.0 MB"
    assert list_engines(tmp_path) == f"no engines in {tmp_path}"
