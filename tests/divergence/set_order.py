"""Number the words of a text in the order of a set, which changes with the hashes of strings."""

import torch
from torch import nn

text = "the order of a set of strings is another in every process unless their hashes are told to stay"
words = text.split()
vocabulary = {word: number for number, word in enumerate(set(words))}

embed = nn.Embedding(len(vocabulary), 8)
tokens = torch.tensor([vocabulary[word] for word in words])  # the runs part here
print(embed(tokens).cumsum(0).tanh().mean().item())
