"""A bundle, ready to paint: prompts in, pictures out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Unpack
from warnings import warn

import numpy as np
from PIL import Image

from lssgen import paths
from lssgen.bundle import Bundle, read_bundle, verify
from lssgen.engines.base import Backend, Engine
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import BundleError, EngineError, PromptError
from lssgen.plan import Plan
from lssgen.ports import Array
from lssgen.runtime.noise import check_seed
from lssgen.runtime.options import STRENGTH, Options, Request, request_from_options
from lssgen.runtime.origin import Start, origin_of, pasted, start_from
from lssgen.runtime.results import BatchTimes, OnProgress, Painting, Picture, Progress, Result, StepCounter
from lssgen.runtime.sampler import Batch, Floats, sample
from lssgen.runtime.text import PromptWarning, TextEncoder
from lssgen.runtime.workspace import Geometry, ToldSizes, Workspace, stack_each


@dataclass(frozen=True, slots=True)
class _Order:
    """One picture to paint, how many tokens its prompts take, and (C, h, w) noise of its stages if that is given."""

    prompt: str
    seed: int
    lengths: tuple[int, ...]
    noise: tuple[Floats, ...] = ()


def _silent(progress: Progress) -> None:
    del progress


class Pipeline:
    """A bundle on a backend.

    Graphs are loaded when they are first needed and stay loaded; `close`, or leaving a `with` block, frees them.
    Buffers stay too, for the next run of the same shape. Not for several threads at a time.

    Args:
        bundle: From `lssgen.bundle.read_bundle`.
        backend: From `lssgen.engines.registry.open_backend`.

    Raises:
        BundleError: A tokenizer cannot be read.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self._engines: dict[str, Engine] = {}
        self._text = TextEncoder(bundle, backend, self._graph)
        self._workspace: Workspace | None = None

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        init_image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        noise: Sequence[Floats] = (),
        on_step: OnProgress = _silent,
        **options: Unpack[Options],
    ) -> Result:
        """Paint `num_images` pictures of every prompt.

        Args:
            prompt: One or several.
            init_image: Start from this picture instead of from noise alone; `strength` says how far to go from it.
            mask_image: Paint only where this picture, of the same size, is white.
            noise: Standard normal numbers that the stages begin with in place of those of the seeds, smallest stage
                first, (pictures, C, h, w) float32 each. Noise that a solver or a transition through pixels draws is
                not among them.
            on_step: Told about every step that is done; what it raises stops the run.
            options: See `Options`.

        Raises:
            PlanError: The run cannot be carried out as asked; nothing was loaded.
            PromptError: A prompt, a picture or the noise cannot be used.
            EngineError: A graph cannot be loaded or run, or gave NaN.
        """
        parts = self.paint(
            prompt, init_image=init_image, mask_image=mask_image, noise=noise, on_step=on_step, **options
        )
        return Result.joined(list(parts))

    def plan(self, **options: Unpack[Options]) -> Plan:
        """The run as numbers; loads nothing.

        Raises:
            PlanError: The run cannot be carried out as asked.
        """
        return request_from_options(self.bundle, options).plan

    def paint(
        self,
        prompt: str | Sequence[str],
        *,
        init_image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        noise: Sequence[Floats] = (),
        on_step: OnProgress = _silent,
        **options: Unpack[Options],
    ) -> Painting:
        """As calling the pipeline, but hands out every batch as soon as it is painted.

        What is wrong with the arguments is raised by this call, not when the first batch is asked for.
        """
        if init_image is not None and mask_image is None:
            options = {"strength": STRENGTH, **options}
        request = request_from_options(self.bundle, options)
        start = self._start(request, init_image, mask_image)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise PromptError("no prompt was given; give at least one, which may be empty")
        if request.negative_prompt and "negative" not in request.branches:
            warn("the negative prompt has no effect: guidance is off in this run", PromptWarning, stacklevel=2)
        check_seed(request.seed + len(prompts) * request.num_images - 1)
        orders = _with_noise(self._orders(prompts, request), noise, request.plan, self.bundle.manifest.facts.channels)
        batches = list(_batches(orders, request.batch))
        counter = StepCounter(request.plan, len(batches), on_step)
        return Painting(request, (self._batch(request, start, orders, counter) for orders in batches))

    def close(self) -> None:
        """Free everything; the pipeline loads its graphs again if it is used again."""
        self._workspace = None
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _graph(self, name: str) -> Engine:
        if name not in self._engines:
            manifest = self.bundle.manifest
            if name not in manifest.graphs:
                raise BundleError(f"bundle {self.bundle.folder} has no graph {name!r}; export the model again")
            try:
                path = self.bundle.path(manifest.graphs[name].file)
                self._engines[name] = self.backend.load(path, name=f"{manifest.facts.name}/{name}")
            except EngineError:
                verify(self.bundle)  # raises if the reason is a file that is not what was exported
                raise
        return self._engines[name]

    def _orders(self, prompts: Sequence[str], request: Request) -> list[_Order]:
        negative = self._negative(request)
        orders: list[_Order] = []
        for prompt in prompts:
            lengths = self._text.lengths(prompt)
            if negative is not None:  # all branches go through the network together, so they fill up to the longest
                lengths = tuple(map(max, lengths, self._text.lengths(negative)))
            for _ in range(request.num_images):
                orders.append(_Order(prompt, request.seed + len(orders), lengths))
        return orders

    def _negative(self, request: Request) -> str | None:
        """The text that the negative branch hears; None where there is no such branch, or where it hears zeros."""
        if "negative" not in request.branches:
            return None
        if request.negative_prompt is None and self.bundle.manifest.empty_negative == "zeros":
            return None
        return request.negative_prompt or ""

    def _start(self, request: Request, picture: Image.Image | None, mask: Image.Image | None) -> Start | None:
        if picture is None and (mask is not None or request.plan_options.strength < 1):
            raise PromptError("strength and mask_image belong to a picture to start from; give init_image")
        if picture is not None and "encode" not in self.bundle.manifest.graphs:
            raise PromptError(f"bundle {self.bundle.folder} has no graph 'encode', so no run can start from a picture")
        return None if picture is None else start_from(request.plan, picture, mask)

    def _batch(self, request: Request, start: Start | None, orders: Sequence[_Order], counter: StepCounter) -> Result:
        began = perf_counter()
        for name in (*_graphs_of(request.plan), *(["encode"] if start else [])):
            self._graph(name)
        loaded = perf_counter()
        text = self._conditioning(request, orders)
        encoded = perf_counter()
        workspace = self._fitting_workspace(request, text["positive"])
        batch = Batch(
            seeds=tuple(order.seed for order in orders),
            text=text,
            guidance_scale=request.plan_options.guidance_scale,
            guidance_rescale=request.guidance_rescale,
            origin=origin_of(workspace, request.plan, start) if start else None,
            noise=tuple(np.stack(stage) for stage in zip(*(order.noise for order in orders), strict=True)),
        )
        latents, stages = sample(workspace, request.plan, batch, history=self.bundle.manifest.history, on_step=counter)
        sampled = perf_counter()
        pictures = tuple(
            Picture(
                image=Image.fromarray(pasted(workspace.decode(latent), start) if start else workspace.decode(latent)),
                latent=latent,
                prompt=order.prompt,
                negative_prompt=request.negative_prompt,
                seed=order.seed,
            )
            for order, latent in zip(orders, latents, strict=True)
        )
        ended = perf_counter()
        times = BatchTimes(
            pictures=len(orders),
            load=loaded - began,
            text=encoded - loaded,
            stages=tuple(stages),
            decode=ended - sampled,
            total=ended - began,
        )
        return Result(pictures=pictures, request=request, times=(times,))

    def _conditioning(self, request: Request, orders: Sequence[_Order]) -> dict[str, Mapping[str, Array]]:
        """(batch, ...) text conditioning, by branch and port."""
        text: dict[str, Mapping[str, Array]] = {
            "positive": stack_each([self._text.encode(order.prompt, order.lengths) for order in orders])
        }
        negative = self._negative(request)
        if negative is not None:
            text["negative"] = stack_each([self._text.encode(negative, order.lengths) for order in orders])
        elif "negative" in request.branches:
            text["negative"] = {port: np.zeros_like(value) for port, value in text["positive"].items()}
        return text

    def _fitting_workspace(self, request: Request, text: Mapping[str, Array]) -> Workspace:
        """The workspace of the last run if it fits, else a new one in its place."""
        plan = request.plan
        geometry = Geometry(
            sizes=tuple((stage.height, stage.width) for stage in plan.stages),
            batch=len(next(iter(text.values()))),
            text=tuple((port, value.shape[1:]) for port, value in text.items()),
            scaling_space=plan.scaling_space,
            told=ToldSizes(
                original=request.original_size, target=request.target_size, crop=request.crops_coords_top_left
            ),
        )
        if self._workspace is None or self._workspace.geometry != geometry:
            self._workspace = None  # free the old one first
            self._workspace = Workspace(self.bundle.manifest, self.backend, self._graph, geometry)
        return self._workspace


def load(
    bundle: str | Path,
    *,
    engine: str = "onnxruntime",
    threads: int = 0,
    device_id: int = 0,
    low_memory: bool = False,
) -> Pipeline:
    """Open a bundle for painting.

    Args:
        bundle: Its folder, or the name of one below LSSGEN_HOME/bundles.
        engine: Where to run, see `lssgen.engines.registry.ENGINES`.
        threads: CPU threads; 0 leaves it to the engine.
        device_id: Which GPU, for engines that run on one.
        low_memory: Load text encoders, network and VAE in turn, and free each.

    Raises:
        BundleError: No bundle there, or a damaged one.
        BackendError: The engine is unknown, or its library, driver or device is missing.
    """
    options = EngineOptions(threads=threads, device_id=device_id, low_memory=low_memory)
    return Pipeline(read_bundle(find_bundle(bundle)), open_backend(engine, options))


def find_bundle(bundle: str | Path) -> Path:
    """The bundle's folder: the path itself, or a folder of that name among the user's bundles."""
    named = paths.bundles() / bundle
    return named if not Path(bundle).exists() and named.exists() else Path(bundle)


def _graphs_of(plan: Plan) -> tuple[str, ...]:
    """Names of the graphs that a run of the plan calls."""
    between = (f"transition_{plan.scaling_space}",) if len(plan.stages) > 1 else ()
    return ("text", "step", *between, "decode")


def _with_noise(orders: list[_Order], noise: Sequence[Floats], plan: Plan, channels: int) -> list[_Order]:
    """Give every picture its part of the noise, if there is any.

    Raises:
        PromptError: It does not fit the run's stages and pictures.
    """
    if not len(noise):
        return orders
    given = [np.asarray(stage, np.float32) for stage in noise]
    wanted = [(len(orders), channels, stage.height, stage.width) for stage in plan.stages]
    if [stage.shape for stage in given] != wanted or not all(np.isfinite(stage).all() for stage in given):
        came = ", ".join(str(stage.shape) for stage in given)
        raise PromptError(
            f"noise of the shapes {came} was given; this run takes finite numbers of the shapes "
            f"{', '.join(map(str, wanted))}, one array a stage"
        )
    return [replace(order, noise=tuple(stage[index] for stage in given)) for index, order in enumerate(orders)]


def _batches(orders: Sequence[_Order], most: int) -> Iterator[Sequence[_Order]]:
    """Runs of at most so many neighbours whose prompts take equally many tokens."""
    begin = 0
    for end in range(1, len(orders) + 1):
        if end == len(orders) or end - begin == most or orders[end].lengths != orders[begin].lengths:
            yield orders[begin:end]
            begin = end
