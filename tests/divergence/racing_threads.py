"""Draw on two threads from the same stream, each at its own pace."""

import threading

import torch
from torch import nn

stopped = threading.Event()


def prefetch() -> None:
    while not stopped.is_set():
        torch.rand(64)


thread = threading.Thread(target=prefetch)
thread.start()
try:
    data = torch.ones(256, 256)
    for _ in range(20):
        data = data @ data / 256
    kept = nn.functional.dropout(data)  # the runs part here
finally:
    stopped.set()
    thread.join()
print(kept.sum().item())
