"""The command from its first moment on: an interruption while modules load ends as one during the work does."""

import importlib
import sys

INTERRUPTED = 130


def main() -> None:
    """Entry point of the command."""
    try:
        # Loaded here, for loading takes a second in which somebody may think better of it.
        importlib.import_module("tngd.cli").main()
    except KeyboardInterrupt:
        end_interrupted()


def end_interrupted() -> None:
    """Say how to go on, and end."""
    print("tngd: interrupted; call the same command again: finished steps and chunks are kept", file=sys.stderr)
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
