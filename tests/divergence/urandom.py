"""Read noise from the operating system."""

import os

import torch

images = torch.ones(16, 16)
noise = torch.frombuffer(bytearray(os.urandom(256)), dtype=torch.uint8)
noisy = images + noise.reshape(16, 16) / 255  # the runs part here
print(noisy.mean().item())
