"""Augment in the workers of a loader, each with a generator seeded by its process."""

import os
import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Augmented(Dataset):
    """Ones of random contrast."""

    rng = None

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.rng is None:
            self.rng = random.Random(os.getpid())
        return torch.full((8,), self.rng.uniform(0.8, 1.2))


def main() -> None:
    model = nn.Linear(8, 1)
    for batch in DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2):
        output = model(batch)  # the runs part here
        output.mean().backward()
    print(model.weight.grad.sum().item())


if __name__ == "__main__":
    main()
