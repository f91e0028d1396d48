"""The face: `lssgen COMMAND ...`, and `lssgen-COMMAND`. Each command is a module of `lssgen.commands`, imported when it
is chosen, and when the process listens to signals.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import lssgen
from lssgen.commands import COMMANDS
from lssgen.commands.process import as_process


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its name and what follows; None: what the process was started with, which is then for this alone.

    Returns:
        Exit status: 0 if all went well, 1 after a failure, 2 where the command line makes no sense, and 128 and the
        signal's number where it was told to stop: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    if argv is not None:
        return _chosen(list(argv))
    words = sys.argv[1:]
    # Known before the command runs, for messages about signals that come while it is still imported.
    name = f"lssgen {words[0]}" if words and words[0] in COMMANDS else "lssgen"
    return as_process(name, lambda: _chosen(words))


def run() -> int:
    """The script lssgen-run."""
    return _script("run")


def encode() -> int:
    """The script lssgen-encode."""
    return _script("encode")


def plan() -> int:
    """The script lssgen-plan."""
    return _script("plan")


def export() -> int:
    """The script lssgen-export."""
    return _script("export")


def build() -> int:
    """The script lssgen-build."""
    return _script("build")


def calibrate() -> int:
    """The script lssgen-calibrate."""
    return _script("calibrate")


def verify() -> int:
    """The script lssgen-verify."""
    return _script("verify")


def serve() -> int:
    """The script lssgen-serve."""
    return _script("serve")


def export_triton() -> int:
    """The script lssgen-export-triton."""
    return _script("export-triton")


def bench() -> int:
    """The script lssgen-bench."""
    return _script("bench")


def train_upsampler() -> int:
    """The script lssgen-train-upsampler."""
    return _script("train-upsampler")


def _script(name: str) -> int:
    prog = f"lssgen-{name}"
    return as_process(prog, lambda: _command(name, sys.argv[1:], prog))


def _command(name: str, words: list[str], prog: str) -> int:
    return import_module(f"lssgen.commands.{name.replace('-', '_')}").main(words, prog=prog)


def _chosen(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in COMMANDS:
        return _command(name, rest, f"lssgen {name}")
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"lssgen {lssgen.__version__}")
        return 0
    # Not at the top: only a mistake needs it, and every start would pay for it.
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)};"
    print(f"lssgen: {name} is not a command; {advice} see lssgen --help", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lssgen COMMAND ...",
            "",
            "Text to image in stages, from ONNX graphs and TensorRT engines.",
            "",
            "commands:",
            *lines,
            "",
            "lssgen COMMAND --help explains a command; lssgen-COMMAND is the same. --version prints the version.",
            "",
            "examples:",
            '  lssgen run "a red star above a blue circle" -o star.png',
            "  lssgen export --model sd3 --resolutions 512,1024 --precision fp16",
        ]
    )
