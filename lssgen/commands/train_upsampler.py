"""lssgen-train-upsampler: train a latent upsampler for any AutoencoderKL or AutoencoderTiny on a folder of pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lssgen.commands.common import run
from lssgen.training.config import Downscale, ImageLossName, PairRecipe, Target, TrainConfig, TrainJob

COMMAND = "lssgen-train-upsampler"


def build_parser() -> argparse.ArgumentParser:
    job, config, pairs = TrainJob(vae="", images=Path()), TrainConfig(), PairRecipe()
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Train a latent upsampler for a diffusers VAE on a folder of pictures. "
        "Stop it with Ctrl-C and run it again with the same options: it goes on where it was.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    data = parser.add_argument_group("what it learns from")
    data.add_argument("--vae", required=True, help="folder or hub id of a VAE, or of a pipeline with one")
    data.add_argument(
        "--images", required=True, type=Path, help="folder of training pictures, searched with subfolders"
    )
    data.add_argument(
        "--validation", default=job.validation, help="folder of validation pictures; else some are held out"
    )
    data.add_argument("--crop", type=_size, default=(pairs.width, pairs.height), metavar="SIDE|WxH",
                      help="size in pixels of the high-resolution crop")  # fmt: skip
    data.add_argument("--target", choices=get_args(Target), default=pairs.target,
                      help="origin: the crop is the high picture; nearest: the low one, and pixels repeat")  # fmt: skip
    data.add_argument("--downscale", choices=get_args(Downscale), default=pairs.downscale,
                      help="filter that makes the low picture; nearest is the published one")  # fmt: skip
    data.add_argument("--cached-pairs", type=int, default=config.cached_pairs,
                      help="pairs that are encoded once and reused; 0 encodes fresh ones in every step")  # fmt: skip
    data.add_argument("--sample-low", action=argparse.BooleanOptionalAction, default=config.sample_low,
                      help="draw the low latent from the encoder's posterior instead of taking its mean")  # fmt: skip
    data.add_argument("--workers", type=int, default=job.workers, help="processes that read pictures")

    learning = parser.add_argument_group("how it learns")
    learning.add_argument("--steps", type=int, default=config.steps, help="0 only measures the --start-from upsampler")
    learning.add_argument("--batch", type=int, default=config.batch)
    learning.add_argument("--accumulate", type=int, default=config.accumulate, help="batches a step")
    learning.add_argument(
        "--learning-rate", type=float, default=config.learning_rate, help="peak of the one-cycle schedule"
    )
    learning.add_argument("--weight-decay", type=float, default=config.weight_decay)
    learning.add_argument("--clip", type=float, default=config.clip, help="largest gradient norm")
    learning.add_argument(
        "--ema", type=float, default=config.ema, help="decay of the averaged weights, which are the result"
    )
    learning.add_argument("--latent-weight", type=float, default=config.latent_weight)
    learning.add_argument("--image-loss", choices=get_args(ImageLossName), default=config.image_loss,
                          help="loss on the decoded picture; lpips, the published one, needs its weights")  # fmt: skip
    learning.add_argument("--image-weight", type=float, default=config.image_weight)
    learning.add_argument("--seed", type=int, default=config.seed)
    learning.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    start = learning.add_mutually_exclusive_group()
    start.add_argument("--shape", default=job.shape, help="an upsampler's config.json, to train another shape")
    start.add_argument("--start-from", default=job.start_from, help="folder of an upsampler to go on from")

    place = parser.add_argument_group("where")
    place.add_argument("--output", type=Path, default=job.output, help="state, cache, checkpoint and report")
    place.add_argument("--device", default=job.device, help="cpu, cuda, cuda:1, ... or auto")
    place.add_argument("--threads", type=int, default=job.threads, help="CPU threads; 0 leaves it to torch")
    place.add_argument("--save-every", type=int, default=job.save_every, help="steps between saved states")
    place.add_argument("--install", action=argparse.BooleanOptionalAction, default=job.install,
                       help="put the result where lssgen-export finds it for this VAE")  # fmt: skip
    place.add_argument("--licence", default=job.licence, help="licence of the result, for lssgen.json")
    place.add_argument("--trained-on", default=job.trained_on, help="what the pictures are, for lssgen.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run(COMMAND, lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    from lssgen.training.job import train_upsampler
    from lssgen.training.report import markdown_table

    width, height = args.crop
    config = TrainConfig(
        pairs=PairRecipe(height=height, width=width, target=args.target, downscale=args.downscale),
        cached_pairs=args.cached_pairs,
        sample_low=args.sample_low,
        steps=args.steps,
        batch=args.batch,
        accumulate=args.accumulate,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        clip=args.clip,
        ema=args.ema,
        latent_weight=args.latent_weight,
        image_loss=args.image_loss,
        image_weight=args.image_weight,
        seed=args.seed,
        bf16=args.bf16,
    )
    job = TrainJob(
        vae=args.vae,
        images=args.images,
        validation=args.validation,
        output=args.output,
        config=config,
        shape=args.shape,
        start_from=args.start_from,
        device=args.device,
        threads=args.threads,
        workers=args.workers,
        save_every=args.save_every,
        install=args.install,
        licence=args.licence,
        trained_on=args.trained_on,
    )
    result = train_upsampler(job, lambda sentence: print(sentence, file=sys.stderr))
    print(markdown_table(result.validation))
    print(f"upsampler, report and contact sheet: {result.folder}")


def _size(text: str) -> tuple[int, int]:
    """Width and height from "256" or "256x192"."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
        width, height = sides * 2 if len(sides) == 1 else sides
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side in pixels nor WIDTHxHEIGHT") from error
    return width, height


if __name__ == "__main__":
    sys.exit(main())
