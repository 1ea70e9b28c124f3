"""Runs a module of CPython's own suite as its regrtest does, and tells the verdict of each case.

    python3 run_cpython.py test_os [--resource NAME]... [--after CASE] [--only CASE]...

Runs by the machine's own Python, natively and in a VM alike. Each record is a line of JSON behind a
record separator, so that whatever tests print cannot be taken for one. A case that takes longer
than CASE_LIMIT_S ends the process: whoever reads the records sees which one was under way.
"""

import argparse
import faulthandler
import fnmatch
import importlib
import json
import os
import sys
import traceback
import unittest

CASE_LIMIT_S = 180
DETAIL_MAX = 4000
SEPARATOR = "\x1e"
ORDER = ["pass", "skip", "fail", "error"]


class Verdicts(unittest.TestResult):
    """Writes a record when a case begins and one when it has ended."""

    def __init__(self, prefix, descriptor):
        super().__init__()
        self._prefix = prefix
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._verdict = None
        self._detail = ""
        self._case = None

    def write(self, **record):
        if os.getpid() != self._pid:
            # A child that a test has lost.
            return
        line = f"\n{SEPARATOR}{json.dumps(record)}\n".encode()
        while line:
            line = line[os.write(self._descriptor, line) :]

    def name(self, test):
        return name_of(test, self._prefix)

    def startTest(self, test):  # noqa: N802
        super().startTest(test)
        self._case = test
        self._verdict = None
        self._detail = ""
        self.write(begins=self.name(test))
        faulthandler.dump_traceback_later(CASE_LIMIT_S, exit=True, file=sys.__stderr__)

    def stopTest(self, test):  # noqa: N802
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        self._case = None
        self.write(case=self.name(test), verdict=self._verdict or "pass", detail=self._detail)

    def _note(self, test, verdict, detail=""):
        if self._case is None:
            # What a class or a module does before or after its cases.
            self.write(case=self.name(test), verdict=verdict, detail=detail[-DETAIL_MAX:])
        elif self._verdict is None or ORDER.index(verdict) > ORDER.index(self._verdict):
            self._verdict = verdict
            self._detail = detail[-DETAIL_MAX:]

    def addSuccess(self, test):  # noqa: N802
        self._note(test, "pass")

    def addSkip(self, test, reason):  # noqa: N802
        self._note(test, "skip", reason)

    def addFailure(self, test, err):  # noqa: N802
        self._note(test, "fail", "".join(traceback.format_exception(*err)))

    def addError(self, test, err):  # noqa: N802
        self._note(test, "error", "".join(traceback.format_exception(*err)))

    def addExpectedFailure(self, test, err):  # noqa: N802
        self._note(test, "pass")

    def addUnexpectedSuccess(self, test):  # noqa: N802
        self._note(test, "fail", "it was expected to fail")

    def addSubTest(self, test, subtest, err):  # noqa: N802
        if err is not None:
            verdict = "fail" if issubclass(err[0], test.failureException) else "error"
            detail = "".join(traceback.format_exception(*err))
            self._note(test, verdict, f"{subtest}\n{detail}")


def name_of(test, prefix):
    return test.id().replace(f"test.{prefix}.", "")


def cases_of(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases_of(test)
        else:
            yield test


def keep(suite, wanted):
    """The same suite with the cases that are `wanted`: classes stay together for their set-up."""
    kept = [keep(test, wanted) if isinstance(test, unittest.TestSuite) else test for test in suite]
    kept = [test for test in kept if isinstance(test, unittest.TestSuite) or id(test) in wanted]
    return type(suite)(kept)


def choose(suite, prefix, options):
    cases = list(cases_of(suite))
    names = [name_of(case, prefix) for case in cases]
    first = names.index(options.after) + 1 if options.after else 0
    return keep(
        suite,
        {
            id(case)
            for case, name in zip(cases[first:], names[first:], strict=True)
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in options.without)
            and (not options.only or name in options.only)
        },
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--after", default="")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--resource", action="append", default=[])
    options = parser.parse_args()

    from test import support
    from test.libregrtest import setup
    from test.support import os_helper

    result = Verdicts(options.module, os.dup(1))
    faulthandler.enable()
    setup._adjust_resource_limits()
    # Else no network, no gigabytes, no long computations.
    support.use_resources = options.resource
    # Programs start late on a busy machine.
    support.LOOPBACK_TIMEOUT = support.SHORT_TIMEOUT
    support.verbose = False
    support.record_original_stdout(sys.stdout)
    with os_helper.temp_cwd(None):
        try:
            module = importlib.import_module(f"test.{options.module}")
        except unittest.SkipTest as skipped:
            result.write(case="(module)", verdict="skip", detail=str(skipped))
        else:
            suite = unittest.defaultTestLoader.loadTestsFromModule(module)
            choose(suite, options.module, options).run(result)
            support.reap_children()
        result.write(finished=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
