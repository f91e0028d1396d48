"""The flags for engines, made from the options of all backends, and those for what is built ahead of time."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from lssgen.choices import flags_of
from lssgen.commands.build_options import BUILT, add_build_options, order_from_args
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.parser import Parser
from lssgen.engines.demand import Demand
from lssgen.engines.registry import ENGINES, options_class
from lssgen.engines.trt.order import Order


@pytest.fixture
def parser() -> Parser:
    parser = Parser("build", "lssgen-build", "", ())
    add_engine_options(parser, default="onnxruntime", note="")
    add_build_options(parser)
    return parser


def order(parser: Parser, flags: str) -> Order:
    args = parser.parse_args(flags.split())
    return order_from_args(args, engine_words(parser, args))


@pytest.mark.parametrize("engine", BUILT)
def test_without_flags_an_order_is_the_default(parser: Parser, engine: str) -> None:
    assert order(parser, f"--engine {engine}") == Order(flavour=engine)


def test_every_flag_of_an_order_is_heard(parser: Parser) -> None:
    flags = "--engine tensorrt-rtx --target sm89,sm120 --batch 1,4 --branches 2 --size 512,1280x768 --previews --tf32"
    made = order(parser, f"{flags} --refit --max-scratch 2 --allow-unfused 3 --engines here --device 1")
    assert made.targets == ("sm89", "sm120")
    sizes = ((512, 512), (768, 1280))
    assert made.demand == Demand(batches=(1, 4), branches=(2,), resolutions=sizes, previews=True)
    assert (made.options.tf32, made.options.refit, made.options.weight_streaming) == (True, True, False)
    assert (made.bounds.activation_bytes, made.bounds.unfused) == (2 * 2**30, 3)
    assert (made.folder, made.device_id) == (Path("here"), 1)


@pytest.mark.parametrize(("batch", "words"), [("0", "give 1 or more"), ("1,x", "'x' is not a whole number")])
def test_a_batch_that_is_no_count_is_refused(
    parser: Parser, batch: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--batch", batch])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_takes_the_flags_of_its_own_options_and_refuses_the_others(
    parser: Parser, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = flags_of(options_class(engine))
    for other in ENGINES:
        for name, (_, flag) in flags_of(options_class(other)).items():
            words = get_args(get_type_hints(options_class(other))[name])  # of a choice among words, the first
            value = words[:1] or (["1"] if flag.metavar else [])
            given = [flag.name or "--" + name.replace("_", "-"), *value]
            args = parser.parse_args(["--engine", engine, *given])
            if name in own:
                assert set(engine_words(parser, args)) == {name}
                continue
            with pytest.raises(SystemExit, match="2"):
                engine_words(parser, args)
            assert f"{given[0]} is not an option of engine {engine}, but of" in capsys.readouterr().err
