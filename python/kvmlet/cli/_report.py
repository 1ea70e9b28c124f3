"""`--report`: the end of a run as data, for programs."""

from kvmlet._refusals import flag_of, path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1


def of_outcome(
    outcome: "Any", status: int, mode: str, volumes: "list[tuple[str, str]]"
) -> "dict[str, Any]":
    """The part of a report that tells of a run that has ended, with a `_native.Outcome`.

    `mode` is that of --changes, `volumes` are trees that -v shows (kvmlet._refusals.lines).
    """
    stats = outcome.stats
    return {
        "status": status,
        "reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "peaks": {
            "memory_bytes": stats.get("memory_peak_bytes", 0),
            "wall_s": stats.get("wall_us", 0) / 1e6,
        },
        "denials": [
            {
                "kind": kind,
                "operation": what.partition(" ")[0],
                "path": path_of(what),
                "what": what,
                "error": errno,
                "flag": flag_of(what, kind, volumes),
                "count": count,
            }
            for what, errno, kind, count in outcome.denials
        ],
        "denials_not_kept": stats.get("denials_not_kept", 0),
        "unsupported": [{"name": name, "detail": detail} for name, detail in outcome.events],
        "changes": {
            "mode": mode,
            "is_cut": outcome.changes_are_cut,
            "names": [{"kind": kind, "path": _text(path)} for kind, path in outcome.changes],
        },
        "stats": stats,
    }


def of_failure(status: int, reason: str, error: str = "") -> "dict[str, Any]":
    """The same where there is no outcome: "interrupted" by a signal, or "not-started"."""
    return {
        "status": status,
        "reason": reason,
        "exit_code": None,
        "signal": None,
        "error": error,
        "peaks": {},
        "denials": [],
        "denials_not_kept": 0,
        "unsupported": [],
        "changes": {"mode": "", "is_cut": False, "names": []},
        "stats": {},
    }


def _text(path: bytes) -> str:
    """A path in a report: bytes that are no UTF-8 are written as \\xNN."""
    return path.decode("utf-8", "backslashreplace")
