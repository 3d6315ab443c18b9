"""Combination rules of the user's own: a Python file that registers them."""

import hashlib
import runpy
from pathlib import Path

from ngdiff import rules
from ngdiff.errors import UserError

_loaded: dict[str, str] = {}  # path -> hash of what was run: registering a name twice is refused


def load_rules(path: str) -> str:
    """Run the file, once, and return the SHA-256 of its content.

    Args:
        path: of a file with rules, each under `@ngdiff.rules.register("name")`.

    Raises:
        UserError: there is no such file, it fails, or it registers nothing.
    """
    file = Path(path)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--own-rules: {path!r} cannot be read ({error.strerror}); give a Python file") from None
    key = str(file.resolve())
    if key not in _loaded:
        before = rules.names()
        try:
            runpy.run_path(key)
        except Exception as error:
            raise UserError(f"--own-rules: {path!r} failed with {type(error).__name__}: {error}") from error
        if rules.names() == before:
            raise UserError(f"--own-rules: {path!r} registers no rule; decorate one with @ngdiff.rules.register('name')")
        _loaded[key] = digest
    elif _loaded[key] != digest:
        raise UserError(f"--own-rules: {path!r} has changed since it was loaded; start anew")
    return digest
