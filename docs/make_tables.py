"""Write docs/families.md: what is supported, from the records, and what proves it, from the names of the tests.

python docs/make_tables.py
"""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

from lssgen.models.aliases import ALIASES, Alias
from lssgen.models.families import FAMILIES, Family
from lssgen.plan.sampling import sampling_of, solver_names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"

HEAD = """# Model families

This page is written by `docs/make_tables.py` from the records in `lssgen/models/` and the tests in `tests/oracles/`.

Any checkpoint of these families in the diffusers layout can be exported: by alias, by hub id, or as a local folder.

An export reads the checkpoint's own files; what is written here of those with a name is for plans, which download
nothing. Of FLUX.2's five it is from memory and from diffusers' class defaults: layers, widths, licences and whether the
hub asks for their acceptance could not be compared with the hub.
"""

PRECISIONS = """
## Precision

| | inside the network | always float32 |
|---|---|---|
| `fp32` | float32 | everything |
| `fp16` | float16, but a VAE that says `force_upcast` (SDXL), and every graph whose probe fails, in float32 | \
latents, guidance, the solver's update, sines and cosines of times, sizes and positions, T5's layers that overflow |
| `bf16` | bfloat16 | latents, guidance, the solver's update, sines and cosines of times, sizes and positions |

The published FLUX.1, FLUX.2, CogView4, Z-Image and Qwen-Image checkpoints, T5, Qwen3 and Qwen2.5-VL were trained in \
bfloat16; prefer `bf16` for them. In fp16 diffusers cuts off what Qwen-Image's streams grow to beyond 65504, and so do \
the graphs.
"""

UNFIT = """
## Looked at, and not carried

Read in diffusers 0.42.1; each needs more than a record and a wrapper.

| pipeline | what does not fit |
|---|---|
| Lumina2Pipeline | its system prompt stands before the prompt and not before the negative one, while a bundle has \
one text around both. Besides: guidance is renormalised along the rows of the latent, Gemma 2 caps its scores, and the \
schedule's shift counts the latent's 16 channels for tokens |
| SanaPipeline | the same: instructions before the prompt only, of which the first token and the last 299 are kept. \
Its autoencoder (AutoencoderDC) has cells of 32 px and no posterior, and no upsampler is known for its latents |
| Krea2Pipeline | fits by its parts: hidden states of twelve layers side by side, Qwen-Image's autoencoder, guidance \
counted as in Z-Image. Not written; there, a prompt that is too long is cut before the template's end |
"""


def page() -> str:
    """The whole page."""
    parts = (
        HEAD,
        "## Families\n",
        _families(),
        "## Checkpoints with a name\n",
        _aliases(),
        PRECISIONS,
        _proofs(),
        UNFIT,
    )
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _families() -> str:
    rows = [
        (
            f"`{family.name}`",
            family.title,
            ", ".join(family.pipelines),
            ", ".join(_solvers(family)),
            ", ".join(family.scaling_spaces),
            "a share of the steps" if family.start == "fraction" else "a timestep / 1000",
            _optional(family),
        )
        for family in FAMILIES.values()
    ]
    head = ("family", "models", "diffusers pipelines", "solvers", "transitions", "`start_sigma` is", "can do without")
    return _table(head, rows)


def _solvers(family: Family) -> Iterable[str]:
    """Of all checkpoints of the family; the first is the first checkpoint's own."""
    named = [alias.facts() for alias in _named(family) if not alias.local]
    own = [sampling_of(facts).name for facts in named[:1]]
    return dict.fromkeys((*own, *(solver for facts in named for solver in solver_names(facts))))


def _optional(family: Family) -> str:
    return ", ".join(name for name in family.optional if name.startswith("text")) or "-"


def _named(family: Family) -> list[Alias]:
    return [alias for alias in ALIASES.values() if alias.family == family.name]


def _aliases() -> str:
    rows = [
        (
            f"`{alias.name}`",
            "in this package" if alias.local else _link(alias.source),
            ", ".join(f"{part} of {_link(source)}" for part, source in alias.swaps.items()) or "-",
            alias.licence + (", gated" if alias.gated else ""),
            "-" if alias.local else sampling_of(alias.facts()).name,
            f"{alias.defaults.height} x {alias.defaults.width}",
            str(alias.defaults.min_resolution),
            str(alias.defaults.num_inference_steps),
            f"{alias.defaults.guidance_scale:g}",
            "yes" if alias.defaults.shorten else "no",
        )
        for alias in ALIASES.values()
    ]
    head = (
        "alias",
        "checkpoint",
        "with",
        "licence",
        "solver",
        "px",
        "smallest stage px",
        "steps",
        "guidance",
        "`shorten`",
    )
    return _table(head, rows)


def _link(repository: str) -> str:
    return f"[{repository}](https://huggingface.co/{repository})"


def _proofs() -> str:
    """Every oracle test of a family as the sentence that its name is."""
    parts = ["## What is compared with diffusers\n"]
    titles = {family.name: family.title for family in FAMILIES.values()}
    titles |= {
        "control_sd": "Control pictures and inpainting checkpoints of Stable Diffusion 1.x and 2.x",
        "control_families": "Those of the other families",
    }
    for name, title in {**titles, "precision": "All families", "tokenizers": "Their tokenizers"}.items():
        path = ROOT / "tests" / "oracles" / f"test_{name}.py"
        parts.append(f"**{title}** (`{path.relative_to(ROOT)}`)\n")
        parts.append("\n".join(f"- {sentence}" for sentence in _sentences(path)) + "\n")
    return "\n".join(parts)


def _sentences(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            slow = any("slow" in ast.unparse(mark) for mark in node.decorator_list)
            found.append(node.name.removeprefix("test_").replace("_", " ") + (" (`make test-all`)" if slow else ""))
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
