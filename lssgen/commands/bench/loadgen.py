"""lssgen bench loadgen: MLPerf's LoadGen in front of a bundle, a server in this process, or one that answers HTTP."""

import argparse
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from lssgen.bench.cases import wordings
from lssgen.bench.loadgen import Answered, Load, Send, StillRunningError, at_once, run_loadgen
from lssgen.bench.records import see_place
from lssgen.bench.remote import Site, fields_of
from lssgen.commands.bench.shared import add_bundle, bundle_of, opener, run_options, watched
from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.commands.process import end_at_once
from lssgen.engines.demand import Size
from lssgen.errors import BenchError, LssgenError
from lssgen.runtime import Options, Pipeline
from lssgen.serving.api import Done, Event, Failed, ImageRequest
from lssgen.serving.options import ServerOptions
from lssgen.serving.server import Server

EXAMPLES = (
    "demo --set height=128 --set width=128",
    "--url http://127.0.0.1:8000 --scenario Server --qps 2 --latency-ms 3000",
)

_LOG = logging.getLogger("lssgen")

SHOWN = (
    "Result is", "90.0th percentile latency (ns)", "90.00 percentile latency (ns)", "99.00 percentile latency (ns)",
    "* Early stopping 90.0th percentile estimate", "Samples per second", "Scheduled samples per second",
    "Completed samples per second", "Mean latency (ns)",
)  # fmt: skip


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "[BUNDLE | --url URL] [OPTION ...]", EXAMPLES)
    add_bundle(parser)
    parser.set_defaults(bundle="")  # so that one that is given beside --url is noticed
    add_flags(parser, Load)
    parser.add_argument(
        "--url", default="", metavar="URL", help="ask a server of OpenAI's Images API instead of opening a bundle; its "
        "key is read from OPENAI_API_KEY; default: none",
    )  # fmt: skip
    parser.add_argument("--model", default="", metavar="NAME", help="model of that server; default: its first")
    parser.add_argument(
        "--outdir", type=Path, default=Path("loadgen"), metavar="DIR", help="LoadGen's logs; default: %(default)s"
    )
    return parser


def work(args: argparse.Namespace) -> int:
    """Let LoadGen measure, and tell.

    Raises:
        BenchError: The load, or what is asked, makes no sense, or queries went wrong.
    """
    load = Load(**given(args, Load))
    if args.model and not args.url:
        raise BenchError("--model is a model of the server that --url names; a bundle is named without it")
    if args.url and args.bundle:
        raise BenchError(f"give a bundle or --url, not both; {args.bundle} as a model of the server is --model")
    args.bundle = args.bundle or "demo"
    if run_options(args).get("num_images", 1) != 1:
        raise BenchError("a query of LoadGen is one picture; leave out --set num_images")
    see_place(args.outdir, folder=True)
    with _sender(args, load, wordings(args.prompt, load.count)) as send, watched(args, _LOG.info) as watch:
        try:
            said = run_loadgen(send, load, args.outdir, lambda done: watch.at(load.scenario, done, load.count))
        except StillRunningError:
            end_at_once()
            raise
    print("\n".join(f"{name}: {said[name]}" for name in SHOWN if name in said))
    return 0 if said.get("Result is") == "VALID" else 1


@contextmanager
def _sender(args: argparse.Namespace, load: Load, words: Sequence[str]) -> Generator[Send]:
    """What paints, warm."""
    options = run_options(args)
    if args.url:
        fields = {**({"model": args.model} if args.model else {}), **fields_of(options)}
        with Site(args.url, fields) as site:
            site.paint(words[0])
            yield lambda index, answered: site.send(words[index], answered)
        return
    bundle, opened = bundle_of(args, "lssgen bench loadgen"), opener(build_parser("lssgen bench loadgen"), args)
    if load.scenario == "Server":
        size = (options.get("height"), options.get("width"))
        ready = ServerOptions(sizes=() if None in size else (cast(Size, size),))
        with Server(bundle.folder, engine=opened(), verify="never", options=ready) as server:
            server.paint(words[0], **options)
            yield sender_of(server, words, cast(Options, options))
        return
    with Pipeline(bundle, opened()) as pipeline:
        pipeline(words[0], **options)
        yield at_once(lambda index: pipeline(words[index], **options))


def sender_of(server: Server, words: Sequence[str], options: Options) -> Send:
    """A server in this process as LoadGen asks it: requests are taken at once and answered when they are done."""

    def send(index: int, answered: Answered) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Done):
                answered(None)
            elif isinstance(event, Failed):
                answered(event.error)

        try:
            server.submit(ImageRequest(prompt=words[index], options=options), hear)
        except LssgenError as error:  # refused: nobody will be told of it
            answered(error)

    return send
