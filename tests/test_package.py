"""The package as it is imported, built and installed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import scoped_rng

ROOT = Path(__file__).parents[1]
PUBLIC = [
    "ConcurrentScopeError",
    "DesyncError",
    "DeterminismWarning",
    "LeakWarning",
    "RestoreError",
    "RestoreWarning",
    "RngState",
    "ScopeOrderWarning",
    "ScopedRngError",
    "StateFormatError",
    "StateMismatchError",
    "TraceFormatError",
    "capture",
    "deterministic",
    "fixed_seed",
    "fold_in",
    "isolated",
    "register_stream",
    "replay",
    "unregister_stream",
]


def python(code: str, *path: Path, cwd: Path) -> str:
    # Without coverage, which would look for the source of what is imported from elsewhere.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_public_names_are_these() -> None:
    assert sorted(scoped_rng.__all__) == sorted(PUBLIC)
    assert all(hasattr(scoped_rng, name) for name in PUBLIC)


@pytest.mark.parametrize("name", ["checkpoint", "compare", "data", "distributed", "nn", "testing", "trace"])
def test_a_module_is_an_attribute_before_it_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"scoped_rng.{name}")
    monkeypatch.delattr(scoped_rng, name)
    assert getattr(scoped_rng, name) is module


def test_a_public_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = scoped_rng.capture
    monkeypatch.delattr(scoped_rng, "capture")
    assert scoped_rng.capture is capture
    assert vars(scoped_rng)["capture"] is capture


def test_dir_has_the_public_names() -> None:
    assert {*PUBLIC} <= {*dir(scoped_rng)}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'scoped_rng' has no attribute 'nothing'$"):
        scoped_rng.nothing  # noqa: B018


def test_importing_the_package_imports_neither_numpy_nor_torch(tmp_path: Path) -> None:
    heavy = "{'numpy', 'torch', 'pytest', 'hypothesis'}"
    code = f"import scoped_rng, scoped_rng.__main__, sys; print({heavy} & set(sys.modules))"
    assert python(code, Path(scoped_rng.__file__).parents[1], cwd=tmp_path) == "set()\n"


def test_ci_runs_the_commands_of_the_readme() -> None:
    readme, ci = ((ROOT / name).read_text(encoding="utf-8").splitlines() for name in ("README.md", ".ci/run"))
    commands = [line for line in readme if line.startswith("pip install -c tests/constraints.txt")]
    assert len(commands) == 2
    for command in commands:
        assert any(line.startswith(command) for line in ci)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and a wheel from that sdist, without what earlier builds have left in the tree."""
    source, out = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_the_sdist_has_what_a_package_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", "scoped_rng/py.typed"} <= names


def test_the_wheel_works_with_the_source_out_of_the_way(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    package = tmp_path / "site" / "scoped_rng"
    assert (package / "py.typed").exists()
    installed, source = (
        {path.relative_to(folder) for kind in ("*.py", "*.typed") for path in folder.rglob(kind)}
        for folder in (package, ROOT / "scoped_rng")
    )
    assert installed == source
    (info,) = metadata.distributions(name="scoped_rng", path=[str(tmp_path / "site")])
    assert info.metadata["Name"] == "scoped-rng"
    assert info.metadata["License-Expression"] == "BSD-3-Clause"
    assert set(info.metadata.get_all("Provides-Extra") or ()) == {"benchmarks", "cli", "frameworks", "lint", "test"}

    code = """if True:
        import random, scoped_rng
        with scoped_rng.deterministic(3):
            drawn = random.random()
        print(scoped_rng.__file__, drawn == random.Random(3).random())
    """
    assert python(code, tmp_path / "site", cwd=tmp_path).split() == [str(package / "__init__.py"), "True"]
