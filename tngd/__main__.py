"""Entry point of the command: an interruption while modules load ends as one during the work does."""

import sys


def main() -> None:
    """Run the command and end with its exit code; after Ctrl-C, say how to go on."""
    interrupted = 130
    try:
        from tngd import cli  # here, for loading takes a moment in which somebody may think better of it

        code, interrupted = cli.main(), cli.INTERRUPTED
    except KeyboardInterrupt:
        code = interrupted
    if code == interrupted:
        print("tngd: interrupted; call the same command again: finished steps and chunks are kept", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
