"""The recipes of the README for training frameworks resume exactly.

With stand-ins that call the documented hooks, and where they are installed with the frameworks themselves: ``pip
install lightning accelerate "transformers[torch]"`` and ``pytest -m frameworks``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.frameworks import FRAMEWORKS, PLACES, is_exact, readme_block
from tests import fake_frameworks

real = pytest.mark.frameworks
theirs = pytest.mark.filterwarnings("default")  # they warn of what is theirs
everywhere = pytest.mark.parametrize("place", PLACES)
all_of_them = pytest.mark.parametrize("framework", FRAMEWORKS)
plain_and_noisy = pytest.mark.parametrize("noise", [False, True], ids=["plain", "noisy"])


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in fake_frameworks.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("stand_ins")
@plain_and_noisy
@everywhere
@all_of_them
def test_by_the_documented_hooks_a_recipe_resumes_exactly(framework: str, place: str, noise: bool) -> None:
    assert is_exact(framework, place, noise=noise, ours=True)


@real
@theirs
@plain_and_noisy
@everywhere
@all_of_them
def test_a_resumed_training_ends_with_the_weights_of_an_unbroken_one(framework: str, place: str, noise: bool) -> None:
    assert is_exact(framework, place, noise=noise, ours=True)


@real
@theirs
@all_of_them
def test_the_code_of_the_readme_runs(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(readme_block(framework), "README.md", "exec", dont_inherit=True), {"__name__": "readme"})


@real
@theirs
@pytest.mark.parametrize(
    ("framework", "place"),
    [
        ("lightning", "end of an epoch"),
        ("lightning", "middle of an epoch"),
        ("accelerate", "middle of an epoch"),
        ("transformers", "middle of an epoch"),
    ],
)
def test_by_itself_it_does_not_where_samples_are_noisy(framework: str, place: str) -> None:
    assert not is_exact(framework, place, noise=True, ours=False)
