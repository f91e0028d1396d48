"""The prompts that a calibration runs."""

from pathlib import Path

from lssgen.errors import PromptError
from lssgen.files import read_regular
from lssgen.jsons import MOST_BYTES
from lssgen.runtime.prompt_file import read_prompt_file
from lssgen.runtime.text import see_prompt

SHIPPED = Path(__file__).parent / "prompts.txt"
"""Prompts of ours: people, animals, places, things, text, styles, close and wide, bright and dark."""


def read_prompts(path: Path = SHIPPED, most: int | None = None) -> tuple[str, ...]:
    """Prompts of a file: one a line, or of a .jsonl file as `lssgen run --prompt-file` takes them.

    Args:
        path: The file, in UTF-8.
        most: Number of prompts to take, from the first; None: all.

    Raises:
        PromptError: It cannot be read, holds no prompts, or holds what is not text.
    """
    if path.suffix == ".jsonl":
        return tuple(line.prompt for line in read_prompt_file(path)[0])[:most]
    try:
        lines = read_regular(path, MOST_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise PromptError(
            f"prompts {path} cannot be read ({error.strerror}); give a file with one prompt a line"
        ) from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"prompts {path} are not text in UTF-8 (byte {error.start}); give a file with one prompt a line"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())[:most]
    if not prompts:
        raise PromptError(f"prompts {path} hold no prompt; give a file with one prompt a line")
    for number, prompt in enumerate(prompts, 1):
        try:
            see_prompt(prompt)
        except PromptError as error:
            raise PromptError(f"prompt {number} of {path}: {error}") from error
    return prompts
