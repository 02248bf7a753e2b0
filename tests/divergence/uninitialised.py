"""Fill a part of a buffer, and read all of it: the rest is what the memory held before."""

import hashlib
import os

import torch

token = hashlib.sha256(os.urandom(1 << 16)).hexdigest()  # the memory of the random bytes is free again

rows = torch.rand(100, 16)
padded = torch.empty(128, 16)  # it was made here
padded[: len(rows)] = rows
read = padded.nan_to_num(0, 0, 0)  # the runs part here
print(read.clamp(-1, 1).mean().item())
