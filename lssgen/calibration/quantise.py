"""A quantised bundle from a bundle: its graphs rewritten, compared, timed, and only then put in its place.

The step's products are quantised as its format says, the text encoders' weights alone. What the gates find goes into
the manifest; a bundle that does not pass leaves nothing behind.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from lssgen.bundle import MANIFEST, Bundle, files, manifest_json
from lssgen.calibration.alone import bundle_in_place_of
from lssgen.calibration.attention import decompose
from lssgen.calibration.formats import CONVOLVING, CPU_ENGINES, Format, format_for, see_targets
from lssgen.calibration.gates import Gate, measured_step, passed_speed
from lssgen.calibration.insertion import Made, Recipe, Rewrite, write_quantised
from lssgen.calibration.numbers import Floats
from lssgen.calibration.products import Product, ends_of, products_of
from lssgen.calibration.quality import Quality, compared
from lssgen.calibration.ranges import see_unquantised
from lssgen.calibration.rehearsal import rehearsed
from lssgen.calibration.search import Choice, Work, choose
from lssgen.calibration.statistics import Ranges, Statistics, see_fits
from lssgen.errors import CalibrationError
from lssgen.manifest import Graph, Manifest, Measured, NumberFormat, Quantisation
from lssgen.models.quantisation import TEXT, sensitivity_of
from lssgen.progress import followed

_LOG = logging.getLogger("lssgen")

SMALL_STEP = "step_small"
"""Name of the step that stays as it is, in small stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseJob:
    """What to make.

    Attributes:
        bundle: A bundle that is not quantised.
        output: Folder of the new one.
        format: Number format.
        engine: Engine that it is made for.
        targets: GPUs that it is made for; empty: any that have the format.
        statistics: Ranges that were seen; None for weights alone.
        source: Hash of the statistics file.
        smoothing: Strength of SmoothQuant; None: that of the format.
        ends: Blocks at either end that stay as they are; None: as many as the family's record says.
        attention: Compute attentions in the format too, where it has them.
        text: Put the text encoders' weights into int8.
        share: Share of the activations that ranges hold.
        from_px: Pixels along the shorter side from which on a stage is quantised; smaller stages stay as they are.
            None: what the search finds, which leaves small ones out only where the bound asks for it.
        gate: Comparisons that it must pass.
    """

    bundle: Bundle
    output: Path
    format: NumberFormat
    engine: str
    targets: tuple[str, ...] = ()
    statistics: Statistics | None = None
    source: str = ""
    smoothing: float | None = None
    ends: int | None = None
    attention: bool = True
    text: bool = True
    share: float = 1.0
    from_px: int | None = None
    gate: Gate = field(default_factory=Gate)


def quantise(job: QuantiseJob) -> Bundle:
    """Make a quantised bundle.

    Raises:
        CalibrationError: The format, the engine or the statistics do not fit; the bundle is quantised already; the
            output's place is taken; or what comes out does not pass a gate.
        BuildError: A target has no products in the format; says which have.
        OSError: It cannot be written.
    """
    form = format_for(job.format, job.engine)
    see_targets(job.format, job.engine, job.targets)
    _see_precision(job)
    see_unquantised(job.bundle, ir.load(job.bundle.path(job.bundle.manifest.graphs["step"].file)))
    if form.activations:
        if job.statistics is None:
            raise CalibrationError(
                f"{job.format} needs the ranges of activations: run lssgen calibrate ranges, and give its file with "
                "--statistics"
            )
        see_fits(job.statistics, job.bundle)
    with bundle_in_place_of(job.output, job.bundle) as draft, followed(_LOG.info) as follower:
        manifest = _Making(job, form, draft, follower.at).made()
        (draft / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(job.output, manifest)


def _see_precision(job: QuantiseJob) -> None:
    """Raise CalibrationError where an engine of CPUs would get half-precision graphs, which it computes in float32."""
    precision = job.bundle.manifest.graphs["step"].precision
    if job.engine in CPU_ENGINES and precision != "fp32":
        raise CalibrationError(
            f"engine {job.engine} has fast products of codes in fp32 graphs only, and bundle {job.bundle.folder} is in "
            f"{precision}; export the model with --precision fp32, and calibrate that"
        )


class _Making:
    """One bundle that is being made in a draft folder."""

    def __init__(self, job: QuantiseJob, form: Format, draft: Path, hear: Callable[[float, str], object]) -> None:
        self._job = job
        self._form = form
        self._draft = draft
        self._hear = hear
        self._old = job.bundle.manifest
        self._ends: frozenset[str] = frozenset()
        self._snr: Mapping[str, float] = {}
        self._warned = False

    def made(self) -> Manifest:
        """All of it, past its gates."""
        self._copy()
        manifest = self._with_text(self._old)
        manifest = self._searched(manifest) if self._is_compared else self._with_step(manifest, Choice(self._from_px))
        self._tidy(manifest)
        return passed_speed(self._job.bundle, Bundle(self._draft, manifest), self._job.gate)

    @property
    def _from_px(self) -> int:
        return self._job.from_px or 0

    @property
    def _is_compared(self) -> bool:
        return self._job.gate.runs is not None and self._job.gate.backend is not None

    def _copy(self) -> None:
        """What stays as it is: the files of all other graphs, and the tokenizers."""
        changed = {"step", "text"} if self._job.text else {"step"}
        # By what stays, and not by what goes: a data file may be that of several graphs.
        stays = [graph for name, graph in self._old.graphs.items() if name not in changed]
        self._take(name for graph in stays for name in _files_of(graph))
        self._take(tokens.file for tokens in self._old.tokenizers)

    def _take(self, names: Iterable[str]) -> None:
        for name in names:
            if not (self._draft / name).exists():
                (self._draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._job.bundle.path(name), self._draft / name)

    def _tidy(self, manifest: Manifest) -> None:
        """Without files of graphs that were tried, and are not in the bundle."""
        named = {self._draft / name for name in files(manifest)}
        for path in list(self._draft.rglob("*")):
            if path.is_file() and path not in named:
                path.unlink()

    def _with_text(self, manifest: Manifest) -> Manifest:
        """The text encoders' weights in int8."""
        if not self._job.text or "text" not in manifest.graphs:
            return manifest
        old = manifest.graphs["text"]
        model = ir.load(self._job.bundle.path(old.file))
        try:
            products = products_of(model, TEXT)
        except CalibrationError:  # encoders of which there is no record stay as they are
            _LOG.info("the text encoders are of a kind that no record knows; they stay in %s", old.precision)
            return self._with_plain_text(manifest)
        made = write_quantised(model, products, Recipe(format="int8-weights"), None, self._draft / "text-int8.onnx")
        about = Quantisation(
            format="int8-weights", engine=self._job.engine, products=_count(products, made), kept=made.kept
        )
        return replace(manifest, graphs={**manifest.graphs, "text": changed(old, made, "text-int8", about)})

    def _with_step(self, manifest: Manifest, choice: Choice) -> Manifest:
        """The step with all products quantised but those at the ends and those that a choice returns."""
        job, old = self._job, self._old.graphs["step"]
        model = ir.load(job.bundle.path(old.file))
        sensitivity = sensitivity_of(self._old.family)
        products = products_of(model, sensitivity)
        self._ends = ends_of(products, sensitivity, job.ends)
        kept = frozenset(product.name for product in products if product.block in self._ends) | choice.returned
        recipe = Recipe(
            format=job.format,
            unsigned=job.engine in CPU_ENGINES,
            kept=kept,
            smoothing=self._form.smoothing if job.smoothing is None else job.smoothing,
            convolutions=job.engine in CONVOLVING,
            share=job.share,
        )
        stem = f"step-{job.format}"
        made = write_quantised(
            model,
            products,
            recipe,
            self._ranges(choice.from_px),
            self._draft / f"{stem}.onnx",
            rewrite=self._rewrite(),
            hear=self._hear,
        )
        if not _count(products, made):
            raise CalibrationError(
                f"none of the step's {len(products)} products would be in {job.format}: all are in blocks that stay as "
                "they are, or do not fit the format; keep fewer blocks (--keep-blocks)"
            )
        self._snr = made.snr_db
        about = Quantisation(
            format=job.format,
            engine=job.engine,
            products=_count(products, made),
            kept=made.kept,
            attention=made.attention,
            smoothing=recipe.smoothing if made.smoothed else 0.0,
            statistics=job.source,
        )
        manifest = replace(manifest, graphs={**manifest.graphs, "step": changed(old, made, stem, about)})
        return self._with_small_step(manifest, choice.from_px)

    def _with_small_step(self, manifest: Manifest, from_px: int) -> Manifest:
        """With the step as it was for stages that are smaller, if there are any."""
        small = [size for size in self._old.resolutions if min(size) < from_px]
        if not small:
            return manifest
        old, cell = self._old.graphs["step"], self._old.facts.cell_px
        self._take(_files_of(old))
        cells = max(height // cell * (width // cell) for height, width in small)
        return replace(manifest, graphs={**manifest.graphs, SMALL_STEP: old}, small_step=SMALL_STEP, small_cells=cells)

    def _ranges(self, from_px: int) -> Ranges | None:
        """Ranges of the stages that the graph serves."""
        if self._job.statistics is None or not self._form.activations:
            return None
        cell, about = self._old.facts.cell_px, self._job.statistics.about
        served = tuple(index for index, size in enumerate(about.stages) if cell * min(size) >= from_px)
        if not served:
            raise CalibrationError(
                f"no stage of the statistics is at least {from_px} px; lower --from-size, or calibrate larger stages"
            )
        return Ranges(self._job.statistics, served)

    def _rewrite(self) -> Rewrite | None:
        if not (self._form.attention and self._job.attention):
            return None
        if self._old.graphs["step"].precision == "fp32" and not self._warned:
            self._warned = True
            _LOG.warning(
                "the bundle is in fp32, and TensorRT fuses attention in %s only where the rest is in fp16 or bf16: it "
                "will refuse to build this; export with --precision fp16, or leave attention out (--no-attention)",
                self._job.format,
            )
        return lambda model, ranges: decompose(model, ranges, self._ends)

    def _searched(self, manifest: Manifest) -> Manifest:
        """With as much back in high precision as the bound asks for."""
        gate = self._job.gate
        assert gate.runs is not None
        assert gate.backend is not None
        wanted = gate.runs.latents(self._job.bundle, gate.backend)
        current, tried = manifest, Choice(-1)
        known: dict[Choice, tuple[Quality, Mapping[str, float]]] = {}

        def attempt(choice: Choice) -> tuple[Quality, Mapping[str, float]]:
            nonlocal current, tried
            if choice not in known:
                current, tried = self._with_step(manifest, choice), choice
                known[choice] = self._latents(current, wanted), self._snr
                _LOG.info("%s: %s", _said(choice), known[choice][0])
            return known[choice]

        work = self._work(wanted[0])
        whole, _ = attempt(Choice(next(iter(work.stages))))
        if not whole.reaches(gate.bound) and self._is_text_too_much(manifest, wanted):
            manifest, tried = self._with_plain_text(manifest), Choice(-1)
            known.clear()
        choice, quality = choose(work, attempt, gate.bound)
        if choice != tried:
            current = self._with_step(manifest, choice)
        measured = Measured(
            psnr_db=_rounded(quality.psnr_db, 2),
            cosine=_rounded(quality.cosine, 5),
            bound_db=gate.bound.psnr_db,
            bound_cosine=gate.bound.cosine,
        )
        return measured_step(current, measured)

    def _is_text_too_much(self, manifest: Manifest, wanted: Sequence[Sequence[Floats]]) -> bool:
        """Whether text encoders' weights alone take more than half of the bound; no product of the step helps then."""
        if manifest.graphs.get("text") == self._old.graphs.get("text"):
            return False
        step = self._old.graphs["step"]
        self._take(_files_of(step))
        found = self._latents(replace(manifest, graphs={**manifest.graphs, "step": step}), wanted)
        too_much = not found.reaches(self._job.gate.bound.halved)
        if too_much:
            _LOG.info("the text encoders' weights in int8 alone: %s; they stay in %s", found, step.precision)
        return too_much

    def _with_plain_text(self, manifest: Manifest) -> Manifest:
        """With the text encoders as they were."""
        text = self._old.graphs["text"]
        self._take(_files_of(text))
        return replace(manifest, graphs={**manifest.graphs, "text": text})

    def _work(self, painted: Sequence[Floats]) -> Work:
        """Where the multiplications are of runs that have painted such latents, one after every stage."""
        products = products_of(
            ir.load(self._job.bundle.path(self._old.graphs["step"].file)), sensitivity_of(self._old.family)
        )
        whole = sum(product.rows * product.columns for product in products)
        shares = {product.name: product.rows * product.columns / whole for product in products}
        return Work(stages=self._stage_shares(painted), products=shares)

    def _stage_shares(self, painted: Sequence[Floats]) -> Mapping[int, float]:
        """Share of a run from a stage on, as far as tokens and steps tell. A user who names a size leaves no choice."""
        if self._job.from_px is not None:
            return {self._job.from_px: 1.0}
        steps = self._steps()
        sizes = sorted((latent.shape[-2:] for latent in painted), key=min)
        work = [height * width * steps.get((height, width), 1) for height, width in sizes]
        found = {0: 1.0}
        for index, size in enumerate(sizes[1:], 1):
            found[min(size) * self._old.facts.cell_px] = sum(work[index:]) / sum(work)
        return found

    def _steps(self) -> Mapping[tuple[int, ...], int]:
        about = self._job.statistics.about if self._job.statistics else None
        return dict(zip(about.stages, about.steps, strict=True)) if about else {}

    def _latents(self, manifest: Manifest, wanted: Sequence[Sequence[Floats]]) -> Quality:
        gate = self._job.gate
        assert gate.runs is not None
        assert gate.backend is not None
        # Where an engine does not open, the bundle's files are looked at before the reason is told.
        (self._draft / MANIFEST).write_bytes(manifest_json(manifest))
        with rehearsed(Bundle(self._draft, manifest), gate.backend) as bundle:
            return compared(wanted, gate.runs.latents(bundle, gate.backend))


def _count(products: list[Product], made: Made) -> int:
    return sum(product.name not in made.kept for product in products)


def _said(choice: Choice) -> str:
    where = f" from {choice.from_px} px on" if choice.from_px else ""
    return f"all products quantised{where} but {len(choice.returned)}"


def _files_of(graph: Graph) -> tuple[str, ...]:
    return (graph.file, *graph.data)


def _rounded(numbers: tuple[float, ...], digits: int) -> tuple[float, ...]:
    return tuple(round(number, digits) for number in numbers)


def changed(old: Graph, made: Made, stem: str, about: Quantisation) -> Graph:
    """A graph's entry with other files; comparisons with torch were of the old ones."""
    files = sorted(made.sha256)
    key = hashlib.sha256("".join([old.key, stem, *(made.sha256[name] for name in files)]).encode()).hexdigest()
    data = tuple(name for name in files if name.endswith(".data"))
    return replace(
        old, file=f"{stem}.onnx", data=data, sha256=made.sha256, key=key[: len(old.key)], probes=(), quantisation=about
    )
