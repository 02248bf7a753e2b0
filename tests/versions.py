"""Run the suite on the oldest and the newest versions that the metadata claims, each in an environment of its own.

    python tests/versions.py [NAME]... [-- PYTEST-ARGUMENT...]

Every set needs its Python as ``python3.x`` on the PATH. What torch brings along is downloaded: some gigabytes for a
build with CUDA, which runs here without a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETS = {
    "oldest": ("python3.10", ("torch==2.8.0", "numpy==1.26.0", "pytest==8.2.0", "hypothesis==6.140.0")),
    "newest": ("python3.13", ("torch==2.14.1", "numpy==2.5.5")),
}


def run_suite(name: str, folder: Path, arguments: list[str]) -> int:
    """Make the environment of a set, run the suite in it, and return pytest's exit code."""
    interpreter, pins = SETS[name]
    found = shutil.which(interpreter)
    if found is None:
        raise SystemExit(f"the set {name!r} needs {interpreter} on the PATH; install it, or name another set")
    subprocess.run([found, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[test]", *pins], check=True)
    print(f"== {name}: {interpreter}, {', '.join(pins)}", flush=True)
    return subprocess.run([python, "-m", "pytest", "-n", "2", *arguments], cwd=ROOT).returncode


def main() -> None:
    """Run the sets named, or all of them, and fail if one of them does."""
    names, _, arguments = (" ".join(sys.argv[1:])).partition("--")
    chosen = names.split() or list(SETS)
    unknown = sorted({*chosen} - {*SETS})
    if unknown:
        raise SystemExit(f"there is no set {', '.join(unknown)}; the sets are {', '.join(SETS)}")
    codes = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            codes[name] = run_suite(name, Path(folder), arguments.split())
    for name, code in codes.items():
        print(f"{name}: {'passed' if code == 0 else f'failed with exit code {code}'}")
    sys.exit(any(codes.values()))


if __name__ == "__main__":
    main()
