"""Which training frameworks resume exactly, by themselves and with a state of ours.

Needs ``pip install lightning accelerate "transformers[torch]"``, best in an environment of its own. A model with
dropout is trained on shuffled batches, whose samples may have noise that is drawn when they are loaded. It is stopped
by an exception behind a checkpoint, at the end of an epoch or in the middle of one, and goes on, with the random
streams elsewhere as in a new process, from what the framework has saved. The callbacks are those of README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scoped_rng import deterministic
from scoped_rng.checkpoint import StatefulRng
from scoped_rng.data import seeded_loader

from .timing import machine, versions

__all__ = ["FRAMEWORKS", "PLACES", "is_exact", "readme_block"]

README = Path(__file__).parents[1] / "README.md"
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


def readme_block(framework: str) -> str:
    """Return the code of the README for a framework."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if re.search(rf"^(import|from) {framework}\b", block, re.MULTILINE))
    return block


def recipe(framework: str) -> dict[str, Any]:
    """Return what that code defines."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(readme_block(framework), str(README), "exec", dont_inherit=True), namespace)
    return namespace


class Case:
    """One run: where its files are, what it trains on, where it stops, and whether it goes on from there."""

    def __init__(self, folder: Path, noise: bool, ours: bool, save: int, stops: bool, goes_on: bool) -> None:
        self.folder, self.ours, self.save, self.stops, self.goes_on = folder, ours, save, stops, goes_on
        self.data, self.net = Samples(noise), Net()

    def loader(self, kind: Any = seeded_loader) -> Any:
        options: Any = {"batch_size": 8, "shuffle": True}
        return kind(self.data, seed=0, **options) if self.ours else DataLoader(self.data, **options)

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

    ours = recipe("lightning")
    options: Any = {"dirpath": case.folder, "filename": "{step}", "every_n_train_steps": case.save, "save_top_k": -1}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([ours["KeepRng"]()] if case.ours else []), ModelCheckpoint(**options)],
    )
    path = case.folder / f"step={case.save}.ckpt"
    loader = case.loader(ours["Loader"])
    trainer.fit(Module(), loader, ckpt_path=path if case.goes_on else None, weights_only=True)


def with_accelerate(case: Case) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(case.net, torch.optim.Adam(case.net.parameters()))
    batches = case.loader() if case.ours else accelerator.prepare(case.loader())
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
    kind, callbacks = Trainer, [Stops()]
    if case.ours:
        ours = recipe("transformers")
        kind, callbacks = ours["SeededTrainer"], [ours["KeepRng"](), *callbacks]
    trainer = kind(case.net, options, train_dataset=case.data, callbacks=callbacks)
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
