"""lssgen calibrate: ranges of a bundle, a bundle in few bits, or one with another tool's graph. Needs no torch."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.common import run, warnings_as_lines
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.commands.plan_options import add_plan_options, given_plan_options
from lssgen.commands.values import one_of
from lssgen.commands.verify_option import add_verify_option
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import ENGINES, open_backend
from lssgen.errors import BackendError, CalibrationError
from lssgen.paths import find_bundle
from lssgen.runtime.options import Options
from lssgen.verification import see_whole

if TYPE_CHECKING:
    from lssgen.calibration.gates import Gate
    from lssgen.calibration.levels import Space
    from lssgen.calibration.levels_config import SigmaConfig
    from lssgen.engines.base import Backend

EXAMPLES = (
    "quantise bundles/sd3 --format fp8 --for tensorrt-rtx --target sm89",
    "schedule bundles/sd3 --tries 60",
)
ACTIONS = ("ranges", "quantise", "adopt", "sigma", "schedule")
MADE_FOR = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")

_LOG = logging.getLogger("lssgen")


def build_parser(prog: str = "lssgen-calibrate") -> Parser:
    from lssgen.calibration.config import AdoptConfig, QuantiseConfig, RangesConfig, ScheduleConfig
    from lssgen.calibration.levels_config import SigmaConfig

    parser = Parser("calibrate", prog, "{ranges,quantise,adopt,sigma,schedule} BUNDLE [OPTION ...]", EXAMPLES)
    parser.description = "\n".join(
        (
            str(parser.description),
            "ranges: run prompts and note what goes into the network's products; kill it and run it again, it goes on.",
            "quantise: a new bundle in few bits, compared with the old one and timed before it counts.",
            "adopt: a new bundle with a step that ModelOpt, NNCF or Olive has quantised.",
            "sigma: from photographs, the noise levels from which on stages may start; into the bundle, or of a --vae.",
            "schedule: search the schedules that are worth having, by time and quality; goes on where it was stopped.",
        )
    )
    parser.add_argument("action", type=one_of(ACTIONS), metavar="ACTION", help="what to do; required")
    parser.add_argument(
        "bundle",
        nargs="?",
        metavar="BUNDLE",
        help="folder of a bundle, or name of one below LSSGEN_HOME; required, but for sigma --vae",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="what to write; default: beside the bundle, <bundle>.ranges.safetensors, <bundle>-<format> or "
        "<bundle>.sigma.json or <bundle>.schedules.jsonl",
    )
    parser.group("quantise").add_argument(
        "--for",
        dest="made_for",
        type=one_of(MADE_FOR),
        metavar="{" + ",".join(MADE_FOR) + "}",
        default=argparse.SUPPRESS,
        help=f"engine that it is made for; default: {MADE_FOR[0]}",
    )
    for record in (RangesConfig, QuantiseConfig, AdoptConfig, SigmaConfig, ScheduleConfig):
        add_flags(parser, record)
    add_engine_options(parser, default="onnxruntime", note="where the runs happen")
    add_plan_options(parser)
    add_verify_option(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-calibrate") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    _refuse_misplaced(parser, args)
    if args.bundle is None and not (args.action == "sigma" and getattr(args, "vae", None)):
        parser.error("BUNDLE is required" + ", or a --vae" * (args.action == "sigma"))
    words = engine_words(parser, args)
    actions = {"ranges": _ranges, "quantise": _quantise, "adopt": _adopt, "sigma": _sigma, "schedule": _schedule}
    work = actions[args.action]
    with warnings_as_lines():
        return run(prog, lambda: _with_libraries(lambda: work(args, words)))


def _refuse_misplaced(parser: Parser, args: argparse.Namespace) -> None:
    """End the command where a flag belongs to another action."""
    from lssgen.calibration.config import AdoptConfig, QuantiseConfig, ScheduleConfig
    from lssgen.calibration.levels_config import SigmaConfig
    from lssgen.choices import flags_of

    gate = {"compare", "psnr", "cosine", "force"}
    own = {
        "ranges": {"limit", "seed"},
        "quantise": {*flags_of(QuantiseConfig), "made_for"},
        "adopt": {*flags_of(AdoptConfig), *gate, "made_for"},
        "sigma": {*flags_of(SigmaConfig)},
        "schedule": {*flags_of(ScheduleConfig), "limit", "seed"},
    }
    others = set[str]().union(*own.values()) - own[args.action]
    if misplaced := sorted(others & set(vars(args))):
        parser.error(f"{parser.spelling(misplaced[0])} is not an option of {args.action}")


def _with_libraries(work: Any) -> None:
    try:
        work()
    except ImportError as error:
        raise CalibrationError(
            f'lssgen calibrate needs {error.name}; install it with pip install "lssgen[calibrate]"'
        ) from error


def _opened(args: argparse.Namespace) -> Bundle:
    bundle = read_bundle(find_bundle(args.bundle))
    see_whole(bundle, args.verify)
    return bundle


def _plan(args: argparse.Namespace) -> Options:
    return cast(Options, given_plan_options(args))


def _ranges(args: argparse.Namespace, words: EngineOptions) -> None:
    from lssgen.calibration.config import RangesConfig
    from lssgen.calibration.prompts import read_prompts
    from lssgen.calibration.ranges import RangesJob, measure_ranges
    from lssgen.calibration.report import markdown, write_plot

    config = RangesConfig(**given(args, RangesConfig))
    prompts = read_prompts(config.prompts, config.limit)
    bundle = _opened(args)
    output: Path = args.output or _beside(bundle, ".ranges.safetensors")
    statistics = measure_ranges(
        RangesJob(
            bundle=bundle,
            backend=open_backend(args.engine, **words),
            prompts=prompts,
            output=output,
            seed=config.seed,
            options=_plan(args),
        )
    )
    cell = bundle.manifest.facts.cell_px
    print(markdown(statistics, cell))
    write_plot(statistics, cell, output.with_suffix(".png"))
    print(f"ranges and plot: {output}, {output.with_suffix('.png')}")


def _quantise(args: argparse.Namespace, words: EngineOptions) -> None:
    from lssgen.bundle import sha256_of
    from lssgen.calibration.config import QuantiseConfig
    from lssgen.calibration.formats import FORMATS
    from lssgen.calibration.quantise import QuantiseJob, quantise
    from lssgen.calibration.ranges import see_unquantised
    from lssgen.calibration.statistics import read_statistics

    config = QuantiseConfig(**given(args, QuantiseConfig))
    bundle = _opened(args)
    see_unquantised(bundle)  # before its ranges are missed, which it cannot have
    made_for: str = getattr(args, "made_for", MADE_FOR[0])
    statistics = config.statistics or _beside(bundle, ".ranges.safetensors")
    needs = FORMATS[config.format].activations
    made = quantise(
        QuantiseJob(
            bundle=bundle,
            output=args.output or _beside(bundle, f"-{config.format}"),
            format=config.format,
            engine=made_for,
            targets=config.target,
            statistics=read_statistics(statistics) if needs else None,
            source=sha256_of(statistics) if needs else "",
            smoothing=config.smoothing,
            ends=config.keep_blocks,
            attention=config.attention,
            text=config.text,
            share=config.share,
            from_px=config.from_size,
            gate=_gate(args, words, made_for),
        )
    )
    _say(made)


def _schedule(args: argparse.Namespace, words: EngineOptions) -> None:
    from lssgen.commands.schedule_search import search

    bundle = _opened(args)
    search(args, bundle, open_backend(args.engine, **words), args.output or _beside(bundle, ".schedules.jsonl"))


def _sigma(args: argparse.Namespace, words: EngineOptions) -> None:
    from lssgen.calibration.levels import LevelsJob, markdown, measure_levels, put_into, read_levels
    from lssgen.calibration.levels_config import SigmaConfig

    config = SigmaConfig(**given(args, SigmaConfig))
    bundle = None if args.bundle is None else _opened(args)
    if config.levels is not None:
        found = read_levels(config.levels).at(config.quality)
    else:
        assert config.images is not None, "SigmaConfig asks for one of the two"
        output: Path = args.output or _sigma_file(bundle, config.vae)
        crop = config.crop or (1024 if bundle is None else max(map(min, bundle.manifest.resolutions)))
        with closing(_space(bundle, config, lambda: open_backend(args.engine, **words), crop)) as space:
            job = LevelsJob(
                space=space,
                images=config.images,
                crop_px=crop,
                most=config.pictures,
                quality=config.quality,
                output=output,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
            found = measure_levels(job)
        print(f"noise levels: {output}", file=sys.stderr)
    print(markdown(found))
    if bundle is not None:
        print(f"{put_into(bundle, found).folder}: --start-sigma auto starts at these")


def _space(bundle: Bundle | None, config: "SigmaConfig", opened: Callable[[], "Backend"], crop: int) -> "Space":
    """What is measured: a VAE, or else the bundle's own graphs."""
    if config.vae is not None or bundle is None:
        from lssgen.training.space import VaeSpace

        return VaeSpace(str(config.vae), config.upsampler)
    from lssgen.calibration.bundle_space import BundleSpace

    if config.upsampler is not None:
        raise CalibrationError("--upsampler goes with --vae: a bundle is measured with the one that it has")
    return BundleSpace(bundle, opened(), crop)


def _sigma_file(bundle: Bundle | None, vae: str | None) -> Path:
    return Path(f"{Path(str(vae)).name}.sigma.json") if bundle is None else _beside(bundle, ".sigma.json")


def _adopt(args: argparse.Namespace, words: EngineOptions) -> None:
    from lssgen.calibration.adopt import adopt
    from lssgen.calibration.config import AdoptConfig

    config = AdoptConfig(**given(args, AdoptConfig))
    if config.graph is None:
        raise CalibrationError("to adopt a graph, give its ONNX file with --graph")
    bundle = _opened(args)
    made_for: str = getattr(args, "made_for", MADE_FOR[0])
    output = args.output or _beside(bundle, "-adopted")
    _say(adopt(bundle, config.graph, output, engine=made_for, by=config.by, gate=_gate(args, words, made_for)))


def _gate(args: argparse.Namespace, words: EngineOptions, made_for: str) -> "Gate":
    """What comes out must pass, as the flags have it."""
    from lssgen.calibration.config import QuantiseConfig, RangesConfig
    from lssgen.calibration.gates import Gate
    from lssgen.calibration.prompts import read_prompts
    from lssgen.calibration.quality import Bound, Runs

    config = QuantiseConfig(**given(args, QuantiseConfig))
    ranges = RangesConfig(**given(args, RangesConfig))
    backend = open_backend(args.engine, **words)
    # The last prompts of the file: where only some were calibrated with, these were not.
    prompts = read_prompts(ranges.prompts)[-config.compare :] if config.compare else ()
    if len(prompts) < config.compare:
        _LOG.warning("%s holds %d prompts: so many runs are compared", ranges.prompts, len(prompts))
    return Gate(
        runs=Runs(prompts=prompts, options=_plan(args)) if prompts else None,
        backend=backend,
        bound=Bound(config.psnr, config.cosine),
        timed=_timing(made_for, args.engine, backend),
        force=config.force,
    )


def _timing(made_for: str, engine: str, backend: "Backend") -> "Backend | None":
    """The engine that a bundle is made for, if it runs here."""
    if made_for == engine:
        return backend
    try:
        return open_backend(made_for) if made_for in ENGINES else None
    except BackendError as error:
        _LOG.info("%s is not timed: %s", made_for, error)
        return None


def _beside(bundle: Bundle, suffix: str) -> Path:
    folder = bundle.folder.resolve()
    return folder.with_name(folder.name + suffix)


def _say(bundle: Bundle) -> None:
    about = bundle.manifest.graphs["step"].quantisation
    assert about is not None
    total = sum(bundle.stored_bytes(graph) for graph in bundle.manifest.graphs)
    print(
        f"{bundle.folder}: {about.products} products in {about.format} for {about.engine}, {len(about.kept)} kept, "
        f"{about.attention} attentions; {total / 1e6:.0f} MB"
    )
    if about.measured is not None and about.measured.psnr_db:
        said = ", ".join(f"{psnr:.1f} dB" for psnr in about.measured.psnr_db)
        print(f"latents after every stage, worst of the runs: {said}")


if __name__ == "__main__":
    sys.exit(main())
