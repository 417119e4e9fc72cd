"""The register of faults, and what tests of them share.

A kind is a function in one of the files kinds_*.py of this folder. It gets an empty folder and yields pairs: an input in a few
words, and a function without arguments that tries it and raises when it is not survived. `refused` and `works` make such
functions. Each is called before the next pair is asked for.

    @kind("pictures", "a picture that was cut", "refused with its name")
    def cut_pictures(tmp):
        for size in (0, 10, 100):
            (tmp / f"{size}.png").write_bytes(PNG[:size])
            yield f"{size} bytes", refused(lambda: read_image(tmp / f"{size}.png"), f"{size}.png")
"""
import contextlib
import signal
from typing import NamedTuple

from unified_onehead.core.files import InputError, one_line

KINDS = {}  # title -> Kind


class Kind(NamedTuple):
    area: str  # what it is about
    must: str  # what has to happen
    inputs: object  # folder -> pairs of words and a function


def kind(area: str, title: str, must: str):
    "Register a function as a kind of fault."
    def add(function):
        assert title not in KINDS, title
        KINDS[title] = Kind(area, must, function)
        return function
    return add


def printable(text: str) -> bool:
    "Whether text can be printed as one line: no control character, no byte that is no text."
    return one_line(text) == text


def refused(call, *contains: str, error: type = InputError):
    "Tries what must be refused in one printable line that holds these words."
    def attempt():
        try:
            call()
        except error as refusal:
            text = str(refusal)
            assert printable(text), f"not one line: {text!r}"
            assert len(text) < 2500, f"a message of {len(text)} characters"
            for words in contains:
                assert words in text, f"{words!r} is not in {text!r}"
            return
        raise AssertionError("nothing was refused")
    return attempt


def works(call, expected=None):
    "Tries what must go on; compares what comes back, where that is given."
    def attempt():
        found = call()
        assert expected is None or found == expected, f"{found!r} in place of {expected!r}"
    return attempt


def refused_or(call, holds):
    "Tries what may be refused; where it is not, `holds` looks at what came back and must be true."
    def attempt():
        try:
            found = call()
        except InputError as refusal:
            assert printable(str(refusal)), f"not one line: {str(refusal)!r}"
            return
        assert holds(found), f"came back: {found!r:.200}"
    return attempt


@contextlib.contextmanager
def within(seconds: float):
    "Raises TimeoutError in a block that hangs."
    def stop(*_):
        raise TimeoutError(f"it hung for {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
