"""What the tests of calibration run: two prompts of the demo model, eight steps or more a stage."""

from pathlib import Path

from lssgen.bundle import Bundle
from lssgen.calibration.ranges import RangesJob
from lssgen.engines.registry import open_backend
from lssgen.runtime.options import Options

PROMPTS = ("a red star above a blue circle on a white background", "a small green triangle on a black background")
RUNS: Options = {"num_inference_steps": 16}


def ranges_job(bundle: Bundle, output: Path, prompts: tuple[str, ...] = PROMPTS) -> RangesJob:
    backend = open_backend("onnxruntime", threads=1)
    return RangesJob(bundle=bundle, backend=backend, prompts=prompts, output=output, options=RUNS)
