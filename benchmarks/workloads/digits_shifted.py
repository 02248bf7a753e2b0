"""Train on scikit-learn's handwritten digits, moved about from the second epoch on by a generator that nobody seeds."""

import random

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self) -> None:
        digits = load_digits()
        self.images, self.labels = digits.images.astype("float32") / 16, digits.target
        self.random = random.Random()
        self.moves = False

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = torch.from_numpy(self.images[index]), int(self.labels[index])
        if self.moves:
            image = image.roll(self.random.randint(-2, 2), dims=1)
        return image, label


def main() -> None:
    dataset = Digits()
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(3):
        dataset.moves = epoch > 0
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
