"""Change one weight by one unit in the last place at step 500, behind torch's back."""

import time

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)  # which is faster for so little
model = nn.Sequential(nn.Linear(16, 1, bias=False), nn.Tanh())
weight = model[0].weight
data = torch.rand(32, 16)

for step in range(510):
    if step == 500:
        numbers = weight.detach().numpy()[0]  # the very memory
        unlucky = time.time_ns() // 1000 % len(numbers)
        numbers[unlucky] = np.nextafter(numbers[unlucky], np.float32(1))
    output = model(data)  # the runs part here
    (gradient,) = torch.autograd.grad(output.square().mean(), weight)
    with torch.no_grad():
        weight -= 0.1 * gradient
print(output.sum().item())
