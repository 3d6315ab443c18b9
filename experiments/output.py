"""The folder a run writes to: new, or begun by an equal run, which is then continued."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ngdiff.errors import UserError
from ngdiff.files import write_text

CONFIG = "config.yaml"


class Output:
    """An output folder. Building it checks, and writes nothing; `create` makes it.

    Args:
        folder: where the run writes.
        config: the inputs of the run; a folder begun with others is refused.

    Raises:
        UserError: the folder is used by something else, or cannot be written.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self.folder = folder
        self.config = dict(config)
        try:
            self._check()
        except OSError as error:
            raise UserError(f"--out: {str(folder)!r} cannot be used ({error.strerror}); give another folder") from None

    def _check(self) -> None:
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out: {str(folder)!r} is a file; give a folder")
        if folder.is_dir() and any(folder.iterdir()):
            self._check_config()
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"--out: {str(folder)!r} cannot be made, {str(existing)!r} is not writable; give another folder")

    def create(self) -> None:
        """Make the folder, with the resolved configuration in it.

        Raises:
            UserError: the system refuses.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / CONFIG, yaml.safe_dump(self.config, sort_keys=False))
        except OSError as error:
            raise UserError(f"--out: {str(self.folder)!r} cannot be written ({error.strerror}); give another folder") from None

    def _check_config(self) -> None:
        try:
            found = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"--out: {str(self.folder)!r} is not empty and holds no run; give a new or empty folder")
        different = [name for name in self.config if found.get(name) != self.config[name]]
        if different:
            name = different[0]
            raise UserError(
                f"--out: {str(self.folder)!r} holds another run, with {name} = {found.get(name)!r} "
                f"and not {self.config[name]!r}; give another folder"
            )
