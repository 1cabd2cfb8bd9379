"""`python -m tutelage doctor`: what this machine has, and what each missing piece costs."""

import sys

from tutelage import cli
from tutelage.errors import unknown

COMMANDS = ("doctor",)


def main(argv: list[str]) -> None:
    """Runs the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m tutelage doctor [--help]\n(training is train.py, measuring evaluate.py)")
    elif argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    else:
        from tutelage.doctor import main as doctor

        doctor(argv[1:])


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
