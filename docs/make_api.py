"""Write api.md, the reference of what a program may import, from the docstrings.

    python docs/make_api.py

Reads the source as text, so that it needs none of the libraries that the source imports.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("api.md")

INTRODUCTION = """\
# API reference

Made from the docstrings by `docs/make_api.py`. How the pieces are used together, and which rules threads keep, is told
in [python.md](python.md). What is not on this page may change without notice. Errors that are raised on purpose are
all `lssgen.errors.LssgenError`; every entry says which.
"""

CONTENTS = {
    "Painting": (
        "lssgen:load",
        "lssgen.runtime:Pipeline",
        "lssgen.runtime:Options",
        "lssgen.lora.asked:Chosen",
        "lssgen.lora.asked:Scales",
        "lssgen.runtime.options:Request",
        "lssgen.verification:Verify",
        "lssgen.runtime:Progress",
        "lssgen.runtime:Preview",
        "lssgen.runtime:Result",
        "lssgen.runtime:Picture",
        "lssgen.runtime.results:Painting",
        "lssgen.runtime.results:BatchTimes",
        "lssgen.runtime.sampler:StageTimes",
        "lssgen.runtime.embeds:Embeds",
        "lssgen.runtime.embeds:write_embeds",
        "lssgen.runtime.checking:Checker",
        "lssgen.runtime.checking:Verdict",
        "lssgen.runtime.checking:Watermark",
        "lssgen.runtime.checking:Checked",
        "lssgen.runtime.checking:Guard",
        "lssgen.runtime.pictures:write_picture",
        "lssgen.runtime.record:parameters_of",
    ),
    "Planning": (
        "lssgen.plan:make_plan",
        "lssgen.plan:PlanOptions",
        "lssgen.plan:SkipLayerGuidance",
        "lssgen.plan:SchedulerChoice",
        "lssgen.plan:ScalingSpace",
        "lssgen.plan.options:StartRule",
        "lssgen.plan.options:Injection",
        "lssgen.plan.options:PndmStart",
        "lssgen.plan.scheduler_choice:TimestepSpacing",
        "lssgen.plan.scheduler_choice:SigmaSchedule",
        "lssgen.plan:Plan",
        "lssgen.plan:Stage",
        "lssgen.plan:Step",
        "lssgen.plan:ModelFacts",
        "lssgen.plan:Defaults",
        "lssgen.plan:predicted_speedup",
        "lssgen.plan:solver_names",
    ),
    "Serving": (
        "lssgen.serving.server:Server",
        "lssgen.serving.options:ServerOptions",
        "lssgen.serving.api:ImageRequest",
        "lssgen.serving.ticket:Ticket",
        "lssgen.serving.api:Queued",
        "lssgen.serving.api:Progress",
        "lssgen.serving.api:Preview",
        "lssgen.serving.api:PictureDone",
        "lssgen.serving.api:Done",
        "lssgen.serving.api:Failed",
        "lssgen.serving.api:Answer",
        "lssgen.serving.api:Timings",
        "lssgen.serving.api:Span",
        "lssgen.serving.api:Usage",
        "lssgen.serving.api:Quote",
        "lssgen.serving.status:ModelInfo",
        "lssgen.serving.status:Stats",
        "lssgen.serving.status:LaneStats",
        "lssgen.serving.status:Observation",
        "lssgen.serving.api:RefusalCode",
        "lssgen.serving.api:State",
        "lssgen.serving.status:Phase",
        "lssgen.serving.options:Rank",
        "lssgen.lora.styled:styled",
    ),
    "Bundles": (
        "lssgen.bundle:read_bundle",
        "lssgen.bundle:verify",
        "lssgen.bundle:Bundle",
        "lssgen.demo:write_demo_bundle",
        "lssgen.manifest:Manifest",
        "lssgen.manifest:Graph",
        "lssgen.manifest:Tokens",
        "lssgen.manifest:Upsampler",
        "lssgen.manifest:Source",
        "lssgen.manifest:Probe",
        "lssgen.manifest:Precision",
        "lssgen.manifest:Runs",
        "lssgen.manifest:Quantity",
    ),
    "Engines": (
        "lssgen.engines.registry:open_backend",
        "lssgen.engines.registry:options_class",
        "lssgen.engines.registry:ENGINES",
        "lssgen.engines.options:OrtOptions",
        "lssgen.engines.options:OrtCudaOptions",
        "lssgen.engines.trt.options:TrtOptions",
        "lssgen.engines.trt.options:BuildOptions",
        "lssgen.engines.trt.options:Bounds",
        "lssgen.engines.demand:Demand",
        "lssgen.engines.base:Backend",
        "lssgen.engines.base:Engines",
        "lssgen.engines.base:Engine",
        "lssgen.engines.base:Buffer",
        "lssgen.engines.base:Mark",
    ),
    "Exporting and training": (
        "lssgen.export.export:export",
        "lssgen.export.config:ExportConfig",
        "lssgen.lora.asked:Lora",
        "lssgen.export.config:Embedding",
        "lssgen.export.config:Probing",
        "lssgen.training.job:train_upsampler",
        "lssgen.training.job:TrainResult",
        "lssgen.training.config:TrainJob",
        "lssgen.training.config:TrainConfig",
        "lssgen.training.config:PairRecipe",
    ),
    "Quantising": (
        "lssgen.calibration.ranges:measure_ranges",
        "lssgen.calibration.ranges:RangesJob",
        "lssgen.calibration.statistics:read_statistics",
        "lssgen.calibration.quantise:quantise",
        "lssgen.calibration.quantise:QuantiseJob",
        "lssgen.calibration.gates:Gate",
        "lssgen.calibration.quality:Runs",
        "lssgen.calibration.quality:Bound",
        "lssgen.calibration.adopt:adopt",
        "lssgen.manifest:Quantisation",
        "lssgen.manifest:Measured",
        "lssgen.manifest:NumberFormat",
    ),
    "Testing": (
        "lssgen.testing:fake_bundle",
        "lssgen.testing:FakeModel",
        "lssgen.testing:FakeBackend",
        "lssgen.testing:Network",
        "lssgen.testing:step_network",
        "lssgen.testing:transition_network",
    ),
    "Errors": ("lssgen.errors:",),
}
"""Entries of the page by heading: a module, a colon and a name in it, or nothing for the module itself."""

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
WIDTH = 100


def page() -> str:
    """The page as it should be."""
    parts = [INTRODUCTION]
    for heading, entries in CONTENTS.items():
        parts.append(f"## {heading}\n")
        parts += ["".join(_entry(*entry.split(":"))) for entry in entries]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def _entry(module: str, name: str) -> Iterator[str]:
    tree = _source(module)
    if not name:
        yield f"{_text(tree)}\n"
        return
    tree, node = _found(tree, module, name)
    match node:
        case ast.Assign():
            yield f"### `{module}.{name}`\n\n"
            yield _code(ast.unparse(node))
            yield f"{_markdown(_words_below(tree, node))}\n"
        case ast.FunctionDef():
            yield f"### `{module}.{name}`\n\n"
            yield _code(_signature(node))
            yield f"{_text(node)}\n"
        case ast.ClassDef():
            yield f"### `{module}.{name}`\n\n"
            yield _code(_fields(node))
            yield f"{_text(node)}\n"
            for method in _methods(node):
                yield f"\n#### `{name}{_called(method)}`\n\n"
                yield _code(_signature(method, of=name))
                yield f"{_text(method)}\n"
        case _:
            raise LookupError(f"{module}.{name} is neither a function nor a class nor a constant")


def _source(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _found(tree: ast.Module, module: str, name: str) -> tuple[ast.Module, ast.stmt]:
    """Where a name is made, and how: here, or in the module that it is imported from."""
    for node in tree.body:
        if name in (getattr(node, "name", None), _assigned(node)):
            return tree, node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return _found(_source(node.module), node.module, name)
    raise LookupError(f"{module} has no {name}; bring CONTENTS in {__file__} up to date")


def _assigned(node: ast.stmt) -> str | None:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return None


def _words_below(tree: ast.Module, node: ast.stmt) -> str:
    """The docstring of a constant, which stands below it; empty: it has none."""
    below = tree.body[tree.body.index(node) + 1]
    match below:
        case ast.Expr(value=ast.Constant(value=str(words))):
            return words
        case _:
            return ""


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    found = [one for one in node.body if isinstance(one, ast.FunctionDef) and ast.get_docstring(one)]
    return [one for one in found if not one.name.startswith("_") or one.name == "__call__"]


def _called(method: ast.FunctionDef) -> str:
    kinds = {ast.unparse(decorator) for decorator in method.decorator_list}
    return "(...)" if method.name == "__call__" else f".{method.name}" + ("" if "property" in kinds else "(...)")


def _signature(node: ast.FunctionDef, of: str = "") -> str:
    """A function as one would write it, without `self`."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    words = [_argument(*pair) for pair in zip(positional, defaults, strict=True) if pair[0].arg not in ("self", "cls")]
    if arguments.vararg:
        words.append(f"*{_argument(arguments.vararg)}")
    elif arguments.kwonlyargs:
        words.append("*")
    words += [_argument(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        words.append(f"**{_argument(arguments.kwarg)}")
    gives = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    name = of.lower() if node.name == "__call__" else node.name
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        return f"{name}{gives.replace(' ->', ':')}"
    whole = f"{name}({', '.join(words)}){gives}"
    return whole if len(whole) <= WIDTH else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){gives}"


def _argument(argument: ast.arg, default: ast.expr | None = None) -> str:
    hint = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{hint}" + (f" = {ast.unparse(default)}" if default else "")


def _fields(node: ast.ClassDef) -> str:
    """What a class is made from: its fields, or the arguments of its `__init__`."""
    made = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if made:
        return _signature(made).replace("__init__", node.name, 1).removesuffix(" -> None")
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
    lines = [f"    {ast.unparse(one.target)}: {ast.unparse(one.annotation)}{_default(one.value)}" for one in fields]
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    return "\n".join([f"class {node.name}" + (f"({bases})" if bases else "") + (":" if lines else ""), *lines])


def _default(value: ast.expr | None) -> str:
    """A field's default; of `choice(default, help=...)` and `field(default_factory=...)`, what they come to."""
    match value:
        case None:
            return ""
        case ast.Call(func=ast.Name(id="choice")):
            return f" = {ast.unparse(value.args[0])}" if value.args else ""
        case ast.Call(func=ast.Name(id="field")):
            default = {word.arg: ast.unparse(word.value) for word in value.keywords}
            made = default.get("default_factory")
            return f" = {made}()" if made else f" = {default['default']}"
        case _:
            return f" = {ast.unparse(value)}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n\n"


def _text(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return _markdown(ast.get_docstring(node) or "")


def _markdown(docstring: str) -> str:
    """Sections become lists; indented blocks stay as they are."""
    lines = inspect.cleandoc(docstring).splitlines()
    parts: list[str] = []
    plain: list[str] = []
    while lines:
        line = lines.pop(0)
        if line.removesuffix(":") in SECTIONS and line.endswith(":"):
            inside = _taken(lines)
            parts += [*_paragraphs(plain), f"**{line.removesuffix(':')}**\n\n{_list(inside)}"]
            plain = []
        else:
            plain.append(line)
    return "\n\n".join(parts + _paragraphs(plain)) + "\n"


def _taken(lines: list[str]) -> list[str]:
    """The indented lines that come next, taken out of `lines`."""
    found: list[str] = []
    while lines and (lines[0].startswith(" ") or not lines[0]):
        found.append(lines.pop(0)[4:])
    return found


def _list(lines: Sequence[str]) -> str:
    """Entries "name: text", the text's further lines indented, as a list."""
    entries: list[str] = []
    for line in filter(None, lines):
        name = re.match(r"(\*{0,2}\w[\w, *]*): (.*)", line)
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        elif name:
            entries.append(f"- `{name[1]}`: {name[2]}")
        elif entries and not line.startswith("("):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(f"- {line}")
    return "\n".join(entries)


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Lines between empty ones, joined; indented ones as they are."""
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    return [block if block.startswith(" ") else " ".join(block.split("\n")) for block in blocks if block.strip()]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
