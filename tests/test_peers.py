"""What other seeding helpers get wrong, each as a test that a scope passes."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scoped_rng import (
    ConcurrentScopeError,
    RngState,
    ScopeOrderWarning,
    capture,
    deterministic,
    fixed_seed,
    isolated,
    replay,
)
from tests import kit

FIRST, SECOND, THIRD = kit.reference(7, 3)
FORMS = pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)


class Boom(Exception):
    """What a body raises."""


@pytest.fixture(autouse=True)
def ambient() -> None:
    """Give the ambient streams states that no seed gives, with a cached gaussian each."""
    random.seed(11)
    np.random.seed(12)
    torch.default_generator.manual_seed(13)
    kit.draws()


class Accelerator(types.ModuleType):
    """A device module, as a PrivateUse1 backend registers it, over generators of the CPU."""

    def __init__(self, name: str) -> None:
        super().__init__(f"torch.{name}")
        self.default_generators = tuple(torch.Generator().manual_seed(100 + index) for index in range(2))
        self.initialized = True
        self.initializations = 0
        self.in_bad_fork = False

    def is_initialized(self) -> bool:
        return self.initialized and not self.in_bad_fork

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return self.in_bad_fork

    def _lazy_init(self) -> None:
        if self.in_bad_fork:
            raise RuntimeError("Cannot re-initialize the device in a forked subprocess")
        self.initialized = True
        self.initializations += 1

    def _generator(self, device: Any) -> torch.Generator:
        self._lazy_init()
        return self.default_generators[torch.device(device).index if isinstance(device, str) else int(device)]

    def device_count(self) -> int:
        return len(self.default_generators)

    def current_device(self) -> int:
        return 0

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return self._generator(device).get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        self._generator(device).set_state(state)

    def manual_seed(self, seed: int) -> None:
        self._generator(0).manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        self._lazy_init()
        for generator in self.default_generators:
            generator.manual_seed(seed)

    def draws(self) -> list[float]:
        """Draw once on each device."""
        return [torch.rand((), generator=generator).item() for generator in self.default_generators]


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """Put a device module where torch would have registered one."""
    name = torch._C._get_privateuse1_backend_name()
    module = Accelerator(name)
    monkeypatch.setattr(torch, name, module, raising=False)
    return module


# Body raises, KeyboardInterrupt: nothing restored.


@FORMS
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_body_raises_keyboardinterrupt_nothing_restored(form: Any, error: Any) -> None:
    before = kit.everything()

    def body() -> None:
        kit.draws()
        raise error

    with pytest.raises(error):
        form(deterministic(7), body)
    assert kit.everything() == before


# A rejected seed leaves the process half seeded.


@pytest.mark.parametrize("seed", [2**64, -1, 1.5, "7", None, True])
@pytest.mark.parametrize("make", [deterministic, fixed_seed, isolated])
def test_a_rejected_seed_leaves_the_process_half_seeded(make: Any, seed: Any) -> None:
    if make is isolated and seed is None:
        seed = []
    before = kit.everything()
    with pytest.raises((TypeError, ValueError)), make(seed):
        pytest.fail("the seed was taken")
    assert kit.everything() == before


# `async def` or generator decorated: body runs outside the scope.


def test_async_def_or_generator_decorated_body_runs_outside_the_scope() -> None:
    before = kit.everything()

    @fixed_seed(7)
    def generate() -> Iterator[Any]:
        yield kit.draws()
        yield kit.draws()

    @fixed_seed(7)
    async def run() -> Any:
        first = kit.draws()
        await asyncio.sleep(0)
        return [first, kit.draws()]

    @fixed_seed(7)
    async def generate_async() -> Any:
        yield kit.draws()
        await asyncio.sleep(0)
        yield kit.draws()

    async def collect() -> list[Any]:
        return [value async for value in generate_async()]

    assert list(generate()) == asyncio.run(run()) == asyncio.run(collect()) == [FIRST, SECOND]
    assert kit.everything() == before


# Two threads or two tasks overlap: both wrong, silently.


def test_two_threads_overlap_both_wrong_silently() -> None:
    before = kit.everything()
    refused: list[BaseException] = []

    def overlap() -> None:
        try:
            with deterministic(8):
                pass
        except ConcurrentScopeError as error:
            refused.append(error)

    with deterministic(7):
        first = kit.draws()
        thread = threading.Thread(target=overlap)
        thread.start()
        thread.join()
        assert [first, kit.draws()] == [FIRST, SECOND]
    assert len(refused) == 1
    assert kit.everything() == before


def test_two_tasks_overlap_both_wrong_silently() -> None:
    before = kit.everything()

    async def overlap(seed: int) -> Any:
        with deterministic(seed):
            first = kit.draws()
            await asyncio.sleep(0)
            return [first, kit.draws()]

    async def run() -> Any:
        return await asyncio.gather(overlap(7), overlap(8), return_exceptions=True)

    one, two = asyncio.run(run())
    assert one == [FIRST, SECOND]
    assert isinstance(two, ConcurrentScopeError)
    assert kit.everything() == before


def test_two_tasks_overlap_both_right_where_they_are_decorated() -> None:
    before = kit.everything()

    async def overlap(seed: int) -> Any:
        @fixed_seed(seed)
        async def body() -> Any:
            first = kit.draws()
            await asyncio.sleep(0)
            return [first, kit.draws()]

        return await body()

    async def run() -> Any:
        return await asyncio.gather(overlap(7), overlap(8))

    assert asyncio.run(run()) == [[FIRST, SECOND], kit.reference(8, 2)]
    assert kit.everything() == before


# Outer scope closed before inner: ambient state lost.


def test_outer_scope_closed_before_inner_ambient_state_lost() -> None:
    def keep_open(seed: int) -> Iterator[None]:
        with deterministic(seed):
            kit.draws()
            yield

    before = kit.everything()
    outer, inner = keep_open(7), keep_open(8)
    next(outer), next(inner)
    with pytest.warns(ScopeOrderWarning):
        next(outer, None)
    next(inner, None)
    assert kit.everything() == before


# Same object entered again while open: saved state lost.


@FORMS
def test_same_object_entered_again_while_open_saved_state_lost(form: Any) -> None:
    before, held = kit.everything(), deterministic(7)
    with held:
        assert kit.draws() == FIRST
        with held:
            assert form(held, kit.draws) == FIRST
            assert kit.draws() == FIRST
        assert kit.draws() == SECOND
    assert kit.everything() == before


# Flags set in the scope left on.


@pytest.mark.parametrize("frozen", [False, True], ids=["", "and they are frozen"])
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_flags_set_in_the_scope_left_on(strict: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kit.flags()
    if frozen:  # as torch's own test utilities do for the whole process
        module = torch.backends.flags_frozen.__globals__
        monkeypatch.setitem(module, "__allow_nonbracketed_mutation_flag", False)
        with pytest.raises(RuntimeError, match="not allowed to set"):
            torch.backends.cudnn.benchmark = True
    with deterministic(7, strict=strict):
        inside = kit.flags()
    assert inside == (True, False, True, True, not strict, strict)
    assert kit.flags() == before


# NumPy integer as seed refused; seeds from 2**32 refused, wrapped (0 and 2**32-1 collide) or ignored.


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("make", [deterministic, isolated, fixed_seed])
def test_numpy_integer_as_seed_refused(kind: Any, make: Any) -> None:
    with make(kind(7)) as held:
        assert kit.draws() == FIRST
    assert held.seed == 7
    assert type(held.seed) is int


def test_seeds_from_2_32_refused_wrapped_or_ignored() -> None:
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    seen = []
    for seed in seeds:
        with deterministic(seed):
            seen.append(kit.draws())
            entropy = np.random.default_rng().random()
        with deterministic(seed):
            assert kit.draws() == seen[-1] == kit.reference(seed)[0]
            assert np.random.default_rng().random() == entropy
    for stream in ("python", "python gaussian", "numpy", "numpy gaussian"):
        place = kit.STREAMS.index(stream)
        assert len({draws[place] for draws in seen}) == len(seeds), stream
    torch_place = kit.STREAMS.index("torch")
    assert seen[0][torch_place] != seen[3][torch_place], "0 and 2**32 - 1 collide"


# All devices seeded, only the current one restored.


@FORMS
def test_all_devices_seeded_only_the_current_one_restored(form: Any, accelerator: Accelerator) -> None:
    states = [generator.get_state() for generator in accelerator.default_generators]
    expected = torch.rand((), generator=torch.Generator().manual_seed(7)).item()
    assert form(deterministic(7), accelerator.draws) == [expected, expected]
    for generator, state in zip(accelerator.default_generators, states, strict=True):
        assert torch.equal(generator.get_state(), state)


# Seed queued for an uninitialised CUDA outlives the scope.


@FORMS
@pytest.mark.parametrize("pending", [False, True], ids=["nothing pending", "a seed pending"])
def test_seed_queued_for_an_uninitialised_cuda_outlives_the_scope(form: Any, pending: bool) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is initialised in this process")
    tracker = torch.cuda._lazy_seed_tracker
    if pending:
        torch.cuda.manual_seed_all(3)
        torch.cuda.manual_seed(4)
    before, order = vars(tracker).copy(), list(tracker.get_calls())

    def body() -> Any:
        torch.manual_seed(5)
        return list(tracker.get_calls())

    inside = form(deterministic(7), body)
    assert inside != order
    assert vars(tracker) == before
    assert list(tracker.get_calls()) == order


# CUDA initialised on entry; broken in a forked child.


def in_child(check: Callable[[], Any]) -> int:
    """Run ``check`` in a forked child; return the child's exit status, 0 if it has returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads, which Python 3.12 and later warn of
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        check()
        status = 0
    except BaseException as error:
        os.write(2, f"in the child: {error!r}\n".encode())
    finally:
        os._exit(status)


@FORMS
def test_cuda_initialised_on_entry(form: Any, accelerator: Accelerator) -> None:
    accelerator.initialized = False
    was_initialized = torch.cuda.is_initialized()
    form(deterministic(7), kit.draws)
    assert accelerator.initializations == 0
    assert torch.cuda.is_initialized() == was_initialized


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@FORMS
def test_cuda_broken_in_a_forked_child(form: Any, accelerator: Accelerator) -> None:
    def check() -> None:
        accelerator.in_bad_fork = True
        assert form(deterministic(7), kit.draws) == FIRST
        assert accelerator.initializations == 0

    assert in_child(check) == 0


# Saved state does not load under weights_only=True.


def test_saved_state_does_not_load_under_weights_only() -> None:
    file = io.BytesIO()
    state, upcoming = capture(), kit.continuation()
    torch.save({"rng": state.state_dict()}, file)
    kit.draws()
    file.seek(0)
    loaded = RngState.from_state_dict(torch.load(file, weights_only=True)["rng"])
    assert loaded == state
    with replay(loaded):
        assert [kit.draws() for _ in upcoming] == upcoming
    loaded.restore()
    assert kit.continuation() == upcoming


# User's own generators not covered.


@FORMS
@pytest.mark.parametrize(
    ("make", "roll"),
    [
        (lambda: random.Random(3), lambda rng: rng.gauss(0, 1)),
        (lambda: np.random.default_rng(3), lambda rng: rng.standard_normal()),
        (lambda: np.random.RandomState(3), lambda rng: rng.standard_normal()),
        (lambda: torch.Generator().manual_seed(3), lambda rng: torch.randn((), generator=rng).item()),
    ],
    ids=["Random", "Generator", "RandomState", "torch.Generator"],
)
def test_users_own_generators_not_covered(form: Any, make: Any, roll: Any) -> None:
    rng, twin = make(), make()
    roll(rng), roll(twin)
    held = deterministic(7, also=rng)
    first = form(held, lambda: roll(rng))
    assert form(held, lambda: roll(rng)) == first
    assert [roll(rng) for _ in range(3)] == [roll(twin) for _ in range(3)]


# Decorated function returns None.


def test_decorated_function_returns_none() -> None:
    assert fixed_seed(lambda: "value")() == "value"
    assert isolated()(lambda: "value")() == "value"

    @fixed_seed
    def generate() -> Any:
        yield 1
        return "value"

    @fixed_seed
    async def run() -> Any:
        return "value"

    generator = generate()
    next(generator)
    with pytest.raises(StopIteration) as caught:
        next(generator)
    assert caught.value.value == "value"
    assert asyncio.run(run()) == "value"
