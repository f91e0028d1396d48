"""A bundle, ready to paint: prompts in, pictures out."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, get_ident
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Unpack

import numpy as np
from PIL import Image

from lssgen import paths
from lssgen.bundle import Bundle, read_bundle
from lssgen.bundle import verify as verify_bundle
from lssgen.engines.base import Backend, Engines
from lssgen.engines.demand import Demand
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import BackendError, EngineError, NonFiniteError, PromptError
from lssgen.lora.asked import Chosen, RunLora, lora_texts
from lssgen.manifest import LoraFactors
from lssgen.plan import Plan
from lssgen.ports import Array
from lssgen.runtime.advice import advised
from lssgen.runtime.asking import asked_run, unheard
from lssgen.runtime.canvases import Canvas, in_batches, with_noise
from lssgen.runtime.checking import Checker, Guard, Watermark
from lssgen.runtime.conditioning import Conditioner
from lssgen.runtime.conditions import CONTROL, Pictures, condition_values
from lssgen.runtime.demand import demand_of
from lssgen.runtime.embeds import NEGATIVE, Embeds, embeds_of, heard_from, prompts_with
from lssgen.runtime.kinds import see_kinds
from lssgen.runtime.loras import Adapter, LoraBank
from lssgen.runtime.noise import check_seed
from lssgen.runtime.open_engines import OpenEngines
from lssgen.runtime.options import Asked, Options, Request, refuse_too_many, request_from_options
from lssgen.runtime.origin import Start, origin_of, pasted
from lssgen.runtime.references import read_references, see_references
from lssgen.runtime.results import (
    BatchTimes,
    OnPreview,
    OnProgress,
    Painting,
    Picture,
    Preview,
    Progress,
    Result,
    StepCounter,
)
from lssgen.runtime.sampler import Batch, Floats, Listeners, sample
from lssgen.runtime.text import TextEncoder, prompts_of, warn
from lssgen.runtime.workspace import Geometry, Lent, ToldSizes, Workspace, stack_each
from lssgen.runtime.workspaces import Workspaces
from lssgen.verification import Verify, see_whole

_LOG = logging.getLogger("lssgen")

MOST_NOTES = 256
"""Notes that are remembered as said: a pipeline that lives long may be asked for any number of budgets."""

KEEP_BYTES = 2**30
"""Memory of the buffers that a pipeline keeps for later runs, beyond those of the run at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What all batches of a run share."""

    request: Request
    start: Start | None
    conditions: Pictures
    references: tuple[Image.Image, ...]
    demand: Demand
    counter: StepCounter
    on_preview: OnPreview | None
    loras: tuple[Adapter, ...]


def _silent(progress: Progress) -> None:
    del progress


class Pipeline:
    """A bundle on a backend.

    Engines are opened when they are first needed and stay; `close`, or leaving a `with` block, frees them. Buffers
    stay too, for later runs of the same shapes.

    Threads may share a pipeline: their runs take turns, batch by batch. A call from inside `on_step` or `on_preview`
    is refused, since the run that it interrupts has the buffers.

    Args:
        bundle: Bundle from `lssgen.bundle.read_bundle`.
        backend: Backend from `lssgen.engines.registry.open_backend`.
        batches: Numbers of pictures that engines are compiled for whatever a run asks for, so that runs share them.
        keep_bytes: Memory of buffers to keep for later runs; those that were not used for longest go first.
        guard: Hooks that every picture passes before it is given away; None: there are none.

    Raises:
        BundleError: A tokenizer cannot be read.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        batches: Sequence[int] = (),
        keep_bytes: int = KEEP_BYTES,
        guard: Guard | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self._batches = frozenset(batches)
        self._guard = guard or Guard()
        self._open = OpenEngines(bundle, backend)
        self._text = TextEncoder(bundle, backend)
        self._conditioner = Conditioner(bundle.manifest, self._text)
        self._bank = LoraBank(bundle, backend)
        self._loras: tuple[str, ...] = ()
        self._workspaces = Workspaces(self._workspace, keep_bytes)
        self._lock = Lock()
        self._painter: int | None = None
        self._told: set[str] = set()

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Mapping[str, Array] | str | Path | None = None,
        init_image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        control_image: Image.Image | None = None,
        conditions: Pictures = MappingProxyType({}),
        references: Sequence[Image.Image] = (),
        noise: Sequence[Floats] = (),
        on_step: OnProgress = _silent,
        on_preview: OnPreview | None = None,
        **asked: Unpack[Asked],
    ) -> Result:
        """Paint `num_images` pictures of every prompt.

        Args:
            prompt: One or several; beside embeddings only for the record, and None where these say it.
            prompt_embeds: Embeddings in place of what the text encoder makes of prompts: a safetensors file, or arrays
                by diffusers' names, each with an axis of prompts in front; see `lssgen.runtime.embeds`.
            init_image: Start from this picture instead of from noise alone; `strength` says how far to go from it.
            mask_image: Paint only where this picture, of the same size, is white.
            control_image: Picture that steers the run, for bundles with a ControlNet, in the run's shape; how strongly
                and when say `controlnet_conditioning_scale`, `control_guidance_start` and `control_guidance_end`.
            conditions: Other pictures that the network takes as inputs, by the manifest's names.
            references: Pictures that an editing model sees beside the one it paints, each at its own size.
            noise: Standard normal numbers that the stages begin with in place of those of the seeds, smallest stage
                first, (pictures, C, h, w) float32 each. Noise that a solver or a transition through pixels draws is
                not among them.
            on_step: Told about every step that the device has done; what it raises stops the run within a step.
            on_preview: Given the pictures of every stage but the last, decoded at the stage's own size.
            asked: See `Options`; and `budget_ms` or `speedup`, which choose a schedule, see
                `lssgen.plan.budget.Budget`.

        Raises:
            PlanError: The run cannot be carried out as asked, or not in that time; nothing was loaded.
            PromptError: A prompt, a picture or the noise cannot be used.
            EngineError: A graph cannot be loaded or run, or gave NaN; or the pipeline is called while it calls back.
            CheckError: A checker refuses a picture, or a hook failed.
        """
        parts = self.paint(
            prompt,
            prompt_embeds=prompt_embeds,
            init_image=init_image,
            mask_image=mask_image,
            control_image=control_image,
            conditions=conditions,
            references=references,
            noise=noise,
            on_step=on_step,
            on_preview=on_preview,
            **asked,
        )
        return Result.joined(list(parts))

    def plan(self, **asked: Unpack[Asked]) -> Plan:
        """The run as numbers; loads nothing.

        Raises:
            PlanError: The run cannot be carried out as asked.
        """
        return request_from_options(self.bundle, self.advised(asked)).plan

    def advised(self, asked: Asked) -> Options:
        """The options of a run as `lssgen.runtime.advice` has them. A note is said once in a pipeline's life.

        Raises:
            PlanError: The run cannot be carried out as asked.
        """
        return advised(self.bundle, self.backend, asked, self._tell)

    def _tell(self, level: int, note: str) -> None:
        if note not in self._told:
            if len(self._told) == MOST_NOTES:
                self._told.clear()
            self._told.add(note)
            _LOG.log(level, "%s", note)

    def set_loras(self, loras: Chosen) -> None:
        """Paint all runs from now on that name none with these LoRAs; with none of them for an empty mapping.

        They are put into the bundle's slots at once. Taking them out again leaves nothing of them: the pictures are
        those from before, to the bit.

        Args:
            loras: Strength by file; several strengths, one for each stage. 1 is the LoRA as it was trained.

        Raises:
            PlanError: The bundle has no slots.
            ModelError: A file does not fit, or all together have more ranks than there are.
            EngineError: There is no memory for them; or the pipeline is called while it calls back.
        """
        texts = lora_texts(loras)
        stages = max((len(RunLora.from_text(text).scales) for text in texts), default=1)
        adapters = self._bank.read(texts, stages)
        with self._turn():
            self._bank.place(adapters)
            self._loras = texts

    def prepare(self, *, previews: bool = False, starts: bool = False, **asked: Unpack[Asked]) -> None:
        """Build what is missing and load what runs like this need, so that the first of them does not wait.

        Args:
            previews: True where the runs are given `on_preview`.
            starts: True where they start from pictures.
            asked: As for calling the pipeline.

        Raises:
            PlanError: The run cannot be carried out as asked.
            EngineError: A graph cannot be built or loaded.
        """
        request = request_from_options(self.bundle, self.advised(asked))
        demand = self._demand(request, 1, previews=previews, starts=starts)
        with self._turn():
            self._open.ready(demand)

    def paint(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Mapping[str, Array] | str | Path | None = None,
        init_image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        control_image: Image.Image | None = None,
        conditions: Pictures = MappingProxyType({}),
        references: Sequence[Image.Image] = (),
        noise: Sequence[Floats] = (),
        on_step: OnProgress = _silent,
        on_preview: OnPreview | None = None,
        **asked: Unpack[Asked],
    ) -> Painting:
        """As calling the pipeline, but hands out every batch as soon as it is painted, and keeps none.

        What is wrong with the arguments is raised by this call, not when the first batch is asked for.
        """
        see_kinds(init_image, mask_image, control_image, on_step, on_preview)
        if control_image is not None:
            conditions = {**conditions, CONTROL: control_image}
        options = self.advised(self._with_loras(asked))
        request, start = asked_run(self.bundle, options, init_image, mask_image, conditions)
        embeds = None if prompt_embeds is None else embeds_of(prompt_embeds)
        seen = see_references(self.bundle.manifest, references)
        prompts = self._prompts(prompt, embeds)
        for said in unheard(request, prompts) if embeds is None else ():
            warn(said)
        loras = self._bank.read(request.loras, len(request.plan.stages))
        refuse_too_many(len(prompts) * request.num_images)
        # The last picture's seed: one beyond the largest would be found only when its turn comes.
        check_seed(request.seed + len(prompts) * request.num_images - 1)
        # All prompts are tokenized before anything is painted: one that cannot be read is told now.
        canvases = self._canvases(prompts, request, embeds)
        canvases = with_noise(canvases, noise, request.plan, self.bundle.manifest.facts.channels)
        batches = list(in_batches(canvases, request.batch))
        run = _Run(
            request=request,
            start=start,
            conditions=conditions,
            references=seen,
            demand=self._demand(
                request,
                len(prompts),
                previews=on_preview is not None,
                starts=start is not None or bool(seen),
                encodes=embeds is None,
            ),
            counter=StepCounter(request.plan, len(batches), on_step),
            on_preview=on_preview,
            loras=loras,
        )
        # A generator, made here so that all that is wrong with the arguments has been raised before the first `next`.
        return Painting(request, (self._batch(run, batch) for batch in batches))

    def encode(self, prompt: str | Sequence[str], **asked: Unpack[Asked]) -> Embeds:
        """What a run hears of some prompts, for `prompt_embeds` of another one, on a machine without the encoder.

        Args:
            prompt: One or several, which take equally many tokens.
            asked: As for calling the pipeline; the negative prompt is encoded where guidance moves away from it.

        Raises:
            PromptError: A prompt cannot be read; or one takes more tokens than another.
            PlanError, EngineError: As for calling the pipeline.
        """
        request = request_from_options(self.bundle, self.advised(self._with_loras(asked)))
        prompts = self._prompts(prompt, None)
        loras = self._bank.read(request.loras, len(request.plan.stages))
        lengths = {self._conditioner.lengths(request, one) for one in prompts}
        own, *others = lengths
        if others:
            raise PromptError("these prompts take unequally many tokens: encode each into a file of its own")
        demand = replace(self._demand(request, 1, previews=False, starts=False), graphs=("text",))
        with self._turn():
            engine = self._open.ready(demand)["text"]
            self._bank.place(loras)
            encoding = self._bank.heard(loras)
            heard = [self._conditioner.heard(engine, request, one, own, encoding) for one in prompts]
        found = {name: np.stack([one["positive"][name] for one in heard]) for name in heard[0]["positive"]}
        if self._conditioner.negative(request) is not None:
            found |= {f"{NEGATIVE}{name}": value[None] for name, value in heard[0]["negative"].items()}
        return Embeds(found, tuple(prompts), said={"model": self.bundle.manifest.facts.name})

    def close(self) -> None:
        """Free everything; the pipeline opens its engines again if it is used again."""
        with self._turn():
            self._workspaces.clear()
            self._bank.close()
            self._open.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _turn(self) -> Generator[None]:
        """One caller at a time has the device.

        Raises:
            EngineError: This thread has it already.
        """
        # Looked at without the lock, which this thread would wait for, for ever, if it holds it already.
        if self._painter == get_ident():
            raise EngineError(
                "this pipeline is in the middle of a run, which is calling back; use it when the run has ended, or "
                "load the bundle a second time"
            )
        with self._lock:
            self._painter = get_ident()
            try:
                yield
            finally:
                self._painter = None

    def _prompts(self, prompt: str | Sequence[str] | None, embeds: Embeds | None) -> list[str]:
        """The prompts of a run.

        Raises:
            PromptError: There is none, or nothing that hears it.
        """
        if embeds is not None:
            return prompts_with(embeds, None if prompt is None else prompts_of(prompt))
        if "text" not in self.bundle.manifest.graphs:
            raise PromptError(
                f"bundle {self.bundle.folder} was exported without its text encoder: give embeddings (prompt_embeds, "
                "--prompt-embeds), which lssgen encode makes with a bundle that has it"
            )
        return prompts_of(prompt)

    def _demand(
        self, request: Request, prompts: int, *, previews: bool, starts: bool, encodes: bool | None = None
    ) -> Demand:
        text = "text" in self.bundle.manifest.graphs if encodes is None else encodes
        own = demand_of(self.bundle.manifest, request, prompts=prompts, previews=previews, starts=starts, encodes=text)
        return replace(own, batches=tuple(sorted({*own.batches, *self._batches})))

    def _workspace(self, geometry: Geometry) -> Workspace:
        assert self._open.engines is not None, "a batch opens the engines before it asks for buffers"
        lent: Lent = {LoraFactors: lambda: self._bank.buffer("step")}
        return Workspace(self.bundle.manifest, self.backend, self._open.engines, geometry, lent)

    def _with_loras(self, asked: Asked) -> Asked:
        """A run with the LoRAs that were set, unless it names its own."""
        return asked if asked.get("loras") is not None or not self._loras else {**asked, "loras": self._loras}

    def _placed(self, run: _Run, pictures: int) -> tuple[Floats, ...]:
        """(pictures, ranks) strengths of the slots in every stage, with the run's LoRAs in them."""
        if not self._bank.ranks:
            return ()
        stages = range(len(run.request.plan.stages))
        return tuple(np.tile(self._bank.weights(run.loras, stage), (pictures, 1)) for stage in stages)

    def _canvases(self, prompts: Sequence[str], request: Request, embeds: Embeds | None) -> list[Canvas]:
        given = [None] * len(prompts) if embeds is None else heard_from(self.bundle.manifest, request, embeds)
        canvases: list[Canvas] = []
        for prompt, heard in zip(prompts, given, strict=True):
            lengths = self._conditioner.lengths(request, prompt) if heard is None else ()
            for _ in range(request.num_images):
                canvases.append(Canvas(len(canvases), prompt, request.seed + len(canvases), lengths, heard=heard))
        return canvases

    def _batch(self, run: _Run, canvases: Sequence[Canvas]) -> Result:
        with self._turn():
            began = perf_counter()
            engines = self._open.ready(run.demand)
            loaded = perf_counter()
            self._bank.place(run.loras)  # there is room: `paint` has seen it
            text = self._conditioning(engines, run, canvases)
            encoded = perf_counter()
            geometry = _geometry(run.request, text["positive"], self._reference_tokens(run))
            result = self._painted_with_room(run, canvases, geometry, text)
            self._workspaces.trim()
            (times,) = result.times
            whole = replace(times, load=loaded - began, text=encoded - loaded, total=perf_counter() - began)
            return replace(result, times=(whole,))

    def _painted_with_room(
        self, run: _Run, canvases: Sequence[Canvas], geometry: Geometry, text: Mapping[str, Mapping[str, Array]]
    ) -> Result:
        """A batch. Where the device is full, other sizes' buffers may be in the way: it begins again without them."""
        done = run.counter.done
        try:
            return self._painted(run, canvases, geometry, text)
        except NonFiniteError:
            verify_bundle(self.bundle)  # damaged weights do this too
            raise
        except BackendError:
            if not self._workspaces.keep_only(geometry):
                raise
        # The steps that the first try has told are told again, so that the count ends at the total.
        run.counter.done = done
        return self._painted(run, canvases, geometry, text)

    def _painted(
        self, run: _Run, canvases: Sequence[Canvas], geometry: Geometry, text: Mapping[str, Mapping[str, Array]]
    ) -> Result:
        request, start = run.request, run.start
        workspace = self._workspaces.get(geometry)
        batch = Batch(
            seeds=tuple(canvas.seed for canvas in canvases),
            text=text,
            guidance_scale=request.plan_options.guidance_scale,
            guidance_rescale=request.guidance_rescale,
            pictures=condition_values(workspace, request.plan, run.conditions, start),
            references=self._references(workspace, run.references),
            origin=origin_of(workspace, request.plan, start) if start else None,
            field=request.noise_field,
            loras=self._placed(run, len(canvases)),
            noise=tuple(np.stack(stage) for stage in zip(*(canvas.noise for canvas in canvases), strict=True)),
        )

        prompts = [canvas.prompt for canvas in canvases]

        def show(stage: int, latents: Floats) -> None:
            if run.on_preview is not None:
                images = [Image.fromarray(workspace.decode(stage, latent)) for latent in latents]
                images = tuple(passed.image for passed in self._guard(images, prompts))
                shown = Preview(stage=stage, stages=len(geometry.sizes), first=canvases[0].number, images=images)
                run.on_preview(shown)

        hear = Listeners(step=run.counter, stage=show)
        latents, stages = sample(workspace, request.plan, batch, history=self.bundle.manifest.history, hear=hear)
        sampled = perf_counter()
        painted = [workspace.decode(len(stages) - 1, latent) for latent in latents]
        images = [Image.fromarray(pasted(pixels, start) if start else pixels) for pixels in painted]
        negative = request.negative_prompt
        pictures = tuple(
            Picture.of(passed, latent, prompt=canvas.prompt, negative_prompt=negative, seed=canvas.seed)
            for canvas, latent, passed in zip(canvases, latents, self._guard(images, prompts), strict=True)
        )
        decode = perf_counter() - sampled
        times = BatchTimes(pictures=len(canvases), load=0.0, text=0.0, stages=tuple(stages), decode=decode, total=0.0)
        return Result(pictures=pictures, request=request, times=(times,))

    def _reference_tokens(self, run: _Run) -> int:
        rules, cell = self.bundle.manifest.references, self.bundle.manifest.facts.cell_px
        if rules is None:
            return 0
        side = rules.patch * cell
        return sum((picture.height // side) * (picture.width // side) for picture in run.references)

    def _references(self, workspace: Workspace, pictures: Sequence[Image.Image]) -> tuple[Array, Array] | None:
        rules = self.bundle.manifest.references
        if rules is None or not pictures:
            return None
        seen = read_references(workspace, rules, pictures)
        return seen.tokens, seen.places

    def _conditioning(self, engines: Engines, run: _Run, canvases: Sequence[Canvas]) -> dict[str, Mapping[str, Array]]:
        """(batch, ...) text conditioning, by branch and port."""
        loras, hear = self._bank.heard(run.loras), self._conditioner.heard
        each = [
            canvas.heard or hear(engines["text"], run.request, canvas.prompt, canvas.lengths, loras)
            for canvas in canvases
        ]
        return {branch: stack_each([one[branch] for one in each]) for branch in each[0]}


def load(
    bundle: str | Path,
    *,
    engine: str = "",
    batches: Sequence[int] = (),
    verify: Verify = "once",
    checker: Checker | str | Sequence[Checker | str] | None = None,
    watermark: Watermark | str | None = None,
    **options: Unpack[EngineOptions],
) -> Pipeline:
    """Open a bundle for painting.

    Args:
        bundle: Its folder, or the name of one below LSSGEN_HOME/bundles.
        engine: Where to run, see `lssgen.engines.registry.ENGINES`; empty: LSSGEN_ENGINE, or else "auto", the fastest
            of the CPU's engines that computes rightly.
        batches: Numbers of pictures to compile engines for, whatever the first run paints together.
        verify: When to compare every file with its hash: "always", "once" on a machine, which reads a new or changed
            bundle whole, or "never".
        checker: Looks at every picture, previews too, before it is given away, or several that do; or a name,
            "package.module:function". See `lssgen.runtime.checking`.
        watermark: Changes every picture after that; or its name.
        options: Options of that engine: threads, low_memory, device_id, tf32, engines (folder of compiled ones), refit,
            weight_streaming, max_scratch, allow_unfused; see `lssgen.engines.options` and `lssgen.engines.trt.options`.

    Raises:
        BundleError: No bundle there, or a damaged one.
        BackendError: The engine is unknown, has no such option, or its library, driver or device is missing.
        CheckError: A hook is not there.
    """
    guard = Guard(checker, watermark)
    opened = read_bundle(paths.find_bundle(bundle))
    see_whole(opened, verify)
    return Pipeline(opened, open_backend(engine, **options), batches=batches, guard=guard)


def _geometry(request: Request, text: Mapping[str, Array], references: int) -> Geometry:
    """What a batch needs room for.

    Args:
        request: The run.
        text: (batch, ...) arrays by output of the text graph.
        references: Tokens of reference pictures.
    """
    plan = request.plan
    told = ToldSizes(original=request.original_size, target=request.target_size, crop=request.crops_coords_top_left)
    return Geometry(
        sizes=tuple((stage.height, stage.width) for stage in plan.stages),
        batch=len(next(iter(text.values()))),
        text=tuple((port, value.shape[1:]) for port, value in text.items()),
        scaling_space=plan.scaling_space,
        told=told,
        references=references,
    )
