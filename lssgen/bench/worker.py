"""A process that paints when it is told to: one side of a comparison.

Run as a file (`python -P worker.py`), with the code that is to be measured on the path: it uses nothing but
`lssgen.load`, so that it can drive an older or newer checkout than the one it came from. A JSON object a line comes
in, one goes out:

    {"do": "open", "bundle": DIR, "engine": NAME, "words": {...}}  ->  {"load_s": 0.4, "describe": {...}}
    {"do": "paint", "prompt": TEXT, "options": {...}}              ->  {"seconds": 0.31, "pictures": 1, "sha256": "..."}

What goes wrong is answered as {"error": "..."}. The process ends with its input.
"""

import hashlib
import json
import os
import sys
from time import perf_counter
from typing import Any


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    state: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"open": _open, "paint": _paint}[asked.pop("do")](state, **asked)
        except Exception as error:  # whatever it is, the other side of the pipe shall say it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


def _open(state: dict[str, Any], bundle: str, engine: str, words: dict[str, Any]) -> dict[str, Any]:
    began = perf_counter()
    import lssgen

    state["pipeline"] = lssgen.load(bundle, **({"engine": engine} if engine else {}), **words)
    described = {name: str(value) for name, value in state["pipeline"].backend.describe().items()}
    return {"load_s": perf_counter() - began, "describe": described, "code": lssgen.__file__}


def _paint(state: dict[str, Any], prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    began = perf_counter()
    result = state["pipeline"](prompt, **options)
    seconds = perf_counter() - began
    pictures = hashlib.sha256(b"".join(image.tobytes() for image in result.images)).hexdigest()
    return {"seconds": seconds, "pictures": len(result.images), "sha256": pictures}


if __name__ == "__main__":
    main()
