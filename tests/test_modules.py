"""``also=model``: a module's buffers and training mode, put back exactly and without a trace in autograd."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from scoped_rng import RngState, StateMismatchError, capture, deterministic, fixed_seed, isolated, replay
from tests import kit


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.Dropout(0.25),
        nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)),
        nn.Flatten(),
    )


@pytest.fixture
def model() -> nn.Sequential:
    """A network with statistics of its own."""
    with isolated(0):
        made = network()
        made(batch())
    return made


def batch() -> torch.Tensor:
    return torch.linspace(-2, 3, 6 * 2 * 8).reshape(6, 2, 8).sin()


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def held_of(module: nn.Module) -> tuple[Any, ...]:
    """Return everything that a scope holds of a module, buffers by identity as well as by value."""
    return (
        [
            (name, buffer if buffer is None else (id(buffer), bits(buffer)))
            for name, part in module.named_modules()
            for name, buffer in part._buffers.items()
        ],
        [(name, part.training) for name, part in module.named_modules()],
        list(module.state_dict()),
    )


def parameters_of(module: nn.Module) -> list[Any]:
    return [(id(parameter), bits(parameter), parameter._version) for parameter in module.parameters()]


class TestRestoring:
    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("make", [deterministic, isolated], ids=lambda make: make.__name__)
    def test_running_statistics_are_put_back(self, model: nn.Module, form: str, make: Any) -> None:
        def body() -> None:
            before = held_of(model)
            model(batch())
            assert held_of(model) != before

        expected, ambient = held_of(model), kit.everything()
        kit.FORMS[form](make(3, also=model), body)
        assert held_of(model) == expected
        assert kit.everything() == ambient

    def test_the_count_of_batches_is_put_back(self, model: nn.Module) -> None:
        with isolated(also=model):
            model(batch())
            assert int(model[1].num_batches_tracked) == 2
        assert int(model[1].num_batches_tracked) == 1

    def test_the_mode_of_each_submodule_is_put_back(self, model: nn.Module) -> None:
        model.eval()
        model[2].train()
        with isolated(also=model):
            model.train()
            model[2].eval()
        assert [part.training for part in model.modules()] == [part is model[2] for part in model.modules()]

    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_body_that_raises_leaves_the_module_as_it_was(
        self, model: nn.Module, form: str, error: type[BaseException]
    ) -> None:
        def body() -> None:
            model(batch())
            model.eval()
            raise error("from the body")

        expected = held_of(model)
        with pytest.raises(error, match="from the body"):
            kit.FORMS[form](deterministic(3, also=model), body)
        assert held_of(model) == expected

    def test_an_entry_that_fails_later_leaves_the_module_as_it_was(self, model: nn.Module) -> None:
        class Refuses(random.Random):
            def seed(self, *args: Any) -> None:
                if args and args[0] != 1:
                    model(batch())
                    raise RuntimeError("not seeded")
                super().seed(*args)

        expected = held_of(model)
        with pytest.raises(RuntimeError, match="not seeded"), deterministic(3, also=[model, Refuses(1)]):
            pytest.fail("the body has run")
        assert held_of(model) == expected

    def test_several_modules_are_put_back_each(self, model: nn.Module) -> None:
        other = nn.BatchNorm1d(2)
        expected = held_of(model), held_of(other)
        with isolated(also=[model, other]):
            model(batch())
            other(batch())
            other.eval()
        assert (held_of(model), held_of(other)) == expected

    def test_a_module_and_a_part_of_it_may_both_be_given(self, model: nn.Sequential) -> None:
        expected = held_of(model)
        with isolated(also=[model, model[1], model]):
            model(batch())
        assert held_of(model) == expected

    def test_nested_scopes_each_put_back_what_they_found(self, model: nn.Module) -> None:
        expected = held_of(model)
        with isolated(also=model):
            model(batch())
            inner = held_of(model)
            with isolated(also=model):
                model(batch()), model.eval()
            assert held_of(model) == inner
        assert held_of(model) == expected

    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("outside", ["model", "part"])
    def test_nested_scopes_on_a_model_and_on_a_part_of_it_each_put_back_what_they_found(
        self, model: nn.Sequential, outside: str, form: str
    ) -> None:
        outer, inner = (model, model[1]) if outside == "model" else (model[1], model)

        def body() -> None:
            model(batch())
            found = held_of(inner)
            with isolated(also=inner):
                model(batch())
                inner.eval()
            assert held_of(inner) == found

        before = held_of(outer)
        kit.FORMS[form](isolated(also=outer), body)
        assert held_of(outer) == before

    def test_a_generator_may_hold_a_model_while_its_body_holds_a_part(self, model: nn.Sequential) -> None:
        @fixed_seed(3, also=model)
        def generate() -> Any:
            model(batch())
            with isolated(also=model[1]):
                model(batch())
                yield held_of(model)
                yield held_of(model)
            yield held_of(model)

        before = held_of(model)
        generator = generate()
        inside = next(generator)
        assert held_of(model) == before
        assert next(generator) == inside
        assert held_of(model) == before
        assert next(generator) != inside
        generator.close()
        assert held_of(model) == before

    def test_an_iterable_module_is_one_object(self) -> None:
        modules = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
        expected = held_of(modules)
        with deterministic(3, also=modules):
            modules[0](batch())
            modules[1](batch())
        assert held_of(modules) == expected
        assert "also[1]" not in capture(also=modules).names

    def test_a_module_without_buffers_is_held_for_its_mode(self) -> None:
        with isolated():
            module = nn.Linear(2, 2)
        with deterministic(3, also=module):
            module.eval()
        assert module.training

    @pytest.mark.parametrize("error", [GeneratorExit, None], ids=["closed", "finished"])
    def test_a_generator_and_its_caller_each_see_their_own_buffers(self, model: nn.Module, error: Any) -> None:
        @fixed_seed(3, also=model)
        def generate() -> Any:
            for _ in range(3):
                model(batch())
                yield held_of(model)

        expected = held_of(model)
        with isolated(3, also=model):
            inside = []
            for _ in range(3):
                model(batch())
                inside.append(held_of(model))
        generator = generate()
        assert next(generator) == inside[0]
        assert held_of(model) == expected
        model.eval()
        caller = held_of(model)
        assert next(generator) == inside[1]
        assert held_of(model) == caller
        if error is None:
            assert list(generator) == [inside[2]]
        else:
            generator.close()
        assert held_of(model) == caller


class TestSeeding:
    def test_nothing_of_a_module_is_seeded(self, model: nn.Module) -> None:
        expected, parameters = held_of(model), parameters_of(model)
        with deterministic(3, also=model):
            assert held_of(model) == expected
            assert parameters_of(model) == parameters
        assert parameters_of(model) == parameters

    def test_what_the_body_does_to_the_parameters_stays(self, model: nn.Sequential) -> None:
        with torch.no_grad(), isolated(also=model):
            model[0].weight.fill_(0.5)
        assert bool((model[0].weight == 0.5).all())

    def test_a_module_takes_a_position_like_any_object(self, model: nn.Module) -> None:
        first, second = random.Random(1), random.Random(1)
        with isolated(3, also=[model, first]):
            after = first.random()
        with isolated(3, also=[nn.Identity(), second]):
            assert second.random() == after

    def test_a_forward_in_training_mode_repeats(self, model: nn.Module) -> None:
        outputs = []
        for _ in range(2):
            with deterministic(3, also=model):
                outputs.append((bits(model(batch())), held_of(model)))
            with isolated():
                torch.rand(3)
        assert outputs[0] == outputs[1]


class TestAutograd:
    def gradients(self, model: nn.Module, scope: Callable[[], Any], train: bool) -> list[Any]:
        model.train(train)
        model.zero_grad()
        with scope():
            loss = model(batch()).square().sum()
        loss.backward()
        return [bits(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]

    @pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
    def test_a_forward_in_the_block_and_its_backward_behind_it(self, model: nn.Module, train: bool) -> None:
        expected = self.gradients(model, lambda: isolated(3), train)
        with isolated(0):
            fresh = network()
            fresh(batch())
        assert self.gradients(fresh, lambda: isolated(3, also=fresh), train) == expected
        assert len(expected) == 6

    def test_a_backward_in_the_block_of_a_forward_before_it(self, model: nn.Module) -> None:
        model.eval()
        loss = model(batch()).square().sum()
        with isolated(also=model):
            loss.backward()
        expected = bits(model[0].weight.grad)
        model.zero_grad()
        model(batch()).square().sum().backward()
        assert bits(model[0].weight.grad) == expected

    def test_a_backward_through_two_blocks(self, model: nn.Module) -> None:
        model.eval()
        losses = []
        for _ in range(2):
            with isolated(3, also=model):
                losses.append(model(batch()).square().sum())
        torch.stack(losses).sum().backward()

    @pytest.mark.parametrize("form", kit.FORMS)
    def test_version_counters_stay_as_they_are(self, model: nn.Module, form: str) -> None:
        versions = [buffer._version for buffer in model.buffers()]
        kit.FORMS[form](deterministic(3, also=model), lambda: None)
        assert [buffer._version for buffer in model.buffers()] == versions

    def test_a_buffer_that_requires_grad_is_put_back(self) -> None:
        module = nn.Module()
        module.register_buffer("scale", torch.ones(3, requires_grad=True))
        with isolated(also=module):
            (module.scale * 2).sum().backward()
            module.scale.data.fill_(5)
        assert module.scale.requires_grad
        assert module.scale.is_leaf
        assert bits(module.scale) == bits(torch.ones(3))

    def test_a_buffer_computed_from_parameters_stays_in_the_graph(self) -> None:
        with isolated():
            module = nn.Linear(2, 2)
        module.register_buffer("norm", module.weight.norm())
        with isolated(also=module):
            module(torch.ones(1, 2))
        module.norm.backward()
        assert module.weight.grad is not None


def buffered(**buffers: Any) -> nn.Module:
    module = nn.Module()
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer)
    return module


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "write": lambda module: module.first.fill_(7),
    "write through data": lambda module: module.first.data.fill_(7),
    "replace": lambda module: setattr(module, "first", torch.full((2, 3), 7.0)),
    "replace by another shape": lambda module: setattr(module, "first", torch.zeros(5)),
    "replace by None": lambda module: setattr(module, "first", None),
    "replace None": lambda module: setattr(module, "nothing", torch.zeros(2)),
    "register": lambda module: module.register_buffer("third", torch.zeros(2)),
    "register, not persistent": lambda module: module.register_buffer("third", torch.zeros(2), persistent=False),
    "delete": lambda module: delattr(module, "first"),
    "delete and set a parameter": lambda module: (
        delattr(module, "first"),
        setattr(module, "first", nn.Parameter(torch.zeros(1))),
    ),
    "delete and set a module": lambda module: (delattr(module, "first"), setattr(module, "first", nn.Linear(1, 1))),
    "delete and set a number": lambda module: (delattr(module, "first"), setattr(module, "first", 3)),
    "delete, not persistent": lambda module: delattr(module, "scratch"),
    "delete and register": lambda module: (
        delattr(module, "first"),
        module.register_buffer("first", torch.zeros(1), persistent=False),
    ),
    "make persistent": lambda module: module.register_buffer("scratch", torch.zeros(2)),
    "resize": lambda module: module.first.resize_(4, 4).fill_(7),
    "shrink": lambda module: module.first.resize_(1).fill_(7),
    "set": lambda module: module.first.set_(torch.zeros(6)),
    "other data": lambda module: setattr(module.first, "data", torch.zeros(2, 3)),
    "data of another dtype": lambda module: setattr(module.first, "data", torch.zeros(2, 3, dtype=torch.float64)),
    "cast": lambda module: module.double(),
    "to meta": lambda module: module.to("meta"),
    "transpose in place": lambda module: module.first.t_(),
    "load": lambda module: module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}),
    "load by assignment": lambda module: module.load_state_dict(
        {name: value + 1 for name, value in module.state_dict().items()}, assign=True
    ),
}


class TestWhatTheBodyDoesToBuffers:
    """However the body changes the table of buffers, it is put back, the very same tensors in the same order."""

    @pytest.mark.parametrize("form", ["with", "generator"])
    @pytest.mark.parametrize("change", CHANGES)
    def test_it_is_put_back(self, change: str, form: str) -> None:
        module = buffered(first=torch.arange(6.0).reshape(2, 3), nothing=None, second=torch.arange(4))
        module.register_buffer("scratch", torch.ones(2), persistent=False)
        expected = held_of(module)
        with torch.no_grad():
            kit.FORMS[form](isolated(3, also=module), lambda: CHANGES[change](module))
        assert held_of(module) == expected
        assert "first" not in {*vars(module), *module._parameters, *module._modules}

    def test_what_the_body_changes_is_there_again_when_it_goes_on(self) -> None:
        module = buffered(first=torch.zeros(2))

        @fixed_seed(3, also=module)
        def generate() -> Any:
            module.first = torch.ones(3)
            module.register_buffer("second", torch.full((2,), 4.0))
            yield
            yield bits(module.first), bits(module.second)

        generator = generate()
        next(generator)
        assert list(module._buffers) == ["first"]
        assert next(generator) == (bits(torch.ones(3)), bits(torch.full((2,), 4.0)))
        generator.close()
        assert bits(module.first) == bits(torch.zeros(2))


class TestKindsOfBuffers:
    def test_a_buffer_shared_by_two_modules_stays_shared(self) -> None:
        shared = torch.zeros(3)
        module = nn.ModuleList([buffered(mine=shared), buffered(yours=shared)])
        with isolated(also=module):
            shared.fill_(5)
        assert module[0].mine is module[1].yours is shared
        assert bits(shared) == bits(torch.zeros(3))

    def test_a_buffer_that_is_a_view_of_another_is_put_back(self) -> None:
        base = torch.arange(6.0)
        module = buffered(base=base, view=base[1:3])
        with isolated(also=module):
            base.fill_(5)
        assert bits(base) == bits(torch.arange(6.0))
        assert module.view.data_ptr() == base[1:].data_ptr()

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.bool,
            torch.uint8,
            torch.int64,
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.complex64,
            torch.float8_e4m3fn,
        ],
        ids=str,
    )
    def test_a_buffer_of_any_dtype_is_put_back_and_captured(self, dtype: torch.dtype) -> None:
        module = buffered(first=torch.tensor([[0, 1], [1, 1]]).to(dtype))
        expected, state = held_of(module), capture(also=module)
        with isolated(also=module):
            module.first.copy_(torch.zeros(2, 2))
            assert held_of(module) != expected
            assert capture(also=module).diff(state) == ["also[0]"]
            state.restore(also=module)
            assert held_of(module) == expected
            module.first.copy_(torch.zeros(2, 2))
        assert held_of(module) == expected

    @pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0])
    def test_special_values_are_put_back_to_the_bit(self, special: float) -> None:
        module = buffered(first=torch.full((2,), special))
        expected = held_of(module)
        with isolated(also=module):
            module.first.zero_()
        assert held_of(module) == expected

    @pytest.mark.parametrize(
        "strange",
        [
            torch.zeros(0, 3),
            torch.tensor(4.0),
            torch.arange(12.0).reshape(3, 4).t(),
            torch.arange(12.0)[::3],
            torch.arange(4).expand(1, -1),
            torch.ones(1).expand(5),
            torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        ],
        ids=["empty", "scalar", "transposed", "strided", "one row", "expanded", "channels last"],
    )
    def test_a_buffer_of_any_layout_is_put_back(self, strange: torch.Tensor) -> None:
        strange = strange.clone() if strange.is_contiguous() else strange
        module = buffered(first=strange)
        expected, strides = held_of(module), strange.stride()
        with isolated(also=module):
            strange.data.view(-1)[:1].fill_(9) if strange.is_contiguous() else None
        assert held_of(module) == expected
        assert strange.stride() == strides

    def test_an_expanded_buffer_that_the_body_has_written_is_put_back(self) -> None:
        row = torch.arange(3.0)
        module = buffered(first=row.expand(4, 3))
        expected = held_of(module)
        with isolated(also=module):
            row.fill_(9)
        assert held_of(module) == expected

    def test_a_sparse_buffer_is_put_back(self) -> None:
        module = buffered(first=torch.eye(3).to_sparse_coo())
        with isolated(also=module):
            module.first.zero_()
        assert torch.equal(module.first.to_dense(), torch.eye(3))

    def test_vectors_of_spectral_norm_are_put_back(self) -> None:
        with isolated(0):
            module = parametrizations.spectral_norm(nn.Linear(4, 3))
        expected = held_of(module)
        outputs = []
        for _ in range(2):
            with deterministic(3, also=module):
                loss = module(torch.ones(1, 4)).sum()
                assert held_of(module) != expected
            assert held_of(module) == expected
            loss.backward()
            outputs.append(bits(loss))
        assert outputs[0] == outputs[1]

    @pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
    def test_a_synchronised_batch_norm_is_put_back(self, train: bool) -> None:
        module = nn.SyncBatchNorm(2).train(train)
        expected = held_of(module)
        with isolated(also=module):
            module(batch())
            module.train(not train)
        assert held_of(module) == expected

    @pytest.mark.parametrize("inside", [True, False], ids=["scope inside", "scope outside"])
    def test_a_module_made_in_inference_mode_is_put_back(self, inside: bool) -> None:
        with torch.inference_mode():
            module = nn.BatchNorm1d(2)
        expected = held_of(module)
        if inside:
            with torch.inference_mode(), isolated(3, also=module):
                module(batch())
        else:
            with isolated(3, also=module), torch.inference_mode():
                module(batch())
                assert held_of(module) != expected
        assert held_of(module) == expected
        assert module.running_mean is not None
        assert module.running_mean.is_inference()

    def test_a_forward_in_inference_mode_leaves_a_common_module_as_it_was(self, model: nn.Module) -> None:
        expected = held_of(model)
        with isolated(also=model), torch.inference_mode():
            model(batch())
        assert held_of(model) == expected
        model(batch()).sum().backward()

    def test_a_lazy_module_is_refused_until_it_is_initialised(self) -> None:
        module = nn.LazyBatchNorm1d()
        ambient = kit.everything()
        with (
            pytest.raises(
                ValueError,
                match="buffers without a shape yet: running_mean, running_var; run one forward pass before the scope",
            ),
            isolated(3, also=module),
        ):
            pytest.fail("the body has run")
        assert kit.everything() == ambient
        module(batch())
        expected = held_of(module)
        with isolated(also=module):
            module(batch())
        assert held_of(module) == expected

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_a_scripted_module_is_put_back(self) -> None:
        module = torch.jit.script(nn.BatchNorm1d(2))
        expected = [bits(buffer) for buffer in module.buffers()]
        with isolated(also=module):
            module(batch())
            module.eval()
        assert [bits(buffer) for buffer in module.buffers()] == expected
        assert module.training


class Replaced(nn.Module):
    """Keeps an average by binding a new tensor each time, as many an own layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("last", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean((0, 2))
            self.last = x.detach()[: len(x) // 2]
        return x * (self.scale * (1 + self.average))[:, None]


def in_channels(norm: nn.Module, *shape: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(2, 2, 1), nn.Unflatten(2, shape) if shape else nn.Identity(), norm)


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: in_channels(nn.BatchNorm1d(2)),
    "BatchNorm2d": lambda: in_channels(nn.BatchNorm2d(2), 2, 4),
    "BatchNorm3d": lambda: in_channels(nn.BatchNorm3d(2), 2, 2, 2),
    "BatchNorm1d, cumulative": lambda: in_channels(nn.BatchNorm1d(2, momentum=None)),
    "BatchNorm1d, not affine": lambda: in_channels(nn.BatchNorm1d(2, affine=False)),
    "BatchNorm1d, no statistics": lambda: in_channels(nn.BatchNorm1d(2, track_running_stats=False)),
    "BatchNorm1d, of doubles": lambda: in_channels(nn.BatchNorm1d(2)).double(),
    "SyncBatchNorm": lambda: in_channels(nn.SyncBatchNorm(2)),
    "InstanceNorm1d": lambda: in_channels(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv1d(2, 3, 2)),
    "spectral_norm by hooks": lambda: nn.utils.spectral_norm(nn.Conv1d(2, 3, 2)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv1d(2, 3, 2)),
    "shared": lambda: (lambda norm: nn.Sequential(norm, nn.Dropout(0.25), norm))(nn.BatchNorm1d(2)),
    "replaced": Replaced,
    "compiled": lambda: torch.compile(in_channels(nn.BatchNorm1d(2)), backend="eager"),
    "compiled in place": lambda: compiled_in_place(in_channels(nn.BatchNorm1d(2))),
}


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", STATEFUL)
class TestKindsOfModules:
    """A forward in training mode, of everything in torch that keeps something of it."""

    def run(self, kind: str, form: str | None, held: bool) -> tuple[Any, nn.Module, Any]:
        """Return the output and the gradients of a forward in a block and its backward behind it."""
        with isolated(0):
            module = STATEFUL[kind]()
        before = held_of(module)
        x = batch().to(next(module.parameters()).dtype)
        scope = deterministic(3, also=module if held else ())
        for _ in range(2 if held else 1):
            output = module(x) if form is None else kit.FORMS[form](scope, lambda: module(x))
        output.square().sum().backward()
        return (bits(output), [bits(parameter.grad) for parameter in module.parameters()]), module, before

    @pytest.mark.parametrize("form", kit.FORMS)
    def test_it_repeats_and_is_put_back_and_gradients_are_those_of_an_undisturbed_run(
        self, kind: str, form: str
    ) -> None:
        expected, _, _ = self.run(kind, "with", held=False)
        ambient = kit.everything()
        again, module, before = self.run(kind, form, held=True)
        assert again == expected
        assert held_of(module) == before
        assert kit.everything() == ambient

    @pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
    def test_a_body_that_raises_leaves_it_as_it_was(self, kind: str, error: type[BaseException]) -> None:
        with isolated(0):
            module = STATEFUL[kind]()
        before = held_of(module)
        with pytest.raises(error, match="from the body"), isolated(3, also=module):
            module(batch().to(next(module.parameters()).dtype))
            module.eval()
            raise error("from the body")
        assert held_of(module) == before

    def test_training_goes_on_as_if_nothing_had_been(self, kind: str) -> None:
        def train(disturbed: bool) -> list[Any]:
            with isolated(0):
                module = STATEFUL[kind]()
                x = batch().to(next(module.parameters()).dtype)
                optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
                for _ in range(3):
                    optimizer.zero_grad()
                    module(x).square().mean().backward()
                    if disturbed:
                        with deterministic(3, also=module):
                            module(2 * x)
                    optimizer.step()
                return [bits(tensor) for tensor in (*module.parameters(), *module.buffers())]

        assert train(True) == train(False)


class TestFunctionalCalls:
    @pytest.mark.parametrize("form", kit.FORMS)
    def test_a_call_with_other_buffers_changes_those_and_leaves_the_module(self, model: nn.Module, form: str) -> None:
        others = {name: buffer.clone() for name, buffer in model.named_buffers()}
        before, first = held_of(model), {name: bits(buffer) for name, buffer in others.items()}
        kit.FORMS[form](deterministic(3, also=model), lambda: functional_call(model, others, (batch(),)))
        assert held_of(model) == before
        assert {name: bits(buffer) for name, buffer in others.items()} != first

    def test_a_call_with_other_parameters_has_the_gradients_of_an_undisturbed_one(self, model: nn.Module) -> None:
        def gradients(also: Any) -> list[Any]:
            others = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
            with deterministic(3, also=also):
                loss = functional_call(model, others, (batch(),)).square().sum()
            loss.backward()
            return [bits(parameter.grad) for parameter in others.values()]

        before = held_of(model)
        held = gradients(model)
        assert held_of(model) == before
        assert gradients(()) == held
        assert held_of(model) != before

    def test_a_transform_round_the_call_works(self, model: nn.Module) -> None:
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def loss(values: Any) -> torch.Tensor:
            result: torch.Tensor = functional_call(model, values, (batch(),)).square().sum()
            return result

        before, results = held_of(model), []
        for _ in range(2):
            with deterministic(3, also=model.eval()):
                results.append({name: bits(value) for name, value in torch.func.grad(loss)(parameters).items()})
            model.train()
            assert held_of(model) == before
        assert results[0] == results[1]


class TestSeveralDevices:
    def test_buffers_on_several_devices_are_put_back_each_on_its_own(self) -> None:
        module = nn.ModuleList([buffered(first=torch.zeros(2)), buffered(second=torch.zeros(2, device="meta"))])
        kept = module[1].second
        with isolated(3, also=module):
            module[0].first.fill_(1)
            module[1].second = torch.zeros(3)
        assert bits(module[0].first) == bits(torch.zeros(2))
        assert module[1].second is kept
        assert kept.is_meta


def allocated_by(run: Callable[[], Any]) -> int:
    """Return how many bytes of tensors a function allocates in all."""
    with torch.autograd.profiler.profile(profile_memory=True, use_cpu=True) as profile:
        run()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.function_events)


def test_one_copy_of_the_buffers_is_made_and_none_of_the_parameters() -> None:
    shared = torch.zeros(1 << 18)
    module = nn.ModuleList([buffered(first=shared), buffered(second=shared, other=torch.zeros(1 << 16))])
    with isolated():
        module.append(nn.Linear(1 << 10, 1 << 9))

    def enter() -> None:
        with isolated(3, also=module):
            pass

    enter()
    buffers, parameters = 4 * ((1 << 18) + (1 << 16)), 4 << 19
    assert buffers <= allocated_by(enter) < buffers + 100_000 < parameters


class TestStates:
    def test_a_forward_in_training_mode_is_replayed_exactly(self, model: nn.Module) -> None:
        state = capture(also=model)
        first = bits(model(batch())), [bits(buffer) for buffer in model.buffers()]
        model(batch())
        expected, ambient = held_of(model), kit.everything()
        with replay(state, also=model):
            again = bits(model(batch())), [bits(buffer) for buffer in model.buffers()]
        assert again == first
        assert held_of(model) == expected
        assert kit.everything() == ambient

    def test_restoring_puts_values_and_modes_into_the_buffers_that_are_there(self, model: nn.Module) -> None:
        state, expected = capture(also=model), held_of(model)
        model(batch())
        model.eval()
        state.restore(also=model)
        assert held_of(model) == expected

    def test_a_state_goes_into_another_model_of_the_same_shape(self, model: nn.Module) -> None:
        with isolated():
            other = network()
        state = RngState.from_state_dict(capture(also=model).state_dict())
        state.restore(also=other)
        assert [bits(buffer) for buffer in other.buffers()] == [bits(buffer) for buffer in model.buffers()]
        assert capture(also=other) == state

    def test_a_state_does_not_change_with_the_model(self, model: nn.Module) -> None:
        state = capture(also=model)
        digest = state.digest()
        model(batch())
        assert state.digest() == digest
        assert "also[0]" in capture(also=model).diff(state)

    def test_a_drawn_forward_differs_in_the_module_by_name(self, model: nn.Sequential) -> None:
        model[2].eval()
        before = capture(also=model)
        model(batch())
        assert capture(also=model).diff(before) == ["also[0]"]
        model.eval()
        with isolated(also=model):
            before = capture(also=model)
            model.train()
            assert capture(also=model).diff(before) == ["also[0]"]

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (lambda: nn.BatchNorm1d(3), "'also[0]' is of another buffers in the state"),
            (lambda: nn.BatchNorm1d(2).double(), "'also[0]' is of another buffers in the state"),
            (lambda: nn.Sequential(nn.BatchNorm1d(2)), "'also[0]' is of another modules in the state"),
            (lambda: torch.Generator(), "'also[0]' is of another kind in the state: 'buffers', here it is 'torch'"),
        ],
        ids=["shape", "dtype", "structure", "kind"],
    )
    def test_a_state_of_another_object_is_refused_and_nothing_is_changed(
        self, other: Callable[[], Any], message: str
    ) -> None:
        state = capture(also=nn.BatchNorm1d(2))
        subject = other()
        expected, ambient = capture(also=subject), kit.everything()
        with pytest.raises(StateMismatchError, match=re.escape(message)):
            state.restore(also=subject)
        with pytest.raises(StateMismatchError, match=re.escape(message)), replay(state, also=subject):
            pytest.fail("the body has run")
        assert capture(also=subject) == expected
        assert kit.everything() == ambient
