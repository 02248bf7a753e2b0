from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_strict_type_checker_sees_the_types_of_the_public_interface() -> None:
    api = Path(__file__).with_name("api.py")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", str(api)]
    result = subprocess.run(mypy, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
