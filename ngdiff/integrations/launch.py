"""`python -m ngdiff.integrations.launch`: open-unlearning's script, with our trainer registered and its configuration found."""

import importlib
import runpy
import sys
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


def main(arguments: list[str]) -> None:
    """Run the script with the arguments after it.

    Args:
        arguments: path of open-unlearning's src/train.py, then what it takes.
    """
    if not arguments or not Path(arguments[0]).is_file():
        found = arguments[0] if arguments else "nothing"
        sys.exit(f"error: found {found!r} in the place of open-unlearning's script; give src/train.py, then its arguments")
    script, *rest = arguments
    sys.path.insert(0, str(Path(script).resolve().parent))
    importlib.import_module("ngdiff.integrations.open_unlearning")
    sys.argv = [script, *rest, f"hydra.searchpath=[file://{CONFIGS}]"]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
