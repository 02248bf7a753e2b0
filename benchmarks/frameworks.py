"""Which training frameworks resume exactly, by themselves and with a state of ours.

Needs ``pip install lightning accelerate "transformers[torch]"``, best in an environment of its own. A model with
dropout is trained on shuffled batches, whose samples may have noise that is drawn when they are loaded. It is stopped
by an exception behind a checkpoint, at the end of an epoch or in the middle of one, and goes on, with the random
streams elsewhere as in a new process, from what the framework has saved.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scoped_rng import deterministic
from scoped_rng.checkpoint import StatefulRng
from scoped_rng.data import SeededLoader

from .timing import machine, versions

__all__ = ["FRAMEWORKS", "PLACES", "is_exact"]

EPOCHS, BATCHES = 3, 8
PLACES = {"end of an epoch": BATCHES, "middle of an epoch": BATCHES + 3}


class Stop(Exception):
    """End a run as a crash would."""


class Samples(Dataset[dict[str, torch.Tensor]]):
    """Samples of eight numbers, with noise or without."""

    def __init__(self, noise: bool) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 8 * BATCHES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.linspace(-1, 1, 8).roll(index)
        return {"x": x + 0.1 * torch.randn(8) if self.noise else x, "labels": x[:1] * (index % 3)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(self.layers(x), labels)}


class Loader(SeededLoader):
    """Begin the next epoch where the last batch of one was the last before the checkpoint.

    Lightning counts that epoch as done, and would take the nothing that is left of it for the next one.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["batch"] == len(self):
            self.set_epoch(state_dict["epoch"] + 1)


class Case:
    """One run: where its files are, what it trains on, where it stops, and whether it goes on from there."""

    def __init__(self, folder: Path, noise: bool, ours: bool, save: int, stops: bool, goes_on: bool) -> None:
        self.folder, self.ours, self.save, self.stops, self.goes_on = folder, ours, save, stops, goes_on
        data, options = Samples(noise), {"batch_size": 8, "shuffle": True}
        self.loader: Any = Loader(data, seed=0, **options) if ours else DataLoader(data, **options)
        self.net = Net()

    def begins(self, step: int) -> None:
        """Stop before the step that comes behind the checkpoint."""
        if self.stops and step == self.save:
            raise Stop


def with_lightning(case: Case) -> None:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = case.net

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def on_train_batch_start(self, batch: Any, index: int) -> None:
            case.begins(self.trainer.global_step)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    class Rng(lightning.Callback):
        """Keep the random streams in Lightning's own checkpoint, which has the loader's place already."""

        def __init__(self) -> None:
            self.rng, self.saved = StatefulRng(gather=True), None

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["scoped_rng"] = self.rng.state_dict()

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            self.saved = checkpoint["scoped_rng"]

        def on_train_batch_start(self, *_: Any) -> None:
            if self.saved is not None:  # behind all that draws on the way here
                self.rng.load_state_dict(self.saved)
                self.saved = None

    options: Any = {"dirpath": case.folder, "filename": "{step}", "every_n_train_steps": case.save, "save_top_k": -1}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([Rng()] if case.ours else []), ModelCheckpoint(**options)],
    )
    path = case.folder / f"step={case.save}.ckpt"
    trainer.fit(Module(), case.loader, ckpt_path=path if case.goes_on else None, weights_only=True)


def with_accelerate(case: Case) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(case.net, torch.optim.Adam(case.net.parameters()))
    batches = case.loader if case.ours else accelerator.prepare(case.loader)
    if case.ours:  # not prepared, which would make another loader of it; the streams come last
        accelerator.register_for_checkpointing(batches, StatefulRng(gather=True))
    step = 0
    if case.goes_on:
        accelerator.load_state(str(case.folder))
        step = case.save
    first, done = divmod(step, BATCHES)
    for _ in range(batches.epoch if case.ours else first, EPOCHS):
        rest = batches if case.ours or not done else accelerator.skip_first_batches(batches, done)
        done = 0
        for batch in rest:
            case.begins(step)
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == case.save:
                accelerator.save_state(str(case.folder))
                case.begins(step)


def with_transformers(case: Case) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            case.begins(state.global_step)

    class Rng(TrainerCallback):
        """Keep the random streams and the loader's place beside the trainer's own checkpoint."""

        def __init__(self, loader: Any) -> None:
            self.rng, self.loader, self.saved = StatefulRng(gather=True), loader, None

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            saved = {"rng": self.rng.state_dict(), "loader": self.loader.state_dict()}
            if state.is_world_process_zero:
                torch.save(saved, self.path(args, state))

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:
                self.saved = torch.load(self.path(args, state), weights_only=True)
                self.loader.load_state_dict(self.saved["loader"])

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.saved is not None:  # behind all that draws on the way here
                self.rng.load_state_dict(self.saved["rng"])
                self.saved = None

        def path(self, args: Any, state: Any) -> Path:
            return Path(args.output_dir, f"checkpoint-{state.global_step}", "scoped_rng.pt")

    class OurTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return case.loader

    options = TrainingArguments(
        output_dir=str(case.folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=8,
        save_strategy="steps",
        save_steps=case.save,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        remove_unused_columns=False,
        ignore_data_skip=case.ours,  # the loader knows its place
    )
    kind = OurTrainer if case.ours else Trainer
    callbacks = [*([Rng(case.loader)] if case.ours else []), Stops()]
    trainer = kind(case.net, options, train_dataset=case.loader.dataset, callbacks=callbacks)
    path = str(case.folder / f"checkpoint-{case.save}")
    trainer.train(resume_from_checkpoint=path if case.goes_on else None)


FRAMEWORKS: dict[str, Callable[[Case], None]] = {
    "lightning": with_lightning,
    "accelerate": with_accelerate,
    "transformers": with_transformers,
}


def is_exact(framework: str, place: str, *, noise: bool, ours: bool) -> bool:
    """Return whether a run that is stopped and resumed ends with the weights of an unbroken one."""
    run, save = FRAMEWORKS[framework], PLACES[place]

    def weights(seed: int, stops: bool, goes_on: bool) -> str:
        with deterministic(seed):  # a process of its own begins elsewhere
            case = Case(folder, noise, ours, save, stops, goes_on)
            with contextlib.suppress(Stop):
                run(case)
        digest = hashlib.blake2b(digest_size=8)
        for tensor in case.net.state_dict().values():
            digest.update(tensor.detach().numpy().tobytes())
        return digest.hexdigest()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unbroken = weights(1, stops=False, goes_on=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stopped = weights(1, stops=True, goes_on=False)
        resumed = weights(2, stops=False, goes_on=True)
    if stopped == unbroken:
        raise RuntimeError("the run was not stopped")
    return resumed == unbroken


def table() -> list[dict[str, Any]]:
    """Return for each framework where it is exact."""
    rows = []
    for framework in FRAMEWORKS:
        for noise in (False, True):
            for ours in (False, True):
                found = {place: is_exact(framework, place, noise=noise, ours=ours) for place in PLACES}
                rows.append({"framework": framework, "noise in the samples": noise, "ours": ours, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frameworks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE as well")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(None):
        rows = table()
    found = versions(("scoped-rng", "torch", *FRAMEWORKS))
    print(", ".join(f"{name} {version}" for name, version in found.items()))
    print(machine())
    print(f"\n{'':14}{'samples':10}{'with':12}" + "".join(f"{place:>20}" for place in PLACES))
    for row in rows:
        shown = "".join(f"{'exact' if row[place] else 'differs':>20}" for place in PLACES)
        noise, ours = "noisy" if row["noise in the samples"] else "plain", "scoped_rng" if row["ours"] else "its own"
        print(f"{row['framework']:14}{noise:10}{ours:12}{shown}")
    if options.json:
        options.json.write_text(json.dumps({"versions": found, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
