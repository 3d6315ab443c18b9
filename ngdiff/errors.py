"""Errors that are the user's to mend."""


class UserError(Exception):
    """One line: what is wrong, where, the value found and the remedy. The command line prints it and exits with status 2."""
