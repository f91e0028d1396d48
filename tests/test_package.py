"""What one sees of the package first."""

import ast
import inspect
import subprocess
import sys

import lssgen
from lssgen.runtime import Options, pipeline


def test_load_is_found_by_completion_and_is_the_pipelines() -> None:
    assert {"load", "__version__"} <= set(dir(lssgen))
    assert set(lssgen.__all__) <= set(dir(lssgen))
    assert lssgen.load is pipeline.load


def test_help_explains_how_to_use_it_and_lists_load() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import lssgen; help(lssgen)"], capture_output=True, text=True, check=True
    )
    assert 'with lssgen.load("bundles/sd3") as pipeline:' in done.stdout
    assert "load(bundle: " in done.stdout


def test_the_example_in_the_help_is_python_and_its_words_exist() -> None:
    text = inspect.getdoc(lssgen) or ""
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    words = {keyword.arg for call in calls for keyword in call.keywords}
    assert words == {"num_inference_steps", "start_sigma", "seed"}
    assert words <= set(Options.__annotations__)
