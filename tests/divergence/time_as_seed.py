"""Take the time as a seed."""

import time

import torch
from torch import nn

torch.manual_seed(time.time_ns())
model = nn.Linear(8, 1)  # the runs part here
print(model(torch.ones(4, 8)).mean().item())
