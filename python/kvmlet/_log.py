"""Records for the logger "kvmlet", for applications that listen to it.

`logging` takes milliseconds to import. Whoever listens has imported it: without it there is nobody
to tell. Programs choose paths and names, so that messages show them as `repr` does.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from logging import Logger

    from kvmlet._result import Denial

NAME = "kvmlet"

# The numbers of logging.DEBUG and so on.
DEBUG, INFO, WARNING = 10, 20, 30

_logger: "Logger | None" = None


def _found() -> "Logger | None":
    global _logger  # noqa: PLW0603
    logging = sys.modules.get("logging")
    # Another thread may be in the middle of importing it.
    if getattr(logging, "captureWarnings", None) is None or logging is None:
        return None
    logger: Logger = logging.getLogger(NAME)
    # Without a handler, warnings would go to standard error.
    if not any(isinstance(each, logging.NullHandler) for each in logger.handlers):
        logger.addHandler(logging.NullHandler())
    _logger = logger
    return logger


def listens(level: int) -> bool:
    """True if a record of `level` would be made."""
    logger = _logger or _found()
    return logger is not None and logger.isEnabledFor(level)


def say(level: int, event: str, message: str, *args: object, **facts: object) -> None:
    """Make a record; its attribute `kvmlet` is a dict of the facts and of the name `event`."""
    logger = _logger or _found()
    if logger is not None and logger.isEnabledFor(level):
        logger.log(level, message, *args, stacklevel=2, extra={NAME: {"event": event, **facts}})


def say_denials(who: str, denials: "Iterable[Denial]", not_kept: int = 0) -> None:
    """A record for each thing that the policy has refused to `who`."""
    if not listens(INFO):
        return
    for denial in denials:
        say(
            INFO,
            "denial",
            "%s: %r was refused (%s, %s)",
            who,
            denial.what,
            denial.errno,
            denial.kind,
            what=denial.what,
            errno=denial.errno,
            kind=denial.kind,
            count=denial.count,
        )
    if not_kept:
        say(INFO, "denials-not-kept", "%s: %d more refusals are not listed", who, not_kept)


def say_end(who: str, reason: str, exit_code: "int | None", signal: "int | None") -> None:
    """A record of the end of `who`; that of a limit is of a higher level."""
    facts = {"reason": reason, "exit_code": exit_code, "signal": signal}
    if reason == "exited":
        say(DEBUG, "end", "%s exited with status %s", who, exit_code, **facts)
    elif reason == "signal":
        say(DEBUG, "end", "%s was ended by signal %s", who, signal, **facts)
    elif reason == "interrupted":
        say(DEBUG, "end", "%s was interrupted", who, **facts)
    else:
        say(INFO, "limit", "%s reached its limit: %s", who, reason, **facts)
