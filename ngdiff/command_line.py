"""What every command line shares: how options are read, and how it ends, with one line for what the user can mend."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from ngdiff.errors import UserError

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
        # Of several processes, as torchrun numbers them, all have the same options.
        first, message = os.environ.get("RANK", "0") == "0", error.format_message()  # type: ignore[attr-defined]
        status = _complain(message) if first and message else 2  # without a command the help has been printed
    except (KeyboardInterrupt, typer.Abort):
        print(f"\n{interrupted}", file=sys.stderr)
        status = 130
    sys.exit(status)


def _complain(message: str) -> int:
    # One line whatever the message quotes: a path or a value may hold line ends or terminal escapes.
    print("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in message), file=sys.stderr)
    return 2


def quiet() -> None:
    """Progress and warnings of the libraries off: ours say what is being done."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # a hub that cannot be reached is one line, not one for every attempt


def split(text: str, convert: Callable[[str], Any] = str) -> tuple[Any, ...]:
    """What stands between the commas of an option."""
    return tuple(convert(part.strip()) for part in text.split(",") if part.strip())


def numbers(option: str, text: str, kind: type[int] | type[float] = float) -> tuple[Any, ...]:
    """The numbers between the commas of an option.

    Raises:
        UserError: one is none.
    """

    def convert(part: str) -> float:
        try:
            return kind(part)
        except ValueError:
            example = "0,1,2" if kind is int else "1e-4,3e-4"
            raise UserError(f"{option}: found {part!r}; give numbers separated by commas, e.g. {example}") from None

    return split(text, convert)
