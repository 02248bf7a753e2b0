"""What the doctor looks at, and that it says so where something is wrong."""

from __future__ import annotations

import importlib.metadata
import types
from typing import Any

import pytest
import torch

import scoped_rng.cli.doctor as doctor
from scoped_rng.cli.doctor import CHECKS, Finding, examine, is_well
from scoped_rng.flags import NAMES
from tests import kit


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.name: finding for finding in findings}
    assert len(found) == len(findings)
    return found


def test_all_is_well_and_left_as_it_was() -> None:
    before, flags = kit.continuation(), kit.flags()
    findings = examine()
    assert is_well(findings)
    assert kit.continuation() == before
    assert kit.flags() == flags
    assert all(finding.value and finding.meaning for finding in findings)
    groups = list(dict.fromkeys(finding.group for finding in findings))
    assert groups == ["versions", "devices", "threads", "flags", "variables", CHECKS]


def test_every_flag_of_a_scope_is_shown_with_what_a_scope_sets() -> None:
    found = by_name(examine())
    assert set(NAMES) <= set(found)
    flag = found["torch.use_deterministic_algorithms"]
    assert (flag.value, flag.fix) == ("False", "deterministic(seed) sets True")
    assert found["torch.backends.cudnn.benchmark"].fix == ""


def test_versions_and_threads_are_those_in_force() -> None:
    found = by_name(examine())
    assert found["torch"].value == importlib.metadata.version("torch")
    assert found["torch.get_num_threads()"].value == str(torch.get_num_threads())


def test_what_is_not_installed_is_shown_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = by_name(list(doctor._versions()))
    assert (found["xxhash"].value, found["xxhash"].fix) == ("not installed", "pip install 'scoped-rng[cli]'")
    assert found["scoped-rng"].fix == "it runs from a folder of source files"


def test_variables_are_shown_with_a_fix_where_they_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    found = by_name(list(doctor._variables()))
    assert (found["OMP_NUM_THREADS"].value, found["OMP_NUM_THREADS"].fix) == ("3", "")
    assert (found["PYTHONHASHSEED"].value, found["PYTHONHASHSEED"].fix) == ("not set", "PYTHONHASHSEED=0, or sort")
    assert found["hash randomisation"].value in ("on", "off")


class _Torch:
    """A torch that has two accelerators, one of them without names."""

    def __init__(self) -> None:
        self.backends = types.SimpleNamespace(
            cpu=torch.backends.cpu, cudnn=types.SimpleNamespace(is_available=lambda: True, version=lambda: 91002)
        )
        self.cuda = self._module(2, get_device_name=lambda index: f"H200 {index}")
        self.xpu, self.mtia, self.mps = self._module(0), self._module(0), self._module(1)

    def _module(self, count: int, **more: Any) -> Any:
        return types.SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count, **more)


def test_accelerators_are_shown_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_torch", _Torch)
    found = {name: finding.value for name, finding in by_name(list(doctor._devices())).items()}
    assert list(found) == ["cpu", "cuda:0", "cuda:1", "mps:0", "cudnn"]
    assert (found["cuda:1"], found["mps:0"], found["cudnn"]) == ("H200 1", "available", "91002")


def test_without_accelerators_there_is_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = _Torch()
    bare.cuda = bare.mps = bare._module(0)
    bare.backends.cudnn.is_available = lambda: False
    monkeypatch.setattr(doctor, "_torch", lambda: bare)
    assert [finding.name for finding in doctor._devices()] == ["cpu"]


def test_a_check_that_fails_or_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(device: str) -> bool:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(doctor, "_LIVE", {"dropout repeats": lambda device: False, "initialisation repeats": raises})
    first, second = (finding for finding in doctor._checks() if "cpu" in finding.name)
    assert (first.value, first.good, first.fix) == ("no", False, "please report it, with this page")
    assert second.value == "no: RuntimeError: no kernel image"
    assert not is_well([first, second])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scope that does nothing."""

    class Nothing:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    import scoped_rng

    monkeypatch.setattr(scoped_rng, "deterministic", lambda seed: Nothing())


@pytest.mark.parametrize("name", list(doctor._LIVE))
def test_a_scope_that_does_nothing_fails_every_check(name: str, broken: None) -> None:
    assert not doctor._LIVE[name]("cpu")
