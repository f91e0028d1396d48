"""The training loop: what it is told, and the steps themselves."""

import copy
import math
import textwrap
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from lssgen.errors import TrainingError
from lssgen.models.nets.upsamplers import AnyUpsampler
from lssgen.progress import Say
from lssgen.training.autoencoder import Autoencoder
from lssgen.training.config import TrainConfig
from lssgen.training.latents import Batch, Pairs
from lssgen.training.losses import ImageLoss, image_loss
from lssgen.training.pictures import to_range
from lssgen.training.state import (
    LOG_FILE,
    STATE_FILE,
    Log,
    Progress,
    forget_steps_after,
    read_state,
    unusable,
    write_state,
)
from lssgen.training.stopping import stop_as_told, stop_signals

WARM_UP, FIRST_RATE, LAST_RATE = 0.05, 1 / 25, 1e-6
"""Share of the training in which the learning rate rises; its share of the peak at the start and at the end."""


class Trainer:
    """Trains an upsampler, step by step, from wherever the output folder's state stands.

    The state holds no random generator: batches and noise follow from the seed and the step's number, so a run that
    was stopped and resumed makes the same upsampler, bit for bit on a CPU, as one that was not.

    Args:
        made_from: What else decides which upsampler comes out, in a few words each: pictures, first weights.
    """

    def __init__(
        self,
        model: AnyUpsampler,
        autoencoder: Autoencoder,
        config: TrainConfig,
        device: torch.device,
        output: Path,
        made_from: Mapping[str, str],
    ) -> None:
        # channels_last takes a quarter off the time of a step (float32, 2 CPU threads)
        self.model = model.to(device).train().requires_grad_(True)
        cast(Any, self.model).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.autoencoder, self.config, self.device, self.output = autoencoder, config, device, output
        self.made_from = dict(made_from)
        self.optimizer = AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda",  # one kernel in place of hundreds
        )
        # All batches have one shape: the fastest kernel is found once.
        torch.backends.cudnn.benchmark = device.type == "cuda"
        self.step = self.saved = 0
        self.seconds = 0.0
        self.undecodable: set[str] = set()
        self.image_loss: ImageLoss = image_loss(
            config.image_loss if config.looks_at_pictures else "none",
            side_px=min(config.pairs.height, config.pairs.width),
            device=device,
        )

    @property
    def done(self) -> float:
        """Share of the training that is behind: of the steps or, where that is more, of the minutes."""
        config = self.config
        of_time = self.seconds / (60 * config.minutes) if config.minutes else 0.0
        return min(1.0, max(self.step / config.steps if config.steps else 1.0, of_time))

    def run(self, pairs: Pairs, *, save_every: int) -> Iterator[Progress]:
        """Train to the last step, saving the state on the way, at the end and when told to stop.

        Told to stop is Ctrl-C, SIGTERM or SIGHUP. The second of them acts at once, in the middle of a step.

        Raises:
            TrainingError: The loss is no longer finite, or the disk is full; the state on disk is from before that.
            KeyboardInterrupt: Told to stop; the state on disk is that of the last whole step.
        """
        config, size = self.config, self.config.batch * self.config.accumulate
        if self.done == 1:
            return
        with writing(self.output):
            log = Log(self.output)
        with stop_signals() as stop, closing(log):
            begun = time.monotonic() - self.seconds
            for batch in pairs.batches(self.step, size):
                for group in self.optimizer.param_groups:
                    group["lr"] = config.learning_rate * one_cycle(self.done)
                progress = self._step(batch)
                self.seconds = time.monotonic() - begun
                self.undecodable.update(map(str, pairs.undecodable))
                with writing(self.output):
                    log.write(progress, self.optimizer.param_groups[0]["lr"])
                yield progress
                last = self.done == 1
                if last or stop or self.step % save_every == 0:
                    with writing(self.output):
                        # Before the state: it must not speak of steps that the log lacks.
                        log.flush()
                        self.save()
                if last:
                    return
                if stop:
                    break
        stop_as_told(stop[0])

    def _step(self, batch: Batch) -> Progress:
        config, noise = self.config, self._noise(batch)
        latent_sum = image_sum = torch.zeros((), device=self.device)
        for start in range(0, len(batch.low), config.batch):
            part = batch.part(start, start + config.batch)
            low = part.low + noise[start : start + config.batch] * part.low_std
            latent, image = self._losses(low, part)
            ((config.latent_weight * latent + config.image_weight * image) / config.accumulate).backward()
            latent_sum, image_sum = latent_sum + latent.detach(), image_sum + image.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        progress = Progress(
            step=self.step + 1, latent=float(latent_sum) / config.accumulate, image=float(image_sum) / config.accumulate
        )
        # Before the optimiser moves: the state that is saved must be from before it.
        if not math.isfinite(progress.latent + progress.image + float(norm)):
            raise TrainingError(
                f"the loss or its gradient is no longer finite in step {progress.step}; try a smaller --learning-rate "
                "(in a new --output), or run without --bf16"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # Little at first, or the random start would stay in the average for thousands of steps.
        keep = min(config.ema, self.step / (self.step + 9))
        with torch.no_grad():
            # One call for all weights: private in torch, and what its own averaging is made of.
            cast(Any, torch)._foreach_lerp_([*self.average.parameters()], [*self.model.parameters()], 1 - keep)
        return progress

    def _losses(self, low: Tensor, part: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            predicted = self.model(low.contiguous(memory_format=torch.channels_last))
            decoded = self.autoencoder.decode(predicted) if self.config.looks_at_pictures else predicted
        latent = F.mse_loss(predicted.float(), part.high)
        target = to_range(part.pictures) if self.config.looks_at_pictures else predicted
        return latent, self.image_loss(decoded.float(), target)

    def _noise(self, batch: Batch) -> Tensor:
        """Noise for the low latents of this step, drawn on the host so that it does not depend on the device."""
        if not self.config.sample_low:
            return torch.zeros_like(batch.low)
        # Seed and step in one number that no two steps of a run share, within the 63 bits that torch takes.
        generator = torch.Generator().manual_seed((self.config.seed << 32) + self.step & 0x7FFF_FFFF_FFFF_FFFF)
        return torch.randn(batch.low.shape, generator=generator).to(self.device)

    def save(self) -> None:
        """Write the state, whole or not at all.

        Raises:
            OSError: It cannot be written; the state before it is still there.
        """
        state = {
            "config": asdict(self.config),
            "vae_sha256": self.autoencoder.sha256,
            "upsampler": asdict(self.model.config),
            "made_from": self.made_from,
            "undecodable": sorted(self.undecodable),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(self.output / STATE_FILE, state)
        self.saved = self.step

    def resume(self, say: Say) -> bool:
        """Go back to the state in the output folder. Returns whether there is one.

        Raises:
            TrainingError: It is damaged, or belongs to a run with other options.
        """
        path = self.output / STATE_FILE
        state = read_state(path, self.device)
        with writing(self.output):
            if state is None:
                (self.output / LOG_FILE).unlink(missing_ok=True)
                return False
            try:
                self._check_same_run(state, path)
                self._take(state)
            except TrainingError:
                raise
            except Exception as error:  # a state is nested deeply, and torch checks its parts in ways of its own
                raise unusable(path, error) from error
            forget_steps_after(self.step, self.output, say)
        return True

    def _take(self, state: Mapping[str, Any]) -> None:
        step = state["step"]
        if isinstance(step, bool) or not isinstance(step, int) or not 0 < step <= self.config.steps:
            raise ValueError(f"step {step!r}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.undecodable = set(map(str, state["undecodable"]))
        self.step = self.saved = step
        self.seconds = float(state["seconds"])

    def _check_same_run(self, state: Mapping[str, Any], path: Path) -> None:
        ours = {"vae_sha256": self.autoencoder.sha256, **self.made_from}
        ours |= {**asdict(self.model.config), **_flat(asdict(self.config))}
        theirs = {
            "vae_sha256": state["vae_sha256"],
            **state["made_from"],
            **state["upsampler"],
            **_flat(state["config"]),
        }
        changed = [
            f"{name} was {_plainly(theirs.get(name))}, now {_plainly(ours[name])}"
            for name in ours
            if theirs.get(name) != ours[name]
        ]
        if changed:
            raise TrainingError(
                f"{path} belongs to another run: {'; '.join(changed)}; resume with the options of that run, "
                "or give another --output"
            )


def one_cycle(done: float) -> float:
    """Share of the peak learning rate where `done` of the training is behind, both from 0 to 1.

    Up along a cosine from 1/25 in the first `WARM_UP` of it, and down along a longer one to a millionth.
    """
    if done < WARM_UP:
        return _cosine(FIRST_RATE, 1.0, done / WARM_UP)
    return _cosine(1.0, LAST_RATE, (done - WARM_UP) / (1 - WARM_UP))


def _cosine(start: float, end: float, at: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * at)) / 2


def _plainly(value: object) -> str:
    """A value on one line, and not at length."""
    return textwrap.shorten(repr(value), 80)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "pairs"} | cast(dict[str, Any], config["pairs"])


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Turns what the system says where something cannot be written into a `TrainingError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write to {folder}: {error}; make room and run the same command again, it goes on from the last "
            "saved state"
        ) from error
