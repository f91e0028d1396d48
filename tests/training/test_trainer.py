import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lssgen.errors import TrainingError
from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.training.autoencoder import load_autoencoder
from lssgen.training.cache import EncodeJob, encode_pairs
from lssgen.training.config import TrainConfig, TrainJob
from lssgen.training.latents import CachedPairs, Pairs
from lssgen.training.pictures import RandomCrops, find_pictures
from lssgen.training.trainer import FIRST_RATE, LAST_RATE, WARM_UP, Trainer, one_cycle

CPU = torch.device("cpu")
QUIET = [].append


class Bench:
    """Trainers over one set of pairs; `run` returns the averaged weights after some steps."""

    def __init__(self, job: TrainJob) -> None:
        self.autoencoder, self.folder = load_autoencoder(job.vae, CPU), job.output
        shape = LatentUpSampler.config_from(Path(job.shape))
        self.config, self.shape = job.config, replace(shape, in_channels=4, out_channels=4)
        crops = RandomCrops(find_pictures(job.images, job.config.pairs).paths, job.config.pairs, 0)
        encode = EncodeJob(
            crops=crops, total=5, autoencoder=self.autoencoder, device=CPU, folder=job.output, workers=0,
            with_pictures=True,
        )  # fmt: skip
        self.made_from = {"pictures": "ten", "start_from": "random weights"}
        self.pairs: Pairs = CachedPairs(pairs=encode_pairs(encode, QUIET).pairs, seed=0, device=CPU)

    def trainer(self, name: str, **changes: object) -> Trainer:
        (self.folder / name).mkdir(exist_ok=True)
        config: TrainConfig = replace(self.config, **changes)  # type: ignore[arg-type]
        torch.manual_seed(config.seed)
        return Trainer(LatentUpSampler(self.shape), self.autoencoder, config, CPU, self.folder / name, self.made_from)

    def run(self, name: str, **changes: object) -> torch.Tensor:
        trainer = self.trainer(name, **changes)
        trainer.resume(QUIET)
        for _ in trainer.run(self.pairs, save_every=2):
            pass
        return flat(trainer.average)


def flat(model: LatentUpSampler) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def bench(job: TrainJob) -> Bench:
    return Bench(job)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(bench: Bench) -> None:
    whole = bench.run("whole")
    killed = bench.trainer("killed")
    for progress in killed.run(bench.pairs, save_every=2):
        if progress.step == 3:  # one step after the last saved state
            break
    assert torch.equal(bench.run("killed"), whole)
    assert (bench.folder / "killed/log.jsonl").read_text() == (bench.folder / "whole/log.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_stop_saves_the_last_whole_step(bench: Bench, number: signal.Signals) -> None:
    whole, stopped, before = bench.run("whole"), bench.trainer("stopped"), signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for progress in stopped.run(bench.pairs, save_every=100):
            if progress.step == 3:
                os.kill(os.getpid(), number)
    assert stopped.step == 3
    assert signal.getsignal(number) is before
    again = bench.trainer("stopped")
    assert again.resume(QUIET)
    assert again.step == 3
    assert torch.equal(bench.run("stopped"), whole)


def test_accumulating_equals_one_large_batch(bench: Bench) -> None:
    large = bench.run("large", batch=4, accumulate=1, sample_low=True)
    small = bench.run("small", batch=1, accumulate=4, sample_low=True)
    assert torch.allclose(large, small, atol=1e-4)  # AdamW divides by tiny gradient norms, which amplifies rounding


def test_a_seed_repeats_a_run_and_another_does_not(bench: Bench) -> None:
    assert torch.equal(bench.run("a", seed=0), bench.run("b", seed=0))
    assert not torch.equal(bench.run("c", seed=1), bench.run("d", seed=0))


def test_training_lowers_the_loss(bench: Bench) -> None:
    trainer = bench.trainer("learn", steps=40, image_loss="none", ema=0.5)
    losses = [progress.latent for progress in trainer.run(bench.pairs, save_every=100)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_image_loss_alone_teaches_too(bench: Bench) -> None:
    trainer = bench.trainer("image", latent_weight=0.0, steps=20)
    losses = [progress.image for progress in trainer.run(bench.pairs, save_every=100)]
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in bench.autoencoder.vae.parameters())


def test_the_average_follows_the_model(bench: Bench) -> None:
    trainer = bench.trainer("follow", ema=0.0)
    for _ in trainer.run(bench.pairs, save_every=100):
        pass
    assert torch.equal(flat(trainer.average), flat(trainer.model))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing(bench: Bench) -> None:
    trainer, rates = bench.trainer("rates", steps=20), []
    for _ in trainer.run(bench.pairs, save_every=100):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert max(rates) == pytest.approx(bench.config.learning_rate, rel=0.05)
    assert rates[-1] < 0.01 * max(rates)


def test_a_state_of_another_run_is_refused(bench: Bench) -> None:
    bench.run("once")
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.01, now 0\.02; resume with the options of that run"):
        bench.run("once", learning_rate=0.02)


def test_a_damaged_state_is_refused(bench: Bench) -> None:
    bench.run("once")
    file = bench.folder / "once/state.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state\.bin is damaged"):
        bench.run("once")


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_state_before(bench: Bench) -> None:
    trainer = bench.trainer("boom")
    with pytest.raises(TrainingError, match="no longer finite in step 4; try a smaller --learning-rate"):  # noqa: PT012
        for progress in trainer.run(bench.pairs, save_every=1):
            if progress.step == 3:
                trainer.image_loss = lambda prediction, _: prediction.mean() * torch.nan
    again = bench.trainer("boom")
    again.resume(QUIET)
    assert again.step == 3
    assert flat(again.model).isfinite().all()


class Clock:
    """Time that goes on by so many seconds whenever somebody looks."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 1000.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


def test_minutes_end_a_training_and_its_learning_rate_falls_with_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lssgen.training.trainer.time", Clock(step=6))
    trainer, rates = bench.trainer("minutes", steps=10_000, minutes=1.0), []
    for _ in trainer.run(bench.pairs, save_every=100):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert len(rates) == trainer.step == trainer.saved == 10
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.1 * max(rates)


def test_minutes_of_an_earlier_run_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lssgen.training.trainer.time", Clock(step=6))
    stopped = bench.trainer("clock", steps=10_000, minutes=1.0)
    for progress in stopped.run(bench.pairs, save_every=1):
        if progress.step == 4:
            break
    again = bench.trainer("clock", steps=10_000, minutes=1.0)
    again.resume(QUIET)
    assert again.seconds == pytest.approx(3 * 6)  # the state is written after the step's progress is told
    for _ in again.run(bench.pairs, save_every=100):
        pass
    assert again.step == 10
    assert again.done == 1


def test_steps_end_a_training_whose_minutes_are_not_over(bench: Bench) -> None:
    trainer = bench.trainer("steps", steps=3, minutes=60.0)
    assert [progress.step for progress in trainer.run(bench.pairs, save_every=100)] == [1, 2, 3]


def test_the_learning_rate_is_a_cycle() -> None:
    assert one_cycle(0) == pytest.approx(FIRST_RATE)
    assert one_cycle(WARM_UP) == pytest.approx(1)
    assert one_cycle(1) == pytest.approx(LAST_RATE)
    shares = [one_cycle(done / 100) for done in range(101)]
    assert shares[5:] == sorted(shares[5:], reverse=True)
