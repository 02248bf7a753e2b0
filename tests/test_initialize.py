"""``initialize``: every module from a seed of its own, whatever else is in the model."""

from __future__ import annotations

import functools
import random
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode

from scoped_rng import ConcurrentScopeError, DeterminismWarning, deterministic, fold_in, isolated
from scoped_rng.nn import Initialized, initialize
from tests import kit
from tests.test_interrupts import Run, sweep


def make(build: Callable[[], nn.Module]) -> Any:
    """Build a module without moving a stream."""
    with isolated():
        return build()


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def contents(model: nn.Module) -> dict[str, Any]:
    """Return the bits of all parameters and buffers by name."""
    return {name: bits(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def parts(model: nn.Module) -> dict[str, Any]:
    """Return the bits of each child."""
    return {name: contents(child) for name, child in model.named_children()}


def spoil(model: nn.Module) -> None:
    """Fill everything with what no initialisation leaves."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(77)


def missed_of(model: nn.Module, seed: int = 0, init: Any = None) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeterminismWarning)
        return initialize(model, seed, init).missed


def xavier(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)


SIMPLE: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(5, 3),
    "Linear without bias": lambda: nn.Linear(5, 3, bias=False),
    "Linear of doubles": lambda: nn.Linear(5, 3, dtype=torch.float64),
    "Linear of bfloat16": lambda: nn.Linear(5, 3, dtype=torch.bfloat16),
    "Bilinear": lambda: nn.Bilinear(3, 4, 2),
    "Conv1d": lambda: nn.Conv1d(2, 3, 3),
    "Conv2d": lambda: nn.Conv2d(2, 4, 3, groups=2),
    "Conv3d": lambda: nn.Conv3d(2, 3, 2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(2, 3, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 3, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "Embedding": lambda: nn.Embedding(7, 3),
    "Embedding with padding": lambda: nn.Embedding(7, 3, padding_idx=2),
    "EmbeddingBag": lambda: nn.EmbeddingBag(7, 3),
    "RNN": lambda: nn.RNN(3, 4),
    "LSTM": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "LSTM with projection": lambda: nn.LSTM(3, 4, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4, batch_first=True),
    "RNNCell": lambda: nn.RNNCell(3, 4),
    "LSTMCell": lambda: nn.LSTMCell(3, 4),
    "GRUCell": lambda: nn.GRUCell(3, 4),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm2d not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "BatchNorm3d without statistics": lambda: nn.BatchNorm3d(4, track_running_stats=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "PReLU": lambda: nn.PReLU(3),
}


class TestOneModule:
    @pytest.mark.parametrize("kind", SIMPLE)
    @pytest.mark.parametrize("seed", [0, 2**64 - 1])
    def test_the_numbers_are_those_of_constructing_it_under_its_own_seed(self, kind: str, seed: int) -> None:
        model = make(lambda: nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), SIMPLE[kind]())}))
        spoil(model)
        assert initialize(model, seed).missed == []
        with deterministic(fold_in(seed, "encoder.1")):
            expected = SIMPLE[kind]()
        assert contents(model.encoder[1]) == contents(expected)

    def test_the_model_itself_has_the_empty_name(self) -> None:
        model = make(lambda: nn.Linear(3, 2))
        assert initialize(model, 5) == Initialized({"": fold_in(5, "")}, [], [], [])
        with deterministic(fold_in(5, "")):
            expected = nn.Linear(3, 2)
        assert contents(model) == contents(expected)

    def test_equal_modules_of_different_names_differ(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
        initialize(model, 0)
        assert not torch.equal(model[0].weight, model[1].weight)

    def test_another_seed_gives_other_numbers(self) -> None:
        model = make(lambda: nn.Linear(3, 3))
        initialize(model, 0)
        first = contents(model)
        initialize(model, 1)
        assert contents(model) != first
        initialize(model, 0)
        assert contents(model) == first


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the greatest distance of two distributions, over what it is at a level of one in a thousand."""
    both = np.sort(np.concatenate([first, second]))
    distance = np.abs(
        np.searchsorted(np.sort(first), both, "right") / len(first)
        - np.searchsorted(np.sort(second), both, "right") / len(second)
    ).max()
    return float(distance / (1.95 * np.sqrt(1 / len(first) + 1 / len(second))))


COMPOSED: dict[str, Callable[[], nn.Module]] = {
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
    "MultiheadAttention with all": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False
    ),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(4, 2, 8),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8),
}


class TestModulesWithSubmodules:
    @pytest.mark.parametrize("kind", COMPOSED)
    @pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
    def test_the_distribution_is_that_of_torch(self, kind: str) -> None:
        model = make(COMPOSED[kind])
        ours: dict[str, list[float]] = {name: [] for name, _ in model.named_parameters()}
        torchs: dict[str, list[float]] = {name: [] for name in ours}
        with isolated(0):
            for seed in range(100):
                spoil(model)
                initialize(model, seed)
                for name, parameter in model.named_parameters():
                    ours[name] += parameter.flatten().tolist()
                for name, parameter in COMPOSED[kind]().named_parameters():
                    torchs[name] += parameter.flatten().tolist()
        constant = {name for name, values in torchs.items() if len(set(values)) == 1}
        assert {name: set(ours[name]) for name in constant} == {name: set(torchs[name]) for name in constant}
        assert any(name.endswith("in_proj_bias") and set(ours[name]) == {0.0} for name in constant)
        assert any(name.endswith("out_proj.bias") and set(ours[name]) == {0.0} for name in constant)
        distances = {name: kolmogorov_smirnov(ours[name], torchs[name]) for name in ours if name not in constant}
        assert {name: distance for name, distance in distances.items() if distance > 1} == {}

    def test_the_distances_tell_distributions_apart(self) -> None:
        uniform, normal = np.random.RandomState(0).uniform(-1, 1, 2000), np.random.RandomState(0).normal(0, 0.577, 2000)
        assert kolmogorov_smirnov(uniform, normal) > 1

    @pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
    def test_layers_of_an_encoder_differ_though_torch_copies_one(self) -> None:
        model = make(COMPOSED["TransformerEncoder"])
        assert torch.equal(model.layers[0].linear1.weight, model.layers[1].linear1.weight)
        assert initialize(model, 0).missed == []
        assert not torch.equal(model.layers[0].linear1.weight, model.layers[1].linear1.weight)

    @pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
    def test_children_come_first(self) -> None:
        model = make(lambda: nn.Transformer(4, 2, 1, 1, 8))
        order = list(initialize(model, 0).seeds)
        assert order[-1] == ""
        for name in order:
            assert all(order.index(child) < order.index(name) for child in order if child.startswith(f"{name}."))

    def test_a_module_that_reaches_into_its_children_overrides_them(self) -> None:
        class Parent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.child = nn.Linear(2, 2)

            def reset_parameters(self) -> None:
                nn.init.constant_(self.child.weight, 3)

        model = make(Parent)
        initialize(model, 0)
        assert bool((model.child.weight == 3).all())
        with deterministic(fold_in(0, "child")):
            assert bits(model.child.bias) == bits(nn.Linear(2, 2).bias)

    @pytest.mark.parametrize("names", ["b", "ab", "xab"])
    def test_a_childs_method_that_a_parent_calls_draws_from_the_childs_own_seed(self, names: str) -> None:
        class Layers(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})

            def reset_parameters(self) -> None:
                kit.draws()
                for layer in self.layers.values():
                    nn.init.constant_(layer.weight, 3)
                    assert layer.reset_parameters() is None

        model = make(Layers)
        assert list(initialize(model, 0).seeds)[-1] == ""
        with deterministic(fold_in(0, "layers.b")):
            assert contents(model.layers["b"]) == contents(nn.Linear(2, 2))
        assert not any("reset_parameters" in vars(module) for module in model.modules())

    def test_a_childs_method_gets_the_parents_arguments_and_gives_its_result(self) -> None:
        class Child(nn.Linear):
            def reset_parameters(self, value: float = 0.0) -> Any:
                nn.init.constant_(self.weight, value)
                nn.init.constant_(self.bias, random.random())
                return self

        class Parent(nn.Sequential):
            def reset_parameters(self) -> None:
                assert self[0].reset_parameters(value=4.0) is self[0]

        model = make(lambda: Parent(Child(2, 2)))
        initialize(model, 0)
        with deterministic(fold_in(0, "0")):
            drawn = random.random()
        assert model[0].weight.unique().item() == 4
        assert model[0].bias.unique().item() == pytest.approx(drawn)

    def test_a_method_that_was_replaced_meanwhile_stays_replaced(self) -> None:
        def other() -> None: ...

        model = make(lambda: nn.Linear(2, 2))
        initialize(model, 0, lambda name, module: setattr(module, "reset_parameters", other))
        assert model.reset_parameters is other

    def test_of_two_methods_the_public_one_is_called(self) -> None:
        class Both(nn.Linear):
            def _reset_parameters(self) -> None:
                raise AssertionError("called")

        assert initialize(make(lambda: Both(2, 2)), 0).missed == []

    @pytest.mark.parametrize("nothing", [None, True])
    def test_a_method_that_is_switched_off_is_passed_over(self, nothing: Any) -> None:
        model = make(lambda: nn.Linear(2, 2))
        model.reset_parameters = nothing
        expected = contents(model)
        assert missed_of(model) == ["weight", "bias"]
        assert contents(model) == expected


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: nn.Conv2d(3, 4, 3),
    "stem_norm": lambda: nn.BatchNorm2d(4),
    "stem_act": lambda: nn.PReLU(),
    **{
        f"block{number}": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 4))
        for number in range(6)
    },
    **{f"attention{number}": lambda: nn.MultiheadAttention(4, 2) for number in range(3)},
    **{f"gru{number}": lambda: nn.GRU(4, 4) for number in range(3)},
    **{f"mlp{number}": lambda: nn.Linear(4, 4) for number in range(4)},
    "words": lambda: nn.Embedding(9, 4),
    "head": lambda: nn.Linear(4, 10),
}


def network(names: Sequence[str], seed: int = 0) -> nn.Sequential:
    with isolated():
        model = nn.Sequential(OrderedDict((name, LAYERS.get(name, LAYERS["mlp0"])()) for name in names))
    assert initialize(model, seed).missed == []
    return model


class TestOtherLayers:
    """What else is in the model, and where, changes no weight of a layer."""

    def test_a_layer_inserted_in_the_middle_leaves_the_others_to_the_bit(self) -> None:
        assert len(LAYERS) >= 20
        names = list(LAYERS)
        before, after = parts(network(names)), parts(network([*names[:10], "inserted", *names[10:]]))
        del after["inserted"]
        assert after == before

    def test_plain_construction_changes_them(self) -> None:
        def plain(names: Sequence[str]) -> dict[str, Any]:
            with isolated(0):
                return parts(nn.Sequential(OrderedDict((name, LAYERS.get(name, LAYERS["mlp0"])()) for name in names)))

        names = list(LAYERS)
        before, after = plain(names), plain([*names[:10], "inserted", *names[10:]])
        assert after["head"] != before["head"]

    def test_a_layer_that_is_removed_leaves_the_others_to_the_bit(self) -> None:
        names = list(LAYERS)
        before, after = parts(network(names)), parts(network([*names[:10], *names[11:]]))
        del before[names[10]]
        assert after == before

    def test_the_order_of_layers_does_not_matter(self) -> None:
        assert parts(network(list(LAYERS))) == parts(network(list(reversed(LAYERS))))

    @given(names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6, unique=True))
    def test_a_layer_is_what_it_is_alone(self, names: list[str]) -> None:
        together = parts(network(names))
        assert together == {name: parts(network([name]))[name] for name in names}

    def test_what_a_layer_draws_changes_no_other(self) -> None:
        model, wider = (
            make(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))),
            make(lambda: nn.Sequential(nn.Linear(200, 2), nn.Linear(2, 2))),
        )
        initialize(model, 0)
        initialize(wider, 0)
        assert contents(model[1]) == contents(wider[1])


class TestInit:
    def test_it_is_called_for_every_module_by_name(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2))))
        called: list[tuple[str, nn.Module]] = []
        done = initialize(model, 0, lambda name, module: called.append((name, module)))
        assert called == [("0", model[0]), ("1", model[1]), ("2.0", model[2][0]), ("2", model[2]), ("", model)]
        assert done.seeds == {name: fold_in(0, name) for name, _ in called}

    def test_it_begins_at_the_modules_seed_after_the_method(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(3, 2)))
        initialize(model, 4, xavier)
        with deterministic(fold_in(4, "0")):
            weight = nn.init.xavier_normal_(torch.empty(2, 3))
        with deterministic(fold_in(4, "0")):
            bias = nn.Linear(3, 2).bias
        assert bits(model[0].weight) == bits(weight)
        assert bits(model[0].bias) == bits(bias)

    def test_it_may_write_without_leaving_autograd_itself(self) -> None:
        model = make(lambda: nn.Linear(3, 2))
        initialize(model, 4, lambda name, module: module.weight.fill_(0.5))
        assert bool((model.weight == 0.5).all())
        assert model.weight.requires_grad
        assert model.weight.is_leaf

    def test_it_may_draw_from_every_library(self) -> None:
        model, drawn = make(lambda: nn.Sequential(nn.ReLU())), []
        initialize(model, 4, lambda name, module: drawn.append((name, *kit.draws())))
        assert drawn == [(name, *kit.reference(fold_in(4, name))[0]) for name in ("0", "")]

    def test_it_may_add_modules_which_are_not_initialised(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        done = initialize(model, 0, lambda name, module: None if name else module.append(nn.PReLU()))
        assert list(done.seeds) == ["0", "1", ""]
        assert done.missed == []

    def test_it_reaches_what_no_method_reaches(self) -> None:
        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(torch.ones(3))

        def init(name: str, module: nn.Module) -> None:
            if isinstance(module, Tokens):
                nn.init.normal_(module.token)

        assert initialize(Tokens(), 0, init).missed == []


class Bare(nn.Module):
    """A module with parameters and a method of the test's own."""

    def __init__(self, reset: Callable[[Bare], Any] | None, **shapes: Any) -> None:
        super().__init__()
        for name, value in (shapes or {"weight": torch.ones(3)}).items():
            self.register_parameter(name, nn.Parameter(value))
        if reset is not None:
            self.reset_parameters = functools.partial(reset, self)


def replace(module: Bare) -> None:
    module.weight = nn.Parameter(torch.rand(3))


def replace_data(module: Bare) -> None:
    module.weight.data = torch.rand(3)


REACHING: dict[str, Callable[[Any], Any]] = {
    "in place": lambda module: nn.init.normal_(module.weight),
    "through data": lambda module: module.weight.data.normal_(),
    "through detach": lambda module: module.weight.detach().normal_(),
    "through a view": lambda module: module.weight.data[1:].view(2, 1).t().normal_(),
    "the value that it has": lambda module: module.weight.data.fill_(1),
    "as out=": lambda module: torch.add(torch.ones(3), 1, out=module.weight.data),
    "by copying": lambda module: module.weight.data.copy_(torch.from_numpy(np.random.rand(3))),
    "by indices": lambda module: module.weight.data.__setitem__(0, 4.0),
    "as one of several": lambda module: torch._foreach_zero_([module.weight.data, torch.ones(2)]),
    "other data": replace_data,
    "by set_": lambda module: module.weight.data.set_(torch.rand(3)),
    "another parameter": replace,
}
MISSING: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda module: None,
    "a read": lambda module: (module.weight + 1).sum(),
    "a copy": lambda module: module.weight.data.clone().normal_(),
    "a temporary": lambda module: nn.init.normal_(torch.empty(3)),
    "requires_grad": lambda module: module.weight.requires_grad_(True),
}


class TestWhatWasReached:
    @pytest.mark.parametrize("how", REACHING)
    def test_a_write_counts(self, how: str) -> None:
        assert initialize(Bare(REACHING[how]), 0).missed == []

    @pytest.mark.parametrize("how", MISSING)
    def test_anything_else_does_not(self, how: str) -> None:
        assert missed_of(Bare(MISSING[how])) == ["weight"]

    def test_what_is_missed_is_returned_and_warned_of_by_name_and_left_alone(self) -> None:
        model = make(lambda: nn.ModuleDict({"a": Bare(None), "b": nn.Linear(2, 2), "c": nn.Sequential(Bare(None))}))
        message = (
            "initialize has not reached a.weight, c.0.weight: no reset_parameters writes to them, so they are as they "
            "were; give their modules one, or set them in init="
        )
        with pytest.warns(DeterminismWarning, match=f"^{re.escape(message)}$") as caught:
            done = initialize(model, 0)
        assert done == Initialized({"b": fold_in(0, "b")}, ["a.weight", "c.0.weight"], [], [])
        assert bool((model.a.weight == 1).all())
        assert [warning.filename for warning in caught] == [__file__]

    def test_a_parameter_beside_one_that_is_reached_is_missed(self) -> None:
        model = Bare(lambda module: module.weight.data.zero_(), weight=torch.ones(2), scale=torch.ones(2))
        assert missed_of(model) == ["scale"]

    def test_parameters_that_lie_in_one_storage_are_told_apart(self) -> None:
        flat = torch.ones(6)
        model = Bare(lambda module: module.first.data.zero_(), first=flat[:3], second=flat[3:])
        assert missed_of(model) == ["second"]
        model = Bare(lambda module: flat[2:4].zero_(), first=flat[:2], second=flat[2:3], third=flat[3:])
        assert missed_of(model) == ["first"]

    def test_an_empty_parameter_is_never_missed(self) -> None:
        assert missed_of(Bare(None, weight=torch.ones(0))) == []

    def test_a_model_with_nothing_to_initialise_is_warned_of(self) -> None:
        message = "initialize has found nothing to do: the model has no parameters, and no module a reset_parameters"
        with pytest.warns(DeterminismWarning, match=message):
            assert initialize(nn.Sequential(nn.ReLU()), 0) == Initialized({}, [], [], [])
        assert initialize(nn.BatchNorm1d(2, affine=False), 0).kept == []

    def test_a_parameter_that_a_parent_writes_counts(self) -> None:
        model = nn.Sequential(Bare(None))
        model.reset_parameters = lambda: nn.init.zeros_(model[0].weight)
        assert initialize(model, 0).missed == []

    def test_a_write_past_torch_is_not_seen(self) -> None:
        def reset(module: Bare) -> None:
            module.weight.data.numpy()[:] = np.random.rand(3)

        assert missed_of(Bare(reset)) == ["weight"]

    def test_a_fake_parameter_counts_as_any_other(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            model = Bare(lambda module: nn.init.normal_(module.first), first=torch.ones(2), second=torch.ones(2))
            assert missed_of(model) == ["second"]

    def test_warnings_as_errors_come_when_all_is_done(self) -> None:
        model = make(lambda: nn.ModuleList([Bare(None), nn.Linear(2, 2)]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DeterminismWarning, match=re.escape("has not reached 0.weight")):
                initialize(model, 0)
        with deterministic(fold_in(0, "1")):
            assert contents(model[1]) == contents(nn.Linear(2, 2))


def symmetric(module: nn.Module) -> nn.Module:
    class Symmetric(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.triu() + x.triu(1).T

    return parametrize.register_parametrization(module, "weight", Symmetric())


PARAMETRISED: dict[str, tuple[Callable[[nn.Module], nn.Module], list[str]]] = {
    "weight_norm": (
        parametrizations.weight_norm,
        ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    ),
    "spectral_norm": (parametrizations.spectral_norm, ["parametrizations.weight.original"]),
    "orthogonal": (parametrizations.orthogonal, ["parametrizations.weight.original"]),
    "a user's": (symmetric, ["parametrizations.weight.original"]),
    "weight_norm by hooks": (nn.utils.weight_norm, ["weight_g", "weight_v"]),
    "spectral_norm by hooks": (nn.utils.spectral_norm, ["weight_orig"]),
}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*norm. is deprecated:FutureWarning")
class TestParametrised:
    @pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
    @pytest.mark.parametrize("kind", PARAMETRISED)
    def test_its_parameters_are_missed_by_name_and_its_bias_is_not(self, kind: str, used: bool) -> None:
        wrap, expected = PARAMETRISED[kind]
        model = make(lambda: nn.Sequential(OrderedDict(fc=wrap(nn.Linear(3, 3)))))
        if used:
            model(torch.ones(1, 3))
        before = {name: bits(parameter) for name, parameter in model.named_parameters()}
        assert missed_of(model) == [f"fc.{name}" for name in expected]
        after = {name: bits(parameter) for name, parameter in model.named_parameters()}
        assert sorted(name for name in before if before[name] != after[name]) == ["fc.bias"]
        model(torch.ones(1, 3)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_init_reaches_them_by_assigning(self) -> None:
        model = make(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))))

        def init(name: str, module: nn.Module) -> None:
            if parametrize.is_parametrized(module, "weight"):
                module.weight = nn.init.normal_(torch.empty(2, 3))

        assert initialize(model, 0, init).missed == []
        with deterministic(fold_in(0, "0")):
            expected = nn.init.normal_(torch.empty(2, 3))
        torch.testing.assert_close(model[0].weight.detach(), expected)

    def normed(self) -> nn.Module:
        model = make(lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4))))
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(torch.nan)
        return model

    def test_reading_a_parametrised_weight_moves_and_reaches_no_buffer_of_it(self) -> None:
        def init(name: str, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                module.weight = torch.randn(4, 4)
                assert module.weight.isnan().all()

        model = self.normed()
        done = initialize(model, 0, init)
        vectors = [f"0.parametrizations.weight.0.{name}" for name in ("_u", "_v")]
        assert (done.missed, done.kept) == ([], vectors)
        assert all(buffer.isnan().all() for buffer in model.buffers())
        for buffer in model.buffers():
            buffer.fill_(0.5)
        initialize(model, 0, init_spectral)
        expected = contents(model)
        initialize(model, 0, init_spectral)
        assert contents(model) == expected
        model(torch.ones(1, 4))
        assert contents(model) != expected  # power iteration goes on behind it

    def test_vectors_that_init_writes_itself_stay(self) -> None:
        def init(name: str, module: nn.Module) -> None:
            for buffer in module.buffers(recurse=False):
                buffer.fill_(0.5)

        model = self.normed()
        with pytest.warns(DeterminismWarning):
            assert initialize(model, 0, init).kept == []
        assert all((buffer == 0.5).all() for buffer in model.buffers())

    def test_a_parametrisation_that_fails_leaves_its_buffers(self) -> None:
        class Failing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("count", torch.zeros(()))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.count += 1
                if self.count > 2:
                    raise KeyError("third")
                return x

        with isolated():
            model = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Failing())
        model.parametrizations.weight[0].count.fill_(2)
        with pytest.raises(KeyError, match="third"):
            initialize(model, 0)
        assert model.parametrizations.weight[0].count == 2


def init_spectral(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight = torch.randn(4, 4)


class Tied(nn.Module):
    """Words go in and come out by one matrix."""

    def __init__(self, first: str = "words", bias: bool = True) -> None:
        super().__init__()
        words, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=bias)
        head.weight = words.weight
        for name, module in (
            {"words": words, "head": head}.items() if first == "words" else (("head", head), ("words", words))
        ):
            self.add_module(name, module)


class TestTied:
    @pytest.mark.parametrize("init", [None, xavier], ids=["method", "init"])
    def test_a_tied_parameter_is_initialised_under_its_first_name(self, init: Any) -> None:
        model = make(Tied)
        done = initialize(model, 0, init)
        assert done.missed == []
        assert list(done.seeds)[:2] == ["words", "head"]
        with deterministic(fold_in(0, "words")):
            words = nn.Embedding(5, 3)
        with deterministic(fold_in(0, "head")):
            head = nn.Linear(3, 5)
        assert model.head.weight is model.words.weight
        assert bits(model.words.weight) == bits(words.weight)
        assert bits(model.head.bias) == bits(head.bias)

    def test_a_write_under_a_later_name_is_returned(self) -> None:
        model = make(Tied)
        assert initialize(model, 0, lambda name, module: None).tied == ["head.weight"]
        model.head.reset_parameters = model.head.bias.data.zero_
        assert initialize(model, 0).tied == []
        done = initialize(model, 0, lambda name, module: module.weight.fill_(7) if name == "head" else None)
        assert done.tied == ["head.weight"]
        with deterministic(fold_in(0, "words")):
            assert bits(model.words.weight) == bits(nn.Embedding(5, 3).weight)

    @pytest.mark.parametrize("part_first", [True, False])
    def test_what_a_part_and_the_whole_share_is_initialised_by_the_first(self, part_first: bool) -> None:
        def fill(value: float) -> Callable[[Bare], Any]:
            return lambda module: module.weight.data.fill_(value)

        whole = Bare(fill(2), weight=torch.full((4, 3), 77.0))
        part = Bare(fill(1))
        part.weight = nn.Parameter(whole.weight.data[:2])
        model = nn.Sequential(*((part, whole) if part_first else (whole, part)))
        done = initialize(model, 0)
        assert (done.missed, done.tied) == ([], ["1.weight"])
        assert whole.weight[:, 0].tolist() == ([1, 1, 2, 2] if part_first else [2, 2, 2, 2])

    def test_in_another_order_the_first_name_is_another(self) -> None:
        model = make(lambda: Tied("head"))
        initialize(model, 0)
        with deterministic(fold_in(0, "head")):
            assert bits(model.words.weight) == bits(nn.Linear(3, 5).weight)

    def test_a_module_above_both_may_override(self) -> None:
        model = make(Tied)
        model.reset_parameters = lambda: nn.init.constant_(model.words.weight, 2)
        initialize(model, 0)
        assert bool((model.head.weight == 2).all())

    def test_a_module_above_the_later_one_alone_may_not(self) -> None:
        class Head(nn.Sequential):
            def reset_parameters(self) -> None:
                for parameter in self.parameters():
                    nn.init.constant_(parameter, 2)

        model = make(lambda: nn.Sequential(OrderedDict(words=nn.Embedding(5, 3), top=Head(nn.Linear(3, 5)))))
        model.top[0].weight = model.words.weight
        initialize(model, 0)
        with deterministic(fold_in(0, "words")):
            assert bits(model.words.weight) == bits(nn.Embedding(5, 3).weight)
        assert bool((model.top[0].bias == 2).all())

    def test_a_name_that_begins_like_another_is_not_inside_it(self) -> None:
        model = make(lambda: nn.Sequential(OrderedDict(layer10=nn.Linear(3, 3), layer1=nn.Linear(3, 3))))
        model.layer1.weight = model.layer10.weight
        initialize(model, 0)
        with deterministic(fold_in(0, "layer10")):
            assert bits(model.layer1.weight) == bits(nn.Linear(3, 3).weight)

    def test_where_the_first_has_no_method_the_next_one_initialises(self) -> None:
        model = make(lambda: nn.Sequential(Bare(None), nn.Linear(3, 2), nn.Linear(3, 2)))
        model[0].weight = model[2].weight = model[1].weight
        assert initialize(model, 0).missed == []
        with deterministic(fold_in(0, "1")):
            assert bits(model[0].weight) == bits(nn.Linear(3, 2).weight)

    def test_a_parameter_that_the_model_holds_itself_is_left_to_the_child(self) -> None:
        model = make(lambda: nn.Sequential(OrderedDict(words=nn.Embedding(5, 3))))
        model.tied = model.words.weight
        assert initialize(model, 0).missed == []
        with deterministic(fold_in(0, "words")):
            assert bits(model.tied) == bits(nn.Embedding(5, 3).weight)

    def test_later_data_is_put_back_too(self) -> None:
        model = nn.Sequential(Bare(replace_data), Bare(replace_data))
        model[1].weight = model[0].weight
        initialize(model, 0)
        with deterministic(fold_in(0, "0")):
            assert bits(model[0].weight) == bits(torch.rand(3))

    def test_a_later_module_that_fails_leaves_it_as_the_first_has_made_it(self) -> None:
        def fail(module: Bare) -> None:
            module.weight.data.fill_(9)
            raise KeyError("halfway")

        model = nn.Sequential(Bare(lambda module: module.weight.data.fill_(2)), Bare(fail))
        model[1].weight = model[0].weight
        with pytest.raises(KeyError, match="halfway"):
            initialize(model, 0)
        assert bool((model[0].weight == 2).all())

    def test_a_shared_module_is_initialised_once_under_its_first_name(self) -> None:
        with isolated():
            shared = nn.Linear(2, 2)
            model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared, nn.Linear(2, 2)))
        names: list[str] = []
        done = initialize(model, 0, lambda name, module: names.append(name))
        assert names == list(done.seeds) == ["0.0", "0", "1.1", "1", ""]
        with deterministic(fold_in(0, "0.0")):
            assert contents(shared) == contents(nn.Linear(2, 2))


class TestWhatStays:
    @pytest.mark.parametrize("init", [None, xavier], ids=["method", "init"])
    def test_no_stream_moves(self, init: Any) -> None:
        model, before = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))), kit.everything()
        initialize(model, 0, init)
        assert kit.everything() == before

    @pytest.mark.parametrize("form", kit.FORMS)
    def test_it_works_inside_a_scope_and_takes_nothing_from_it(self, form: str) -> None:
        model = make(lambda: nn.Linear(2, 2))
        initialize(model, 0)
        expected, before = contents(model), kit.everything()

        def body() -> Any:
            initialize(model, 0)
            return kit.draws()

        assert kit.FORMS[form](deterministic(3), body) == kit.reference(3)[0]
        assert contents(model) == expected
        assert kit.everything() == before

    @pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
    def test_a_method_that_raises_moves_no_stream(self, error: type[BaseException]) -> None:
        def fail(module: Bare) -> None:
            kit.draws()
            raise error("from the method")

        model, before = nn.Sequential(Bare(fail)), kit.everything()
        with pytest.raises(error, match="from the method"):
            initialize(model, 0)
        assert kit.everything() == before

    def test_an_interrupt_at_any_line_moves_no_stream_and_no_tied_parameter(self) -> None:
        model = make(Tied)
        initialize(model, 0, xavier)
        tied = bits(model.words.weight)

        def run_form(run: Run) -> None:
            run.step(lambda: initialize(model, 0, xavier))
            # A tracer can raise where a `with` is about to leave torch's own modes, which then stay.
            torch.set_grad_enabled(True)
            mode = _get_current_dispatch_mode()
            if mode is not None:
                mode.__exit__(None, None, None)
            assert bits(model.words.weight) == tied

        sweep(run_form)

    @pytest.mark.parametrize("name", ["0", ""])
    def test_an_error_carries_the_modules_name(self, name: str) -> None:
        def init(called: str, module: nn.Module) -> None:
            if called == name:
                raise KeyError("from init")

        model = make(lambda: nn.Sequential(nn.Linear(2, 2)))
        with pytest.raises(KeyError, match="from init") as caught:
            initialize(model, 0, init)
        module = "'0' (Linear)" if name else "'the model' (Sequential)"
        assert caught.value.__notes__ == [f"raised while {module} was initialised by init(name, module)"]

    def test_a_method_that_needs_arguments_can_have_them_bound(self) -> None:
        model = nn.Sequential(Bare(lambda module, *, value: module.weight.data.fill_(value)))
        with pytest.raises(TypeError, match="value") as caught:
            initialize(model, 0)
        note = "arguments that it needs can be bound to it before, with functools.partial"
        whole = f"raised while '0' (Bare) was initialised by its reset_parameters(); {note}"
        assert caught.value.__notes__ == [whole]
        model[0].reset_parameters = functools.partial(model[0].reset_parameters, value=4)
        assert initialize(model, 0).missed == []
        assert initialize(model, 0).missed == []

    def test_a_function_of_a_tensor_is_no_init(self) -> None:
        with pytest.raises(AttributeError, match="'str' object has no attribute") as caught:
            initialize(make(lambda: nn.Linear(2, 2)), 0, nn.init.xavier_uniform_)
        assert caught.value.__notes__ == ["raised while 'the model' (Linear) was initialised by init(name, module)"]

    def test_parameters_stay_the_same_objects_with_their_gradients(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        model[0].weight.requires_grad_(False)
        model(torch.ones(2, 2)).sum().backward()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        before = [(id(p), p.requires_grad, p.grad if p.grad is None else bits(p.grad)) for p in model.parameters()]
        initialize(model, 0)
        assert [
            (id(p), p.requires_grad, p.grad if p.grad is None else bits(p.grad)) for p in model.parameters()
        ] == before
        made = bits(model[0].bias)
        model[0].bias.grad.fill_(1)
        optimizer.step()
        assert bits(model[0].bias) != made

    def test_modes_and_hooks_stay(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout())).eval()
        initialize(model, 0)
        assert not any(module.training for module in model.modules())

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_it_works_in_every_mode_of_autograd(self, mode: Any) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2)))
        initialize(model, 0, xavier)
        expected = contents(model)
        spoil(model)
        with mode():
            initialize(model, 0, xavier)
        assert contents(model) == expected

    def test_a_model_made_in_inference_mode_is_initialised_there(self) -> None:
        with torch.inference_mode():
            model = make(Tied)
            assert initialize(model, 0).missed == []
        with deterministic(fold_in(0, "words")):
            assert bits(model.head.weight) == bits(nn.Embedding(5, 3).weight)

    def test_another_threads_scope_refuses_it_before_anything_changes(self) -> None:
        model = make(lambda: nn.Linear(2, 2))
        expected, caught = contents(model), []

        def other() -> None:
            try:
                initialize(model, 0)
            except ConcurrentScopeError as error:
                caught.append(error)

        with isolated():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert len(caught) == 1
        assert contents(model) == expected


class TestMeta:
    def test_a_model_on_the_meta_device_is_refused_by_name(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        before = kit.everything()
        message = (
            "the model has no memory for 0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean, 1.running_var, "
            "1.num_batches_tracked, on the meta device; call model.to_empty(device=...), tie again what was tied, and "
            "then initialize"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            initialize(model, 0)
        assert kit.everything() == before

    def test_a_model_partly_on_the_meta_device_is_not_touched(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))
        expected = contents(model[0])
        with pytest.raises(ValueError, match=re.escape("has no memory for 1.weight, 1.bias, on the meta device")):
            initialize(model, 0)
        assert contents(model[0]) == expected

    def test_after_to_empty_all_is_as_in_a_model_made_on_the_cpu(self) -> None:
        def build() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2), nn.LSTM(4, 4))

        expected = make(build)
        initialize(expected, 0)
        with torch.device("meta"):
            model = build()
        model.to_empty(device="cpu")
        spoil(model)
        assert initialize(model, 0) == Initialized(initialize(expected, 0).seeds, [], [], [])
        assert contents(model) == contents(expected)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_buffers_that_nothing_fills_are_returned(self) -> None:
        model = make(lambda: nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(2), positions=nn.Module())))
        model.positions.register_buffer("table", torch.arange(4))
        model.positions.register_buffer("sparse", torch.eye(2).to_sparse(), persistent=False)
        model.positions.register_buffer("nothing", None)
        done = initialize(model, 0)
        assert done == Initialized({"norm": fold_in(0, "norm")}, [], ["positions.table", "positions.sparse"], [])
        assert bits(model.positions.table) == bits(torch.arange(4))

    def test_a_lazy_model_is_refused_by_name_until_it_has_shapes(self) -> None:
        model = make(lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3), nn.LazyBatchNorm1d()))
        expected, before = contents(model[0]), kit.everything()
        message = (
            "the model has no shape yet for 1.weight, 1.bias, 2.weight, 2.bias, 2.running_mean, 2.running_var; "
            "run one forward pass before initialize"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            initialize(model, 0)
        assert contents(model[0]) == expected
        assert kit.everything() == before
        with isolated():
            model(torch.ones(2, 2))
        assert initialize(model, 0).missed == []
        with deterministic(fold_in(0, "1")):
            assert contents(model[1]) == contents(nn.Linear(2, 3))


class TestWrapped:
    def plain(self) -> Any:
        return make(lambda: nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Sequential(nn.Linear(2, 2), Bare(None)))))

    @pytest.mark.parametrize("where", ["whole", "part", "in place"])
    def test_a_compiled_model_has_the_names_of_the_plain_one(self, where: str) -> None:
        expected, model = self.plain(), self.plain()
        names: list[str] = []
        wanted = ["a", "b.0", "b.1", "b", ""]
        missed = missed_of(expected, 0, lambda name, module: names.append(name))
        assert names == wanted
        if where == "whole":
            compiled = torch.compile(model, backend="eager")
        else:
            compiled = model
            if where == "part":
                model.b = torch.compile(model.b, backend="eager")
            else:
                model.b.compile(backend="eager")
        names.clear()
        assert missed_of(compiled, 0, lambda name, module: names.append(name)) == missed == ["b.1.weight"]
        assert names == wanted
        assert list(contents(model).values()) == list(contents(expected).values())

    def test_a_checkpointed_module_has_the_name_of_the_plain_one(self) -> None:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        expected, model = self.plain(), self.plain()
        missed_of(expected)
        model.b = checkpoint_wrapper(model.b)
        assert missed_of(model) == ["b.1.weight"]
        assert list(contents(model).values()) == list(contents(expected).values())

    def test_a_wrapper_that_goes_on_to_its_model_for_attributes_has_no_method_of_its_own(self) -> None:
        class Wrapper(nn.Module):
            def __init__(self, module: nn.Module) -> None:
                super().__init__()
                self.inner = module

            def __getattr__(self, name: str) -> Any:
                try:
                    return super().__getattr__(name)
                except AttributeError:
                    return getattr(self.inner, name)

        model = make(lambda: Wrapper(nn.Linear(2, 2)))
        assert initialize(model, 0) == Initialized({"inner": fold_in(0, "inner")}, [], [], [])
        with deterministic(fold_in(0, "inner")):
            assert contents(model.inner) == contents(nn.Linear(2, 2))

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_a_scripted_model_has_lost_its_methods(self) -> None:
        model = torch.jit.script(make(lambda: nn.Sequential(nn.Linear(2, 2))))
        assert missed_of(model) == ["0.weight", "0.bias"]
        assert missed_of(model, 0, lambda name, module: module.weight.zero_() if name else None) == ["0.bias"]

    def test_a_compiled_function_is_not_compiled_through_it(self) -> None:
        model = make(lambda: nn.Linear(2, 2))
        initialize(model, 0)
        expected = contents(model)

        @torch.compile(backend="eager")
        def call(x: torch.Tensor) -> torch.Tensor:
            x = x + 1
            initialize(model, 0)
            return model(x) * 2

        spoil(model)
        before = kit.everything()
        call(torch.ones(1, 2))
        assert contents(model) == expected
        assert kit.everything() == before


class TestBadInput:
    @pytest.mark.parametrize(
        ("model", "seed", "init", "error", "message"),
        [
            (
                nn.Linear,
                0,
                None,
                TypeError,
                "initialize takes a torch.nn.Module, got type <class 'torch.nn.modules.linear.Linear'>",
            ),
            ([], 0, None, TypeError, "initialize takes a torch.nn.Module, got list []"),
            (None, -1, None, ValueError, "a seed must be in [0, 2**64), got -1"),
            (None, "a", None, TypeError, "a seed must be an int in [0, 2**64), got str 'a'"),
            (None, True, None, TypeError, "a seed must be an int in [0, 2**64), got bool True"),
            (None, None, None, TypeError, "a seed must be an int in [0, 2**64), got NoneType None"),
            (None, 0, "xavier", TypeError, "init= is a function of a name and a module, got str 'xavier'"),
        ],
    )
    def test_it_is_refused_and_nothing_is_changed(
        self, model: Any, seed: Any, init: Any, error: type[Exception], message: str
    ) -> None:
        linear = make(lambda: nn.Linear(2, 2))
        expected, before = contents(linear), kit.everything()
        with pytest.raises(error, match=re.escape(message)):
            initialize(linear if model is None else model, seed, init)
        assert contents(linear) == expected
        assert kit.everything() == before

    def test_numbers_of_numpy_are_seeds(self) -> None:
        first, second = make(lambda: nn.Linear(2, 2)), make(lambda: nn.Linear(2, 2))
        assert initialize(first, np.uint64(7)) == initialize(second, 7)
        assert contents(first) == contents(second)
