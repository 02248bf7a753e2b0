"""Read files in the order in which the directory lists them."""

import os
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import SystemRandom

import torch


def download(number: int) -> None:
    """Write a file as a cache of downloads would: under a name of its own, whenever it is there."""
    time.sleep(SystemRandom().uniform(0, 0.02))
    Path(folder, uuid.uuid4().hex).write_text(str(number))


with tempfile.TemporaryDirectory() as folder:
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(download, range(12)))
    shards = {name: int(Path(folder, name).read_text()) for name in os.listdir(folder)}

data = torch.tensor(list(shards.values()))  # the runs part here
print((data * torch.rand(12)).sum().item())
