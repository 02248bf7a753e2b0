"""Run SCRIPT twice, each in a fresh interpreter under deterministic(N), and compare what it prints and its exit status.

Exit code: 0 the same to the byte; 1 not, with the first line that differs; 2 the script failed, or the call was wrong.
Options may also stand among the script's ARGS; what comes after -- goes to the script alone: check SCRIPT -- --seed 1
"""

from __future__ import annotations

import argparse
import builtins
import subprocess
import sys
import types
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryFile

from . import deterministic
from .seeds import check_seed


def run() -> None:
    """Run a script as ``python SCRIPT ARGS`` would, under the seed that comes before it in ``sys.argv``."""
    _, seed, *sys.argv = sys.argv
    script = Path(sys.argv[0]).absolute()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(module).update(__file__=str(script), __builtins__=builtins)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(script.resolve().parent)
    deterministic(int(seed)).__enter__()  # never left: what the script does at exit is covered as well
    try:
        exec(compile(script.read_bytes(), script, "exec", dont_inherit=True), vars(module))
    except Exception as error:
        # Python's own traceback begins with the script; the first frame here is ours.
        traceback = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        sys.exit(1)


def check(seed: int, script: str, args: list[str]) -> int:
    """Run the script twice and say whether the runs differ; return the exit code."""
    command = [sys.executable, "-c", f"from {__package__}.__main__ import run; run()", str(seed), script, *args]
    with TemporaryFile() as first, TemporaryFile() as second:
        one, two = (subprocess.call(command, stdin=subprocess.DEVNULL, stdout=file) for file in (first, second))
        if one or two:
            verdict, code = ("the script failed", 2) if one == two else ("not reproducible", 1)
            print(f"{verdict} under seed {seed}: the exit status is {one} in run 1 and {two} in run 2")
            return code
        _ = first.seek(0), second.seek(0)
        for number, lines in enumerate(zip_longest(first, second, fillvalue=b""), 1):
            if lines[0] != lines[1]:
                shown = [repr(str(line, sys.stdout.encoding, "backslashreplace")) for line in lines]
                print(f"not reproducible under seed {seed}: line {number} of the output differs")
                print(f"  run 1: {shown[0]}\n  run 2: {shown[1]}")
                return 1
        print(f"reproducible under seed {seed}: both runs printed the same {first.tell()} bytes")
        return 0


def main() -> int:
    """Run the command line and return the exit code."""
    usage = "python -m scoped_rng check [--seed N] SCRIPT [ARGS]..."
    parser = argparse.ArgumentParser("scoped_rng", usage, __doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("command", choices=["check"])
    parser.add_argument("--seed", metavar="N", default="0", help="an int in [0, 2**64), 0 by default")
    parser.add_argument("--help", action="help", help="show this and exit")
    end = [*sys.argv, "--"].index("--")
    options, script = parser.parse_known_args(sys.argv[1:end])
    script += sys.argv[end + 1 :]
    try:
        seed = check_seed(int(options.seed) if options.seed.removeprefix("-").isdecimal() else options.seed)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if not script or not Path(script[0]).is_file():
        parser.error(f"there is no script {script[0]!r}" if script else "the script is missing")
    return check(seed, script[0], script[1:])


if __name__ == "__main__":
    sys.exit(main())
