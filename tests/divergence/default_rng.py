"""Draw from a generator that was made when the module was imported, before the scope: no seed has reached it.

Run it as it is. Under a scope that was open before, as that of the command is, the generator is made inside of it and
repeats.
"""

import numpy as np
import torch

from scoped_rng import fixed_seed

augmentation = np.random.default_rng()  # NumPy drew entropy here


@fixed_seed(0)
def train() -> float:
    model = torch.nn.Linear(4, 1)
    images = torch.ones(8, 4)
    noise = torch.from_numpy(augmentation.normal(size=images.shape))  # the runs part here
    noisy = images + noise
    return model(noisy.float()).mean().item()


print(train())
