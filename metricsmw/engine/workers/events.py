"""The server's events: what happened to it, the last two hundred, for whoever looks later.

The file `events` in the server's directory is JSON, replaced as a whole while the server's lock is
held, so that a worker that is killed leaves the one before. Nothing runs in the background: whoever
reads the metrics compares the workers that live with those that the file names, and notes what has
changed. A worker that ends in order notes that itself, where somebody has read before. A private
monitor has its events in memory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Collection
from math import inf, isfinite
from typing import Literal, TypedDict, TypeGuard, cast, get_args

from metricsmw.clock import Clock
from metricsmw.engine.directory import Directory
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.storage.header import Header
from metricsmw.engine.storage.layout import HEADER_BYTES, Field
from metricsmw.engine.storage.tables import READ_ERRORS
from metricsmw.engine.workers.group import Group
from metricsmw.engine.workers.notes import CorruptNoteError, note_text, parse_note
from metricsmw.engine.workers.processes import Process, root_process
from metricsmw.engine.workers.surroundings import HERE

EVENTS = "events"
MAX_EVENTS = 200
MAX_BYTES = 256 << 10
MAX_TEXT = 300
MAX_WORKERS = 4096
MAX_TIME = 253_402_300_800.0  # the year 10000
MAX_NUMBER = 1 << 53
# Workers that come so many seconds after the first one are of its generation; one that goes within
# so many seconds as a whole was replaced by a reload.
GENERATION_SECONDS = 10.0
RELOAD_SECONDS = 60.0
EXIT_ATTEMPTS = 20

EventType = Literal["start", "reload", "worker_joined", "worker_lost", "reset"]
TYPES: tuple[EventType, ...] = get_args(EventType)


class Event(TypedDict):
    """One event.

    ``number`` grows by one with each; ``at``: Unix time; ``pid``: the process that it is about;
    ``by``: who did it. Both may be None.
    """

    number: int
    at: float
    type: EventType
    text: str
    pid: int | None
    by: str | None


class EventState(TypedDict):
    """All that is saved.

    ``epoch`` tells this server's events from those of others. ``reset_at``: monotonic time of the
    last reset that is noted. ``workers``: ids of the processes that lived; ``left``: those that
    have ended in order since. ``generation``: the workers of the start or the last reload that
    still live; ``began`` and ``went``: the Unix times of its beginning, and when the first of it
    went, 0 where none has.
    """

    epoch: str
    events: list[Event]
    reset_at: float
    workers: list[int]
    left: list[int]
    generation: list[int]
    began: float
    went: float


class EventLog:
    """The events of the server that a monitor is a worker of.

    Args:
        clock: The monitor's clock.
        faults: Where failures are reported.
    """

    def __init__(self, clock: Clock, faults: FaultLog) -> None:
        self._clock = clock
        self._faults = faults
        self._seen: tuple[object, ...] | None = None
        self._private: EventState | None = None

    def look(self, group: Group, live: Collection[int]) -> None:
        """Note what has changed since somebody last looked. Never raises, never waits for a lock.

        Args:
            group: The group that was read.
            live: The ids of the workers' processes that live.
        """
        directory = group.directory
        place = id(group) if directory is None else directory.identity
        seen = (place, frozenset(live), group.reset.at)
        if seen == self._seen:
            return
        try:
            with group.exclusive(wait=False) as held:
                if not held:
                    return
                self._update(group)
            self._seen = seen
        except OSError:
            pass  # no room: somebody notes it later
        except Exception:
            self._faults.report("noting the server's events")

    def note_reset(self, group: Group, by: str) -> None:
        """Note who has made the last reset. Never raises.

        Args:
            group: The group that was reset.
            by: Who did it.
        """
        try:
            with group.exclusive(wait=True):
                self._update(group, by)
        except OSError:
            pass  # no room, or the lock cannot be had: the reset is noted without a name
        except Exception:
            self._faults.report("noting the server's events")

    def read(self, group: Group) -> EventState | None:
        """Return the saved events; None where there are none, or the file is damaged."""
        if group.directory is None:
            return self._private
        return read_events(group.directory)

    def _update(self, group: Group, by: str | None = None) -> None:
        """Compare the server with what is saved, and save it; with the server's lock held."""
        wall, now = self._clock.time(), self._clock.monotonic()
        state = self.read(group)
        # Anew, as the reading may be older than the file.
        live, created, elsewhere = look_at_workers(group)
        before = state
        if state is None:
            state = _first(wall, wall - max(now - created, 0.0), live)
        else:
            state = cast("EventState", {**state, "events": list(state["events"])})
            _compare(state, live, elsewhere, wall)
        reset_at = group.reset.at
        if reset_at > state["reset_at"]:
            at = wall - min(max(now - reset_at, 0.0), wall)
            _add(state, at, "reset", "Counts were reset" + (f" by {by}" if by else ""), by=by)
            state["reset_at"] = reset_at
        elif by is not None:
            _amend(state, by)
        if state != before:
            self._save(group, state)

    def _save(self, group: Group, state: EventState) -> None:
        if group.directory is None:
            self._private = state
        else:
            group.directory.replace(EVENTS, note_text(cast("dict[str, object]", state)).encode())


def look_at_workers(group: Group) -> tuple[list[int], float, set[int]]:
    """Return the ids of the live workers' processes, when the server started, and foreign ids.

    The first are sorted. The start is that of the oldest segment, in monotonic seconds; infinite
    where no segment can be read. The last are of processes of another PID namespace.
    """
    found, created, elsewhere, here = set(), inf, set(), HERE.pid_namespace
    for source in group.sources().values():
        with contextlib.suppress(*READ_ERRORS):
            header = Header(source.read(0, HEADER_BYTES))
            created = min(created, header.numbers[Field.CREATED])
            if source.alive:
                found.add(header.pid)
            if header.numbers[Field.PID_NAMESPACE] != here:
                elsewhere.add(header.pid)
    return sorted(found)[:MAX_WORKERS], created, elsewhere


def note_leaving(group: Group) -> None:
    """Note that this process ends in order, where somebody reads the events. Never raises.

    Waits for the server's lock for a fifth of a second at most.
    """
    directory = group.directory
    if directory is None:
        return
    with contextlib.suppress(Exception):
        for _ in range(EXIT_ATTEMPTS):
            with group.exclusive(wait=False) as held:
                if held:
                    state = read_events(directory)
                    if state is not None:
                        left = [*state["left"], os.getpid()][-MAX_WORKERS:]
                        text = note_text({**state, "left": left})
                        directory.replace(EVENTS, text.encode())
                    return
            time.sleep(0.01)


# --- what changes ---------------------------------------------------------------------------------


def _first(wall: float, started: float, live: list[int]) -> EventState:
    state: EventState = {
        "epoch": secrets.token_hex(4),
        "events": [],
        "reset_at": 0.0,
        "workers": live,
        "left": [],
        "generation": live,
        "began": wall,
        "went": 0.0,
    }
    _add(state, max(started, 0.0), "start", "Server started", root_process().pid)
    return state


def _compare(state: EventState, live: list[int], elsewhere: set[int], wall: float) -> None:
    """Note the workers that have come and gone."""
    known, left = set(state["workers"]), set(state["left"])
    new = [pid for pid in live if pid not in known]
    gone = [pid for pid in state["workers"] if pid not in live]
    if not new and not gone:
        return
    for pid in gone:
        _add(
            state,
            wall,
            "worker_lost",
            f"Worker {pid} is gone: {_reason(pid, left, elsewhere)}",
            pid,
        )
    for pid in new:
        _add(state, wall, "worker_joined", f"New worker {pid}", pid)
    state["workers"] = live
    state["left"] = [pid for pid in state["left"] if pid in live]
    _follow(state, live, new, left.intersection(gone), wall)


def _reason(pid: int, left: Collection[int], elsewhere: Collection[int]) -> str:
    if pid in left:
        return "it ended in order"
    if pid not in elsewhere and Process(pid, 0).is_running():
        return "its process runs on, without the metrics"
    return "it was killed or crashed, as far as is known"


def _follow(
    state: EventState, live: list[int], new: list[int], orderly: Collection[int], wall: float
) -> None:
    """Note a reload: all workers of a generation have gone in order within a short time."""
    generation = [pid for pid in state["generation"] if pid in live]
    if len(generation) < len(state["generation"]) and not state["went"]:
        state["went"] = wall
    if wall - state["began"] <= GENERATION_SECONDS and not state["went"]:
        generation += new
    if not generation and orderly and live and wall - state["went"] <= RELOAD_SECONDS:
        _add(state, wall, "reload", "Reload: all workers were replaced")
    if not generation or (state["went"] and wall - state["went"] > RELOAD_SECONDS):
        generation, state["began"], state["went"] = live, wall, 0.0
    state["generation"] = generation


def _add(
    state: EventState,
    at: float,
    type: EventType,
    text: str,
    pid: int | None = None,
    by: str | None = None,
) -> None:
    events = state["events"]
    number = events[-1]["number"] + 1 if events else 1
    shown = text[:MAX_TEXT]
    by = None if by is None else by[:MAX_TEXT]
    events.append({"number": number, "at": at, "type": type, "text": shown, "pid": pid, "by": by})
    del events[:-MAX_EVENTS]


def _amend(state: EventState, by: str) -> None:
    """Say of the last reset who did it, where somebody has noted it without that."""
    events = state["events"]
    for place in reversed(range(len(events))):
        if events[place]["type"] == "reset":
            if events[place]["by"] is None:
                text = f"Counts were reset by {by}"[:MAX_TEXT]
                events[place] = {**events[place], "text": text, "by": by[:MAX_TEXT]}
            return


# --- validation -----------------------------------------------------------------------------------


def read_events(directory: Directory) -> EventState | None:
    """Return the events in a server's directory; None where there are none, or they are damaged."""
    try:
        return as_events(directory.read(EVENTS, MAX_BYTES + 1))
    except (OSError, CorruptNoteError):
        return None


def as_events(data: bytes) -> EventState:
    """Return the events that a file holds. Raises `CorruptNoteError` for any other content."""
    if len(data) > MAX_BYTES:
        raise CorruptNoteError("it is too long")
    state = parse_note(data)
    if state.keys() != EventState.__annotations__.keys():
        raise CorruptNoteError("it has other fields")
    numbers = (state["reset_at"], state["began"], state["went"])
    lists = (state["workers"], state["left"], state["generation"])
    events = state["events"]
    if not (
        _is_text(state["epoch"], 16)
        and all(map(_is_time, numbers))
        and all(map(_is_pids, lists))
        and isinstance(events, list)
        and 1 <= len(events) <= MAX_EVENTS
        and all(map(_is_event, events))
    ):
        raise CorruptNoteError("it has impossible values")
    return cast("EventState", state)


def _is_event(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == Event.__annotations__.keys()
        and _is_whole(value["number"], MAX_NUMBER)
        and _is_time(value["at"])
        and value["type"] in TYPES
        and _is_text(value["text"], MAX_TEXT)
        and (value["pid"] is None or _is_whole(value["pid"], 1 << 31))
        and (value["by"] is None or _is_text(value["by"], MAX_TEXT))
    )


def _is_time(value: object) -> TypeGuard[float]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return isfinite(value) and 0 <= value < MAX_TIME


def _is_whole(value: object, beyond: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < beyond


def _is_pids(value: object) -> bool:
    if not isinstance(value, list) or len(value) > MAX_WORKERS:
        return False
    return all(_is_whole(pid, 1 << 31) for pid in value)


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most
