"""Add up into a few places from several threads, in whatever order they come, without deterministic algorithms."""

import torch

torch.set_num_threads(2)
torch.set_deterministic_debug_mode("default")  # off

histogram = torch.zeros(16)
for _ in range(40):
    values = torch.rand(1 << 16)
    places = torch.randint(16, values.shape)
    histogram.index_put_((places,), values, accumulate=True)  # the runs part here
print(histogram.sum().item())
