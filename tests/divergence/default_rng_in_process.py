"""Draw from an unseeded generator in another process, where no scope is open."""

import subprocess
import sys

import torch

AUGMENT = "import numpy; print(*numpy.random.default_rng().normal(size=8))"

images = torch.ones(8)
answer = subprocess.run([sys.executable, "-c", AUGMENT], stdout=subprocess.PIPE, check=True).stdout
noise = torch.tensor([float(number) for number in answer.split()])  # the runs part here
print((images + noise).mean().item())
