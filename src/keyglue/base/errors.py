"""Every error that keyglue raises on purpose.

The tree is small so that a caller can catch one thing (``KeyglueError``) or the standard exception it stands for:
a bad input is also a ``ValueError``, a file problem also an ``OSError``, a missing library also an ``ImportError``.
The text of an error says what was given, what is accepted and what to do.
"""

from __future__ import annotations


class KeyglueError(Exception):
    """Common ancestor of all errors raised by keyglue."""


class InputError(KeyglueError, ValueError):
    """An argument, array or tensor does not have the form that the function documents."""


class ImageError(InputError):
    """An image cannot be read, decoded or is of a size that is refused."""


class ConfigError(KeyglueError, ValueError):
    """A configuration holds contradictory or impossible values."""


class CheckpointError(KeyglueError, OSError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class HubError(CheckpointError):
    """A model could not be fetched from, or sent to, the Hub."""


class StoreError(KeyglueError, OSError):
    """A store of features or matches is damaged, in use by another process, or was made by another model."""


class MissingDependencyError(KeyglueError, ImportError):
    """An optional library is needed for what was asked and is not installed.

    Args:
        library: Name by which people know the library.
        extra: Name of keyglue's extra that installs it, or None where there is none.
        purpose: What it is needed for.
    """

    def __init__(self, library: str, extra: str | None, purpose: str) -> None:
        command = f"pip install 'keyglue[{extra}]'" if extra else f"pip install {library}"
        super().__init__(f"{purpose} needs {library}, which is not installed. Run: {command}")


class LicenceWarning(UserWarning):
    """Weights whose licence restricts their use are being loaded."""
