"""What `make demo` does: paint one prompt twice with the demo model, and see whether the pictures are right.

    python examples/demo.py --outdir out

Leaves two pictures in --outdir: one painted by LSSGen in two stages, one in a single stage. The bundle is that of
`lssgen run`, made at the first use of either.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np

import lssgen
from lssgen.commands.common import run
from lssgen.commands.demo import demo_bundle
from lssgen.runtime import Options, Result
from lssgen.runtime.pictures import write_picture
from lssgen.runtime.record import parameters_of

sys.path.insert(0, str(Path(__file__).parent / "demo_model"))

from score import score

PROMPT = "a red star above a blue circle on a white background"
ROUNDS = 3


RUNS: dict[str, Options] = {"two stages": {}, "one stage": {"start_sigma": 1.0}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("out"))
    args = parser.parse_args()
    right: list[bool] = []
    failed = run("demo", lambda: right.extend(_paint(args.prompt, args.seed, args.outdir)))
    return failed or (0 if all(right) else 1)


def _paint(prompt: str, seed: int, outdir: Path) -> list[bool]:
    """Paint and judge; says what came out, and returns whether each picture is right."""
    print(f"painting {(1 + ROUNDS) * len(RUNS)} pictures of 256 x 256 px ...", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    results: dict[str, Result] = {}
    with lssgen.load(demo_bundle("demo")) as pipeline:
        for _ in range(1 + ROUNDS):  # in turn, so that both meet the same machine; the first round warms up
            for name, options in RUNS.items():
                results[name] = pipeline(prompt, seed=seed, **options)
                seconds[name].append(results[name].times[0].total)

    print(f"\nprompt      {prompt}")
    right: list[bool] = []
    for name, result in results.items():
        path = outdir / f"demo-{name.replace(' ', '-')}.png"
        (picture,) = result.pictures
        write_picture(picture.image, path, parameters_of(picture, result.request))
        verdict = score(np.asarray(picture.image), prompt)
        right.append(verdict.right)
        took = median(seconds[name][1:])
        print(f"{name:<12}{took:.2f} s, {'wholly right' if verdict.right else f'wrong: {verdict}'}, {path}")
    ratio = median(one / two for one, two in zip(seconds["one stage"][1:], seconds["two stages"][1:], strict=True))
    print(f"speed-up    {ratio:.2f}")
    return right


if __name__ == "__main__":
    sys.exit(main())
