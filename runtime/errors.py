"""The errors a person can do something about.

Each message says in one line what was found, what was wanted, and what to do. The command line prints
that line and exits with ``exit_code``; anything that is not an EdgeloopError is a bug of ours.
"""


class EdgeloopError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class UsageError(EdgeloopError):
    """The request itself is wrong: an empty prompt, an unknown engine, an option out of range."""

    exit_code = 2


class CheckpointError(EdgeloopError):
    """A checkpoint that cannot be read, or says something that is not understood."""


class BundleError(EdgeloopError):
    """A bundle that is missing, incomplete, of another version, or does not match its hashes."""


class UpdateError(EdgeloopError):
    """An update that is damaged, of another bundle, not signed by whom is trusted, or that there is no room for."""


class SessionError(EdgeloopError):
    """A saved session that is damaged, of another bundle or policy, or cannot be written."""


class ExportError(EdgeloopError):
    """An export that cannot be done: folder exists, disk full, a target that is not installed."""


class ParityError(ExportError):
    """An exported artifact does not compute what its checkpoint computes."""


class EngineError(EdgeloopError):
    """An engine that is not installed, or that failed to load or run a graph."""


class BusyError(EdgeloopError):
    """All that may run are running and all that may wait are waiting."""


class ContextError(UsageError):
    """More tokens than the model's context, or than the cache was made for, can hold."""
