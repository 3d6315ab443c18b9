"""How a command line ends: exit status, and one line for what the user can mend."""

import sys
from typing import Any, NoReturn

import typer

from experiments.errors import UserError

# typer exports only this subclass of the error that every wrong option raises.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def run(app: typer.Typer, interrupted: str = "interrupted") -> NoReturn:
    """Run a command line and exit: 2 after one line on stderr for what the user can mend, 130 where the user broke it off.

    Args:
        app: its commands; their own status comes by `typer.Exit`.
        interrupted: the line after Ctrl-C.
    """
    try:
        status: Any = app(standalone_mode=False)
    except UserError as error:
        status = _complain(str(error))
    except UsageError as error:
        status = _complain(error.format_message())  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        print(f"\n{interrupted}", file=sys.stderr)
        status = 130
    sys.exit(status)


def _complain(message: str) -> int:
    # One line whatever the message quotes: a path or a value may hold line ends or terminal escapes.
    print("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in message), file=sys.stderr)
    return 2
