"""lssgen run: paint pictures from a bundle. Needs no torch."""

import argparse
import logging
import shlex
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from lssgen.bundle import MANIFEST, Bundle, read_bundle, sha256_of
from lssgen.commands.common import run, warnings_as_lines
from lssgen.commands.demo import demo_bundle
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.flags import add_flags, given
from lssgen.commands.hook_options import add_hook_options, hooks_given
from lssgen.commands.paint import paint, paint_file, pictures_given
from lssgen.commands.parser import Parser
from lssgen.commands.places import Places
from lssgen.commands.plan import as_table
from lssgen.commands.plan_options import add_plan_options, given_plan_options
from lssgen.commands.values import control_file, integer, named_file, one_of, within
from lssgen.commands.verify_option import add_verify_option
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import default_engine, open_backend
from lssgen.errors import BundleError, PromptError
from lssgen.measured import MEASURED
from lssgen.paths import find_bundle
from lssgen.plan.budget import Budget
from lssgen.runtime.advice import advised
from lssgen.runtime.checking import Guard
from lssgen.runtime.embeds import prompts_with, read_embeds
from lssgen.runtime.options import STRENGTH, Asked, Options, Request, refuse_too_many, request_from_options
from lssgen.runtime.pictures import FORMATS
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.record import Settings, settings_from_file
from lssgen.runtime.recorder import RecordingBackend, dumped_inputs
from lssgen.runtime.text import PromptWarning
from lssgen.verification import see_whole

EXAMPLES = (
    '"a red star above a blue circle on a white background" -o star.png',
    '"a lighthouse at dusk" --bundle bundles/sd3 --size 1280x768 --steps 40 --shorten --num-images 4 -o pictures/',
)

MOST_WORDS = 2
"""Prompts of one word each that are painted without asking; more are a sentence whose quotes were forgotten."""

_NOTHING = Settings(options=Options(), prompts=(), bundle={}, engine="", start={})
_LOG = logging.getLogger("lssgen")


def build_parser(prog: str = "lssgen-run") -> Parser:
    parser = Parser("run", prog, "PROMPT ... [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help="what to paint; several prompts are painted in turn; required, unless --config or --prompts has them",
    )
    _add_input(parser)
    add_flags(parser, Request)
    add_plan_options(parser)
    add_flags(parser, Budget)
    _add_prompt_files(parser)
    _add_output(parser)
    add_engine_options(parser, default=default_engine(), note="where to run; compiled engines are built on first use")
    add_hook_options(parser)
    add_verify_option(parser)
    return parser


def _add_input(parser: Parser) -> None:
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help="folder that lssgen-export wrote, or name of one below LSSGEN_HOME; default: the demo model, made on "
        "first use",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="take prompts, bundle and settings from a run.json, or settings from another JSON file; flags win; "
        "default: none",
    )
    parser.add_argument(
        "--init-image",
        type=Path,
        metavar="FILE",
        help="start from this picture; --strength says how far to go from it; default: from noise alone",
    )
    parser.add_argument(
        "--mask-image", type=Path, metavar="FILE", help="paint only where this picture is white; default: everywhere"
    )
    parser.add_argument(
        "--prompt-embeds",
        type=Path,
        metavar="FILE",
        help="embeddings of prompts, which lssgen encode writes, in place of what the text encoder makes of PROMPT; "
        "default: none",
    )
    parser.add_argument(
        "--control",
        "--control-image",
        dest="condition",
        type=control_file,
        action="append",
        default=[],
        metavar="FILE",
        help="picture that steers the run, of the run's shape, for bundles with a ControlNet; --control-scale, "
        "--control-start and --control-end say how strongly and when; default: none",
    )
    parser.add_argument(
        "--condition",
        type=named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="another picture that the network takes besides the prompt, by the name that the bundle gives it; may be "
        "repeated; default: none",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture that an editing model (FLUX.2) sees beside the one it paints; may be repeated; default: none",
    )


def _add_prompt_files(parser: Parser) -> None:
    group = parser.group("prompt files")
    group.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help="GenEval form: one JSON object a line; default: PROMPT"
    )
    group.add_argument(
        "--outdir",
        type=Path,
        metavar="DIR",
        help="GenEval's folders go here; run again to resume; default: none, required with --prompts",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="paint on a Ray cluster, at auto, ray://HEAD:10001, or local for one on this machine; every machine must "
        "see --bundle and --outdir at the same place; default: on this machine, without Ray",
    )
    group.add_argument(
        "--ray-workers",
        type=within(1, 100_000, integer),
        default=1,
        metavar="N",
        help="workers at a time, each with a GPU where the engine needs one; default: %(default)s",
    )
    group.add_argument(
        "--bad-lines",
        type=one_of(("stop", "skip")),
        default="stop",
        metavar="{stop,skip}",
        help="what to do about lines that are not such objects; default: %(default)s",
    )


def _add_output(parser: Parser) -> None:
    formats = sorted(suffix[1:] for suffix in FORMATS)
    group = parser.group("output")
    group.add_argument(
        "-o",
        "--output",
        default="lssgen.png",
        metavar="FILE",
        help="the picture, or with several of them their common name; or a folder; default: %(default)s",
    )
    group.add_argument(
        "--format",
        type=one_of(formats),
        metavar="{" + ",".join(formats) + "}",
        help="default: as the file's name says, else png",
    )
    group.add_argument(
        "--preview",
        metavar="FILE",
        help="also write the pictures of the stages before the last one: their common name, or a folder; default: none",
    )
    group.add_argument(
        "--save-latents",
        type=Path,
        metavar="FILE",
        help="also write the final (N, C, h, w) latents, as .npy or .safetensors; default: none",
    )
    group.add_argument(
        "--dump-inputs",
        type=Path,
        metavar="DIR",
        help="also write the inputs of every graph, at every size, for Polygraphy (--load-inputs); default: none",
    )
    group.add_argument("--plan-only", action="store_true", help="print the plan and paint nothing")
    group.add_argument("--quiet", action="store_true", help="no progress bar, and warnings only")


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-run") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    _refuse_forgotten_quotes(parser, args.prompt)
    words = engine_words(parser, args)
    # Around the whole command, since what `_run` sets is the process's, and a caller of `main` has its own.
    with warnings_as_lines():
        return run(prog, lambda: _run(parser, args, words), quiet=args.quiet)


def _run(parser: Parser, args: argparse.Namespace, words: EngineOptions) -> None:
    # Python says a warning once a place; every prompt that is cut off shall be heard of.
    warnings.simplefilter("always", PromptWarning)
    settings = settings_from_file(args.config) if args.config else _NOTHING
    options, prompts = _options(args, settings), args.prompt or list(settings.prompts)
    if args.prompt_embeds:
        prompts = prompts_with(read_embeds(args.prompt_embeds), prompts or None)
    if not args.plan_only:
        _refuse_contradictions(parser, args, prompts)
        _see_start(args, settings)
    guard = Guard(**hooks_given(args))
    bundle = read_bundle(_bundle_folder(parser.prog, args, settings))
    asked = cast(Asked, {**options, **given(args, Budget)})
    request = request_from_options(bundle, _advised(args, words, bundle, asked))
    if args.plan_only:
        print(as_table(bundle.manifest.facts, request.plan_options, request.plan))
        return
    count = len(prompts) * request.num_images
    refuse_too_many(count)
    # Two words may be meant; three or more are refused before anything is read.
    if len(prompts) == _single_words(prompts) == MOST_WORDS:
        _LOG.warning("%d pictures of one word each; put quotes around both words to paint one", count)
    for note in request.plan.notes:
        _LOG.info("%s", note)
    # After all that can be refused at once: for the first time, it reads the whole bundle.
    see_whole(bundle, args.verify)
    places = Places.of(args, count)
    with _pipeline(args, words, bundle, guard) as pipeline:
        if args.prompts:
            paint_file(pipeline, args, words, asked, request)
        else:
            with places.held():
                paint(pipeline, args, asked, prompts, places)


def _advised(args: argparse.Namespace, words: EngineOptions, bundle: Bundle, asked: Asked) -> Options:
    """The options of the run as it will be. What there is to say of them, painting says."""
    if not (given(args, Budget) or bundle.path(MEASURED).is_file()):
        return asked
    tell = _LOG.log if args.plan_only else _unheard
    return advised(bundle, open_backend(args.engine, **words), asked, tell)


def _unheard(level: int, note: str) -> None:
    del level, note


@contextmanager
def _pipeline(args: argparse.Namespace, words: EngineOptions, bundle: Bundle, guard: Guard) -> Generator[Pipeline]:
    """The bundle on the chosen engine, with a recorder in between where its inputs are asked for."""
    with ExitStack() as stack:
        backend = open_backend(args.engine, **words)
        if args.dump_inputs:
            backend = RecordingBackend(backend, stack.enter_context(dumped_inputs(args.dump_inputs, bundle)))
        yield stack.enter_context(Pipeline(bundle, backend, guard=guard))


def _options(args: argparse.Namespace, settings: Settings) -> Options:
    """Options of --config, with what the flags say in their place."""
    options = settings.options
    if args.init_image and not args.mask_image:
        # As `Pipeline.paint` does: the plan that is printed and checked here must be the one that is painted.
        options = {"strength": STRENGTH, **options}
    flags = given(args, Request) | given_plan_options(args)
    return cast(Options, {**options, **flags})


def _bundle_folder(prog: str, args: argparse.Namespace, settings: Settings) -> Path:
    """The bundle that is named, or that of the recorded run, or the demo model's.

    Raises:
        BundleError: That of the recorded run is not there.
    """
    recorded = settings.bundle.get("folder")
    if args.bundle:
        folder = find_bundle(args.bundle)
    elif recorded:
        folder = Path(recorded)
        if not folder.is_dir():
            raise BundleError(
                f"{args.config} was painted from bundle {folder}, which is not there; name it with --bundle"
            )
    else:
        folder = demo_bundle(prog)
    _tell_differences(args, settings, folder)
    for file, sha256 in settings.lora_sha256.items():
        if Path(file).is_file() and sha256_of(Path(file)) != sha256:
            _LOG.warning("%s has changed since %s was painted with it; pictures will differ", file, args.config)
    return folder


def _tell_differences(args: argparse.Namespace, settings: Settings, folder: Path) -> None:
    """Say where a run that is repeated will come out otherwise."""
    manifest, before = folder / MANIFEST, settings.bundle.get("manifest_sha256")
    if before and manifest.is_file() and sha256_of(manifest) != before:
        _LOG.warning("%s was painted from another bundle than %s is now; pictures will differ", args.config, folder)
    if settings.engine and settings.engine != args.engine:
        _LOG.info(
            "%s was painted with --engine %s; this run uses %s, whose pictures may differ slightly",
            args.config,
            settings.engine,
            args.engine,
        )


def _see_start(args: argparse.Namespace, settings: Settings) -> None:
    """See that a run that is repeated starts from the same pictures.

    Raises:
        PromptError: It starts from none.
    """
    now = pictures_given(args)
    if settings.start and not now:
        raise PromptError(
            f"{args.config} started from {', '.join(settings.start)}: give the same with --init-image, --mask-image, "
            "--condition, --reference and --prompt-embeds"
        )
    if settings.start:
        known = set(settings.start.values())
        for name, path in now.items():
            if path.is_file() and sha256_of(path) not in known:
                _LOG.warning("%s is none of the pictures that %s started from; pictures will differ", name, args.config)


def _refuse_contradictions(parser: Parser, args: argparse.Namespace, prompts: Sequence[str]) -> None:
    alone = (args.prompt, args.save_latents, args.preview, *pictures_given(args))
    if bool(args.prompts) != bool(args.outdir) or (args.prompts and any(alone)):
        parser.error(
            "--prompts FILE.jsonl and --outdir DIR go together, and without PROMPT, --save-latents, --preview, "
            "--init-image, --mask-image, --condition, --reference and --prompt-embeds"
        )
    if args.dump_inputs and args.checker:
        parser.error("--dump-inputs writes latents that no --checker has seen; leave out one of the two")
    if args.ray and not args.prompts:
        parser.error("--ray is for prompt files; give --prompts FILE.jsonl and --outdir DIR")
    if not (prompts or args.prompts):
        parser.error(f'nothing to paint: give a prompt, as in {parser.prog} "a red circle", or --prompts FILE.jsonl')


def _single_words(prompts: Sequence[str]) -> int:
    return sum(bool(prompt.strip()) and not any(map(str.isspace, prompt)) for prompt in prompts)


def _refuse_forgotten_quotes(parser: Parser, prompts: Sequence[str]) -> None:
    """`lssgen run a red star` would paint three pictures."""
    if (words := _single_words(prompts)) > MOST_WORDS:
        sentence = " ".join(prompts)
        quoted = shlex.join([sentence]) if set(sentence) & set("\"'\\$`!") else f'"{sentence}"'
        parser.error(
            f"{len(prompts)} prompts were given, {words} of them a single word; put quotes around a prompt: "
            f"{parser.prog} {quoted}. To paint single words, write them to a file for --prompts"
        )


if __name__ == "__main__":
    sys.exit(main())
