"""Errors meant for people: what went wrong, where, and how to mend it.

The CLI prints a `UserError` without a traceback and exits with its `exit_code`.
"""

EXIT_OK = 0
EXIT_NOTHING_DONE = 1
EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3


class UserError(Exception):
    """A failure that its user can mend.

    Args:
        message: What went wrong and where (file, line, key, concept).
        fix: What to do about it, one sentence; shown on a line of its own.
    """

    exit_code = EXIT_NOTHING_DONE

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        """Keep message and fix when Ray pickles the error."""
        return (type(self), (self.message, self.fix))


class InputError(UserError):
    """A bad file, photo, catalogue or command line."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(InputError):
    """A config file or override that cannot be used."""


class StoreError(UserError):
    """Storage cannot be reached or refused an operation."""


class IntegrityError(UserError):
    """Bytes differ from what their manifest promises."""


class TeacherError(UserError):
    """The teacher cannot be loaded or produced unusable output."""


class TrainingError(UserError):
    """Training cannot go on (non-finite loss, collapse, no data)."""


class BaseMismatchError(IntegrityError):
    """An adapter belongs to another base than the one at hand."""
