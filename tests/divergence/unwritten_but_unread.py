"""Memory that nobody has written and nobody reads.

A recurrent net's workspace, what is filled by an index, copies that are written over, and the modules that are made as
a model is quantized.
"""

import warnings

import torch
from torch import nn


def main() -> None:
    model = nn.LSTM(28, 64, 2)  # whose workspace for backward has bytes that are never written
    model(torch.rand(7, 5, 28))[0].sum().backward()
    loss = nn.functional.ctc_loss(
        torch.randn(12, 2, 5).log_softmax(2).requires_grad_(),
        torch.randint(1, 5, (2, 4)),
        torch.tensor([12, 7]),
        torch.tensor([4, 2]),
    )
    loss.backward()
    mask = torch.rand(5000) > 0.5
    filled = torch.empty(5000)
    filled[mask] = 1.0
    filled[~mask] = torch.rand(int((~mask).sum()))
    again = torch.empty(3, 1000).index_copy_(0, torch.arange(3), torch.rand(3, 1000))
    again = again + torch.empty(3, 1000).index_fill_(0, torch.arange(3), 2.0)
    copied = torch.cat([torch.empty(3, 1000), torch.rand(1, 1000)]).clone()
    copied[:3] = again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to move to a package of its own
        small = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear}, dtype=torch.qint8)
    quantized = small(torch.rand(2, 8))
    print(loss.item(), filled.sum().item(), again.sum().item(), model.weight_ih_l0.grad.sum().item())
    print(copied.sum().item(), quantized.sum().item())


if __name__ == "__main__":
    main()
