"""Frameworks that are installed resume exactly with a state of ours, by the callbacks that the benchmark has.

``pip install lightning accelerate "transformers[torch]"`` and ``pytest -m frameworks``.
"""

from __future__ import annotations

import pytest

from benchmarks.frameworks import FRAMEWORKS, PLACES, is_exact

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("default"),  # they warn of what is theirs
]


@pytest.mark.parametrize("noise", [False, True], ids=["plain", "noisy"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_resumed_training_ends_with_the_weights_of_an_unbroken_one(framework: str, place: str, noise: bool) -> None:
    assert is_exact(framework, place, noise=noise, ours=True)


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
