"""A job's note: the state that its leader saves for its successors and for all readers.

A note is a small JSON file, replaced as a whole. It may be damaged, or written by another
program, so one validator checks it for all readers: a note is an object, at most 4 MiB and 12
levels deep, whose texts are valid Unicode, whose numbers are finite and whose whole numbers are
below 2^63.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from metricsmw.engine.directory import Directory

Note = dict[str, object]

MAX_BYTES = 4 << 20
MAX_DEPTH = 12
MAX_INTEGER = 1 << 63


class CorruptNoteError(ValueError):
    """A note that no leader has written; the message says why, and shows nothing of it."""


def parse_note(text: bytes | str) -> Note:
    """Return the note that a text holds; an empty one for no text.

    Raises:
        CorruptNoteError: The text is no note.
    """
    import json  # here, as importing the package is to cost next to nothing

    if not text:
        return {}
    if len(text) > MAX_BYTES:
        raise CorruptNoteError("it is too long")
    try:
        note = json.loads(text)
        _check(note, MAX_DEPTH)
    except CorruptNoteError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        raise CorruptNoteError("it is no JSON") from error
    if not isinstance(note, dict):
        raise CorruptNoteError("it is no object")
    return note


def _check(value: object, depth: int) -> None:
    """Raise CorruptNoteError for a value that not every reader could show."""
    if depth < 0:
        raise CorruptNoteError("it is nested too deeply")
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # a UnicodeEncodeError where a surrogate stands alone
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise CorruptNoteError("it has a number out of range")
    elif isinstance(value, int):
        if not -MAX_INTEGER < value < MAX_INTEGER:
            raise CorruptNoteError("it has a number out of range")
    elif isinstance(value, dict):
        for name, part in value.items():
            _check(name, depth)
            _check(part, depth - 1)
    elif isinstance(value, list):
        for part in value:
            _check(part, depth - 1)


def note_text(note: Mapping[str, object]) -> str:
    """Return a note as text."""
    import json

    return json.dumps(note)


def read_note(directory: Directory, name: str) -> Note:
    """Return the note in a file; an empty one where there is no file.

    Raises:
        CorruptNoteError: The file is no note, or cannot be read.
    """
    try:
        text = directory.read(name, MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CorruptNoteError(f"it cannot be read: {error.strerror}") from error
    return parse_note(text)
