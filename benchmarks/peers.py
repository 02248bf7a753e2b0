"""The seeding helpers that scoped_rng is compared with, each as its own documentation has it used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch

from scoped_rng import capture, deterministic

__all__ = ["PEERS", "Peer"]

T = TypeVar("T")
PYTHON, NUMPY, TORCH = ("python", "python gaussian"), ("numpy", "numpy gaussian"), ("torch", "torch gaussian")
ALL = (*PYTHON, *NUMPY, *TORCH)
Decorator = Callable[[Any], Any]


@dataclass(frozen=True)
class Peer:
    """What can be done with one of them."""

    scope: Callable[[Any], AbstractContextManager[Any]] | None = None  # of a seed
    decorate: Callable[[Any], Decorator] | None = None
    collect: Callable[[], Any] | None = None  # a state to save
    hold: Callable[[Any, Any], AbstractContextManager[Any]] | None = None  # of a seed and the user's own generators
    covers: tuple[str, ...] = ALL

    def call(self, seed: Any, body: Callable[[], T]) -> T:
        """Return what ``body`` returns in a scope with a seed."""
        if self.scope:
            with self.scope(seed):
                return body()
        assert self.decorate
        found = []
        self.decorate(seed)(lambda: found.append(body()))()
        return found[0]


def ours() -> Peer:
    def hold(seed: Any, objects: Any) -> AbstractContextManager[Any]:
        return deterministic(seed, also=objects)

    return Peer(deterministic, deterministic, lambda: capture().state_dict(), hold)


def both(keep: Callable[[], AbstractContextManager[Any]], seed_all: Callable[[Any], object]) -> Any:
    """Return a scope made of what puts the streams back and, inside of it, what seeds them."""

    @contextlib.contextmanager
    def scope(seed: Any) -> Iterator[None]:
        with keep():
            seed_all(seed)
            yield

    return scope


def fork_rng() -> Peer:
    scope = both(torch.random.fork_rng, torch.manual_seed)
    return Peer(scope, scope, torch.get_rng_state, covers=TORCH)


def lightning() -> Peer:
    seed_everything = import_module("pytorch_lightning").seed_everything
    isolate_rng = import_module("pytorch_lightning.utilities.seed").isolate_rng
    collect = import_module("lightning_fabric.utilities.seed")._collect_rng_states
    scope = both(isolate_rng, lambda seed: seed_everything(seed, verbose=False))
    return Peer(scope, scope, collect)


def pyro() -> Peer:
    seed = import_module("pyro.poutine").seed
    collect = import_module("pyro.util").get_rng_state

    def scope(number: Any) -> Any:
        return seed(rng_seed=number)

    return Peer(scope, scope, collect)


def pytorch_seed() -> Peer:
    return Peer(import_module("pytorch_seed").SavedRNG)  # its states are objects of its own, not to be saved


def ignite() -> Peer:
    manual_seed = import_module("ignite.utils").manual_seed
    module = import_module("ignite.engine.deterministic")

    def decorate(seed: Any) -> Decorator:
        def decorator(fn: Any) -> Any:
            @module.keep_random_state  # type: ignore[untyped-decorator]
            def seeded() -> Any:
                manual_seed(seed)
                return fn()

            return seeded

        return decorator

    return Peer(None, decorate, module._get_rng_states)


def fastai() -> Peer:
    core = import_module("fastai.torch_core")
    return Peer(core.no_random, core.no_random, core.get_random_states)


def delu() -> Peer:
    module = import_module("delu").random
    scope = both(module.preserve_state, module.seed)
    return Peer(scope, scope, module.get_state)


def composer() -> Peer:
    module = import_module("composer.utils.reproducibility")
    return Peer(module.seed_context, module.seed_context, module.get_rng_state)


# By name: the distribution that has it, what is used of it, and how to get at it.
PEERS: dict[str, tuple[str, str, Callable[[], Peer]]] = {
    "scoped_rng": ("scoped-rng", "`deterministic`", ours),
    "torch": ("torch", "`fork_rng` + `manual_seed`", fork_rng),
    "Lightning": ("pytorch-lightning", "`isolate_rng` + `seed_everything`", lightning),
    "Pyro": ("pyro-ppl", "`poutine.seed`", pyro),
    "pytorch-seed": ("pytorch-seed", "`SavedRNG`", pytorch_seed),
    "ignite": ("pytorch-ignite", "`keep_random_state` + `manual_seed`", ignite),
    "fastai": ("fastai", "`no_random`", fastai),
    "delu": ("delu", "`preserve_state` + `seed`", delu),
    "composer": ("mosaicml", "`seed_context`", composer),
}
