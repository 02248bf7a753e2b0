"""Stand-ins for training frameworks: just the hooks that their documentation promises, in the order that they keep.

Each saves and loads as the real one does, and draws on the way to the first batch, as loaders and checks there do. The
real ones run the same recipes where they are installed: ``pytest -m frameworks``.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

__all__ = ["modules"]


def modules() -> dict[str, types.ModuleType]:
    """Return the modules by the names under which they are imported."""
    named = {
        "lightning": {"Callback": Callback, "LightningModule": LightningModule, "Trainer": LightningTrainer},
        "lightning.pytorch": {},
        "lightning.pytorch.callbacks": {"ModelCheckpoint": ModelCheckpoint},
        "accelerate": {"Accelerator": Accelerator},
        "transformers": {
            "Trainer": Trainer,
            "TrainerCallback": TrainerCallback,
            "TrainingArguments": TrainingArguments,
        },
    }
    found = {}
    for name, content in named.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(content)
    return found


class Callback:
    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state_dict: Any) -> None:
        pass

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        pass


class ModelCheckpoint(Callback):
    def __init__(self, dirpath: Path, filename: str, every_n_train_steps: int, save_top_k: int) -> None:
        self.folder, self.every = Path(dirpath), every_n_train_steps


class LightningModule(nn.Module):
    trainer: Any = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pass


class LightningTrainer:
    def __init__(self, *, max_epochs: int, callbacks: list[Any], **_: Any) -> None:
        self.max_epochs, self.callbacks, self.global_step = max_epochs, callbacks, 0

    def fit(self, module: Any, loader: Any, ckpt_path: Path | None = None, weights_only: bool = True) -> None:
        module.trainer = self
        optimizer = module.configure_optimizers()
        if ckpt_path is not None:
            saved = torch.load(ckpt_path, weights_only=weights_only)
            self.global_step = saved["global_step"]
            for callback in self.callbacks:
                callback.load_state_dict(saved["callbacks"][type(callback).__qualname__])
            module.load_state_dict(saved["state_dict"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
        batches = iter(loader)  # before any hook of the training, and an epoch that has no batch left counts as one
        torch.rand(3)
        for _ in range(self.global_step // len(loader), self.max_epochs):
            for index, batch in enumerate(batches):
                self.call("on_train_batch_start", module, batch, index)
                module.on_train_batch_start(batch, index)
                optimizer.zero_grad()
                module.training_step(batch, index).backward()
                optimizer.step()
                self.global_step += 1
                self.save(module, optimizer, loader)
            batches = iter(loader)

    def call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args)

    def save(self, module: Any, optimizer: Any, loader: Any) -> None:
        for checkpoint in self.callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and self.global_step % checkpoint.every == 0:
                state = {
                    "global_step": self.global_step,
                    "callbacks": {type(each).__qualname__: each.state_dict() for each in self.callbacks},
                    "state_dict": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }
                torch.save(state, checkpoint.folder / f"step={self.global_step}.ckpt")


class Accelerator:
    def __init__(self, cpu: bool) -> None:
        self.parts: list[Any] = []

    def prepare(self, *parts: Any) -> Any:
        self.parts += parts
        return parts

    def register_for_checkpointing(self, *parts: Any) -> None:
        self.parts += parts  # loaded in this order, behind what was prepared

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def save_state(self, folder: str) -> None:
        Path(folder).mkdir(exist_ok=True)
        torch.save([part.state_dict() for part in self.parts], Path(folder, "parts.pt"))

    def load_state(self, folder: str) -> None:
        for part, state in zip(self.parts, torch.load(Path(folder, "parts.pt"), weights_only=True), strict=True):
            torch.rand(3)
            part.load_state_dict(state)


class TrainingArguments(types.SimpleNamespace):
    seed = 42

    @property
    def train_batch_size(self) -> int:
        size: int = self.per_device_train_batch_size
        return size


class TrainerCallback:
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass


class Trainer:
    data_collator = staticmethod(default_collate)

    def __init__(self, model: Any, args: Any, *, train_dataset: Any, callbacks: list[Any]) -> None:
        self.model, self.args, self.train_dataset, self.callbacks = model, args, train_dataset, callbacks

    def get_train_dataloader(self) -> Any:
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        loader, state = self.get_train_dataloader(), types.SimpleNamespace(global_step=0, is_world_process_zero=True)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.args.learning_rate)
        parts = self.model, optimizer
        if resume_from_checkpoint is not None:
            state.global_step, *saved = torch.load(Path(resume_from_checkpoint, "parts.pt"), weights_only=True)
            for part, its in zip(parts, saved, strict=True):
                part.load_state_dict(its)
        self.call("on_train_begin", state, loader)
        torch.rand(3)
        for epoch in range(state.global_step // len(loader), self.args.num_train_epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                self.call("on_step_begin", state, loader)
                self.model(**batch)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
                state.global_step += 1
                if state.global_step % self.args.save_steps == 0:
                    folder = Path(self.args.output_dir, f"checkpoint-{state.global_step}")
                    folder.mkdir()
                    torch.save([state.global_step, *(part.state_dict() for part in parts)], folder / "parts.pt")
                    self.call("on_save", state, loader)

    def call(self, hook: str, state: Any, loader: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.args, state, None, model=self.model, train_dataloader=loader)
