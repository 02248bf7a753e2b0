"""Train on scikit-learn's digits with random augmentation drawn from Python, NumPy and torch, in workers or not.

Losses and weights do not depend on --workers, nor on where the run was stopped and resumed. With --plain, which takes
torch's own loader with the usual seeds, they depend on both.
"""

import argparse
import hashlib
import os
import random
import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scoped_rng import RngState, capture
from scoped_rng.data import seed_worker, seeded_loader


class AugmentedDigits(Dataset):
    """Shift each image by one pixel at most, scale its contrast, add noise."""

    def __init__(self, count: int) -> None:
        digits = load_digits()
        self.images = (digits.images[:count] / 16).astype(np.float32)
        self.labels = digits.target[:count]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = np.roll(self.images[index], (random.randint(-1, 1), random.randint(-1, 1)), (0, 1))
        image = image * np.float32(np.random.uniform(0.8, 1.2))
        return torch.from_numpy(image).unsqueeze(0) + 0.05 * torch.randn(1, 8, 8), int(self.labels[index])


class Training:
    """A model, its optimizer and its loader, and a checkpoint of all of them in the middle of an epoch."""

    def __init__(self, *, workers: int = 0, plain: bool = False, count: int = 512, batch_size: int = 64) -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(8 * 4 * 4, 10)),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        self.losses: list[float] = []
        options = {"batch_size": batch_size, "shuffle": True, "num_workers": workers}
        if plain:
            self.loader = DataLoader(AugmentedDigits(count), worker_init_fn=seed_worker, **options)
        else:
            self.loader = seeded_loader(AugmentedDigits(count), seed=0, **options)

    def run(self, epochs: int, stop_at: int | None = None) -> None:
        """Train up to an epoch, or until so many batches are done."""
        for epoch in range(getattr(self.loader, "epoch", 0), epochs):
            if hasattr(self.loader, "set_epoch"):
                self.loader.set_epoch(epoch)
            for images, labels in self.loader:
                self.step(images, labels)
                if len(self.losses) == stop_at:
                    return

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def state_dict(self) -> dict:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "losses": self.losses}
        if hasattr(self.loader, "state_dict"):
            state["loader"] = self.loader.state_dict()
        return {**state, "rng": capture().state_dict()}  # for dropout

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]
        if "loader" in state:
            self.loader.load_state_dict(state["loader"])
        RngState.from_state_dict(state["rng"]).restore()

    def digest(self) -> str:
        """Return a few hex digits of the weights."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in self.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="torch's own loader")
    parser.add_argument("--checkpoint", default="digits.pt", help="the file (default: %(default)s)")
    parser.add_argument("--stop-at", type=int, metavar="N", help="stop after N batches and write the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    args = parser.parse_args()

    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors
    training = Training(workers=args.workers, plain=args.plain)
    if args.resume:
        training.load_state_dict(torch.load(args.checkpoint, weights_only=True))
    training.run(args.epochs, args.stop_at)
    if args.stop_at:
        torch.save(training.state_dict(), args.checkpoint)
        print(f"stopped after {len(training.losses)} batches: {os.path.abspath(args.checkpoint)}")
        return
    for number, loss in enumerate(training.losses):
        print(f"batch {number}: loss {loss!r}")
    print(f"weights {training.digest()}")


if __name__ == "__main__":
    main()
