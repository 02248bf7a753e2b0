"""Add up on as many threads as there happen to be processors free, which decides the order of the sums."""

from random import SystemRandom

import torch

free = SystemRandom().randint(2, 32)  # a stand-in for what a shared machine gives
torch.set_num_threads(free)

total = 0.0
for _ in range(4):
    batch = torch.randn(1 << 20)
    total += batch.sum().item()  # the runs part here
print(total)
