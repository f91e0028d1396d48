"""lssgen train-upsampler: train a latent upsampler for any AutoencoderKL or AutoencoderTiny on a folder of pictures."""

import argparse
import sys
from collections.abc import Sequence

from lssgen.commands.common import run
from lssgen.commands.flags import add_flags, add_pair, given, pair
from lssgen.commands.parser import Parser
from lssgen.errors import TrainingError
from lssgen.training.config import PairRecipe, TrainConfig, TrainJob

EXAMPLES = (
    "--vae stabilityai/sdxl-vae --images ~/pictures --output sdxl-upsampler",
    "--vae bundles/my-vae --images ~/pictures --crop 320x192 --downscale box --steps 2000",
)
_CROP = "--crop"


def build_parser(prog: str = "lssgen-train-upsampler") -> Parser:
    pairs = PairRecipe()
    parser = Parser("train-upsampler", prog, "--vae VAE --images DIR [OPTION ...]", EXAMPLES)
    parser.description = (
        f"{parser.description}\nStop it with Ctrl-C and run it again with the same options: it goes on where it was."
    )
    add_flags(parser, TrainJob)
    crop = f"{pairs.width}x{pairs.height}"
    add_pair(parser, _CROP, "size of the high-resolution crop", group="what it learns from", unset=crop)
    for record in (PairRecipe, TrainConfig):
        add_flags(parser, record)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-train-upsampler") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if {"shape", "start_from"} <= set(vars(args)):
        parser.error("--shape and --start-from exclude each other: an upsampler that is there has its shape")
    return run(prog, lambda: _train(prog, job_from_args(args)))


def job_from_args(args: argparse.Namespace) -> TrainJob:
    """What the flags ask for.

    Raises:
        TrainingError: A value is out of its range.
    """
    pairs = PairRecipe(**pair(args, _CROP, "width", "height"), **given(args, PairRecipe))
    return TrainJob(config=TrainConfig(pairs=pairs, **given(args, TrainConfig)), **given(args, TrainJob))


def _train(prog: str, job: TrainJob) -> None:
    try:
        from lssgen.training.job import train_upsampler  # torch takes seconds to load
        from lssgen.training.report import markdown_table
    except ImportError as error:
        raise TrainingError(f'{prog} needs {error.name}; install it with pip install "lssgen[export]"') from error

    result = train_upsampler(job, lambda sentence: print(sentence, file=sys.stderr, flush=True))
    # Before it is refused: the numbers say why.
    print(markdown_table(result.validation))
    print(f"upsampler, report and contact sheet: {result.folder}")
    if result.refused:
        raise TrainingError(
            f"the upsampler is not installed: {result.refused}; train it longer, at another --learning-rate or on more "
            "pictures; to install it all the same, run the same command with --install-anyway"
        )


if __name__ == "__main__":
    sys.exit(main())
