"""The command ``scoped-rng``, which is ``python -m scoped_rng`` as well."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int | None:
    """Run the command line and return the exit code; without what it is made of, tell how to install that."""
    try:
        from . import cli
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"the command needs {error.name}: pip install 'scoped-rng[cli]'", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
