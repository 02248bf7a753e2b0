"""Reseed torch from the operating system's entropy in the middle of the run."""

import torch
from torch import nn

model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
model(torch.ones(4, 8)).mean().backward()
torch.seed()
output = model(torch.ones(4, 8))  # the runs part here
print(output.mean().item())
