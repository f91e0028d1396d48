"""What `make demo` does: export the demo model, paint one prompt twice, and see whether the picture is right.

    python examples/demo.py --outdir out

Leaves the bundle and two pictures in --outdir: one painted by LSSGen in two stages, one in a single stage.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np

import lssgen
from lssgen.commands import export
from lssgen.runtime import Result
from lssgen.runtime.pictures import write_picture
from lssgen.runtime.record import parameters_of

sys.path.insert(0, str(Path(__file__).parent / "demo_model"))

from score import score

PROMPT = "a red star above a blue circle on a white background"
ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("out"))
    args = parser.parse_args()
    bundle = args.outdir / "demo-bundle"
    if failed := export.main(["--model", "demo", "--output", str(bundle)]):
        return failed

    runs = {"two stages": {}, "one stage": {"start_sigma": 1.0}}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Result] = {}
    with lssgen.load(bundle) as pipeline:
        for _ in range(1 + ROUNDS):  # in turn, so that both meet the same machine; the first round warms up
            for name, options in runs.items():
                results[name] = pipeline(args.prompt, seed=args.seed, **options)
                seconds[name].append(results[name].times[0].total)

    print(f"\nprompt      {args.prompt}")
    right = True
    for name, result in results.items():
        path = args.outdir / f"demo-{name.replace(' ', '-')}.png"
        (picture,) = result.pictures
        write_picture(picture.image, path, parameters_of(picture, result.request))
        verdict = score(np.asarray(picture.image), args.prompt)
        right &= verdict.right
        took = median(seconds[name][1:])
        print(f"{name:<12}{took:.2f} s, {'wholly right' if verdict.right else f'wrong: {verdict}'}, {path}")
    ratio = median(one / two for one, two in zip(seconds["one stage"][1:], seconds["two stages"][1:], strict=True))
    print(f"speed-up    {ratio:.2f}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
