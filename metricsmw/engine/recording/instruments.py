"""The app's own numbers: counters, gauges and histograms, into the segment that only it writes.

An instrument has one series for each set of label values, and a series has one row. A series that
was looked up once, by `labels`, records without any look-up: its lanes are at hand until the
segment is replaced or the process forks. Each record asks the clock, as the recorder does: once a
step it is looked whether the segment is still whole.

Past ``max_series`` all further label sets of an instrument share one whose values are ``<other>``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from metricsmw.engine.recording.definitions import (
    MAX_SERIES,
    Definition,
    Merge,
    define,
    finite,
    pack_name,
)
from metricsmw.engine.recording.recorder import NO_LANES, Recorder
from metricsmw.engine.recording.rows import SET_AT, VALUE, Rows
from metricsmw.engine.recording.timer import Timer
from metricsmw.engine.storage.histogram import ROUTE_BUCKETS, instrument_buckets
from metricsmw.engine.storage.keys import OTHER
from metricsmw.engine.storage.layout import CounterLane, HistogramLane, Kind
from metricsmw.validation import whole

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="BoundSeries")
Made = TypeVar("Made", bound="Instrument[Any]")
WHOLE, MILLIONTHS = int(CounterLane.WHOLE), int(CounterLane.MILLIONTHS)
SUM = int(HistogramLane.SUM)
# A lane has room for 2**52. What is added without a look at it is so small that it is not reached.
MOST_AT_ONCE = 2**32
LARGEST = 2.0**52 + 2.0**51


class Increase(Protocol):
    """Adds an amount."""

    def __call__(self, amount: float = 1) -> None:
        """Add it."""


class BoundSeries:
    """One row: the numbers of one set of label values.

    What records is a closure over the row's lanes, as the recorder's functions are.
    """

    __slots__ = ("bind", "clock", "kind", "packed")

    bind: Callable[[memoryview[float]], None]
    """Records into these lanes from now on."""

    def __init__(self, rows: Rows, definition: Definition, packed: bytes) -> None:
        self.kind = definition.kind
        self.packed = packed
        self.clock = rows.clock


class CounterSeries(BoundSeries):
    """A sum that only grows.

    ``inc(amount=1)`` adds an amount from 0 to 1e15, of which millionths are kept. It raises
    `ValueError` or `TypeError` for anything else.
    """

    __slots__ = ("inc",)

    inc: Increase

    def __init__(self, rows: Rows, definition: Definition, packed: bytes) -> None:
        super().__init__(rows, definition, packed)
        clock = rows.clock
        lanes = NO_LANES

        def bind(new: memoryview[float]) -> None:
            nonlocal lanes
            lanes = new

        def inc(amount: float = 1) -> None:
            now = clock()
            if now >= rows.deadline:
                rows.refresh(now)
            if amount.__class__ is int and 0 <= amount <= MOST_AT_ONCE:
                lanes[WHOLE] += amount
            else:
                inc_checked(amount)

        def inc_checked(amount: float) -> None:
            if not 0 <= finite("amount", amount) <= 1e15:
                raise ValueError(f"amount must be a number from 0 to 1e+15, got {amount!r}")
            part, units = math.modf(amount)
            units = min(units, LARGEST - lanes[WHOLE])
            lanes[WHOLE] += units
            part *= 1e6
            lanes[MILLIONTHS] += part

        self.bind, self.inc = bind, rows.locked(inc)


class GaugeSeries(BoundSeries):
    """A value that goes up and down.

    ``set(value)`` sets the value of this worker, ``inc(amount=1)`` and ``dec(amount=1)`` change it.
    They raise `ValueError` or `TypeError` for what is no finite number.
    """

    __slots__ = ("inc", "set")

    set: Callable[[float], None]
    inc: Increase

    def __init__(self, rows: Rows, definition: Definition, packed: bytes) -> None:
        super().__init__(rows, definition, packed)
        clock = rows.clock
        lanes = NO_LANES

        def bind(new: memoryview[float]) -> None:
            nonlocal lanes
            lanes = new

        def set_value(value: float) -> None:
            now = clock()
            if now >= rows.deadline:
                rows.refresh(now)
            if value.__class__ is not float or not -1e300 <= value <= 1e300:
                finite("value", value)
            lanes[VALUE] = value
            lanes[SET_AT] = now

        def inc(amount: float = 1) -> None:
            now = clock()
            if now >= rows.deadline:
                rows.refresh(now)
            amount = float(finite("amount", amount))
            lanes[VALUE] += amount
            lanes[SET_AT] = now

        self.bind, self.set, self.inc = bind, rows.locked(set_value), rows.locked(inc)

    def dec(self, amount: float = 1) -> None:
        """Take an amount away; see ``inc``."""
        self.inc(-amount)


class HistogramSeries(BoundSeries):
    """Measured values, in buckets.

    ``observe(value)`` counts a value >= 0; those beyond the ends of the buckets are counted at the
    ends. It raises `ValueError` or `TypeError` for what is negative or no finite number.
    """

    __slots__ = ("observe",)

    observe: Callable[[float], None]

    def __init__(self, rows: Rows, definition: Definition, packed: bytes) -> None:
        super().__init__(rows, definition, packed)
        clock = rows.clock
        lanes = NO_LANES
        form = instrument_buckets(definition.unit)
        scale, factor = float(1 << form.scale), form.sum_factor
        lowest = -float(form.first)
        floor = 2.0 ** (form.first / scale)
        ceiling = min(2.0 ** ((form.first + ROUTE_BUCKETS - 1) / scale), MOST_AT_ONCE / factor)

        def bind(new: memoryview[float]) -> None:
            nonlocal lanes
            lanes = new

        def observe(value: float) -> None:
            now = clock()
            if now >= rows.deadline:
                rows.refresh(now)
            if value.__class__ is not float or not floor <= value <= ceiling:
                observe_checked(value)
                return
            units = value * factor  # not between the load and the store
            lanes[ceil(log2(value) * scale + lowest)] += 1.0
            lanes[SUM] += units

        def observe_checked(value: float) -> None:
            if not finite("value", value) >= 0:
                raise ValueError(f"value must be a number >= 0, got {value!r}")
            lane = 0
            if value > floor:
                lane = min(ceil(log2(value) * scale + lowest), ROUTE_BUCKETS - 1)
            lanes[lane] += 1.0
            units = min(value * factor, LARGEST - lanes[SUM])
            lanes[SUM] += units

        self.bind, self.observe = bind, rows.locked(observe)

    def time(self) -> Timer:
        """Return what counts how long a block takes, in seconds; as a decorator, each call."""
        return Timer(self.observe, self.clock)


class Instrument(Generic[S]):
    """An instrument of the app; without labels it records by itself."""

    def __init__(self, rows: Rows, definition: Definition, max_series: int) -> None:
        self.definition = definition
        self._rows = rows
        self._max_series = max_series
        self._series: dict[tuple[str, ...], S] = {}
        self._only = None if definition.labels else self.labels()

    def labels(self, *values: object, **named: object) -> S:
        """Return the series of these label values, all by position or all by name.

        Keep it where it is used often: it records without a look-up.

        Raises:
            ValueError: There is a label too many or too few.
        """
        if not named:
            try:
                return self._series[values]  # type: ignore[index]
            except (KeyError, TypeError):
                pass  # new, no str, or not to be hashed
        names = self.definition.labels
        if named and not values:
            values = tuple(named[name] for name in names if name in named)
        if len(values) != len(names) or (named and set(named) != set(names)):
            raise ValueError(
                f"{self.definition.name} has the labels {', '.join(names) or '(none)'}; "
                f"got {values or named!r}"
            )
        key = tuple(map(str, values))
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= self._max_series:
                key = (OTHER,) * len(names)
            found = self._series.get(key) or self._add(key)
        return found

    def _new(self, packed: bytes) -> S:
        raise NotImplementedError

    def _add(self, key: tuple[str, ...]) -> S:
        series = self._new(pack_name(self.definition, key))
        self._rows.add(series)
        return self._series.setdefault(key, series)

    @property
    def only(self) -> S:
        """The one series of an instrument without labels. `ValueError` where it has labels."""
        if self._only is None:
            self.labels()
        assert self._only is not None
        return self._only


class Counter(Instrument[CounterSeries]):
    """A sum that only grows, over all workers."""

    def _new(self, packed: bytes) -> CounterSeries:
        return CounterSeries(self._rows, self.definition, packed)

    def inc(self, amount: float = 1) -> None:
        """Add an amount; see `CounterSeries.inc`."""
        self.only.inc(amount)


class Gauge(Instrument[GaugeSeries]):
    """A value that goes up and down, joined over the live workers."""

    def _new(self, packed: bytes) -> GaugeSeries:
        return GaugeSeries(self._rows, self.definition, packed)

    def set(self, value: float) -> None:
        """Set this worker's value; see `GaugeSeries.set`."""
        self.only.set(value)

    def inc(self, amount: float = 1) -> None:
        """Add an amount, of either sign."""
        self.only.inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Take an amount away."""
        self.only.dec(amount)


class Histogram(Instrument[HistogramSeries]):
    """Measured values, over all workers."""

    def _new(self, packed: bytes) -> HistogramSeries:
        return HistogramSeries(self._rows, self.definition, packed)

    def observe(self, value: float) -> None:
        """Count a value >= 0; see `HistogramSeries.observe`."""
        self.only.observe(value)

    def time(self) -> Timer:
        """Return what counts how long a block takes; see `HistogramSeries.time`."""
        return self.only.time()


class Instruments:
    """The instruments of a monitor, by name."""

    def __init__(self, recorder: Recorder, step: float) -> None:
        self._rows = Rows(recorder, step)
        self._lock = threading.Lock()
        self._made: dict[str, Instrument[Any]] = {}

    def help_of(self, name: str) -> str:
        """Return an instrument's help; empty for one that only other workers have made."""
        made = self._made.get(name)
        return "" if made is None else made.definition.help

    def is_made_otherwise(self, kind: Kind, name: str, unit: str) -> bool:
        """Whether this worker has another instrument of that name; an earlier version made it."""
        made = self._made.get(name)
        return made is not None and (made.definition.kind, made.definition.unit) != (kind, unit)

    def show(self) -> None:
        """Have rows for all series, those included that have recorded nothing yet."""
        if self._made:
            self._rows.refresh(self._rows.clock(), serves=False)

    def counter(
        self,
        name: str,
        help: str = "",
        labels: Sequence[str] = (),
        *,
        unit: str = "",
        max_series: int = MAX_SERIES,
    ) -> Counter:
        """Return a counter: a sum that only grows, over all workers of the server.

        Args:
            name: Letters, digits, underscores and colons, as OpenMetrics has it; formats add
                ``_total``.
            help: What it counts, for those who read the exports.
            labels: The names of its labels, up to 8.
            unit: A word such as "seconds" or "bytes"; it becomes part of the exported name.
            max_series: So many different label values, 1 to 10000; further ones share ``<other>``.

        Raises:
            ValueError: Something is not as it has to be, or there is another of that name.
            TypeError: Something is of another type.
        """
        stem = name.removesuffix("_total") if isinstance(name, str) else name
        definition = define(Kind.COUNTERS, stem, help, unit, labels, "sum")
        return self._add(Counter, definition, max_series)

    def gauge(
        self,
        name: str,
        help: str = "",
        labels: Sequence[str] = (),
        *,
        unit: str = "",
        merge: Merge = "sum",
        max_series: int = MAX_SERIES,
    ) -> Gauge:
        """Return a gauge: a value that goes up and down, and ends with its worker.

        Args:
            name: See `counter`.
            help: See `counter`.
            labels: See `counter`.
            unit: See `counter`.
            merge: What the server's value is: the "sum" of its workers' values, their "max", or the
                one that was set "last".
            max_series: See `counter`.

        Raises:
            ValueError: See `counter`.
            TypeError: See `counter`.
        """
        definition = define(Kind.GAUGES, name, help, unit, labels, merge)
        return self._add(Gauge, definition, max_series)

    def histogram(
        self,
        name: str,
        help: str = "",
        labels: Sequence[str] = (),
        *,
        unit: str = "seconds",
        max_series: int = MAX_SERIES,
    ) -> Histogram:
        """Return a histogram of measured values, over all workers of the server.

        Args:
            name: See `counter`.
            help: See `counter`.
            labels: See `counter`.
            unit: See `counter`. Seconds are told apart within 2.2 %, up to an hour; values of any
                other unit within 4.4 %, up to 2.8e14.
            max_series: See `counter`.

        Raises:
            ValueError: See `counter`.
            TypeError: See `counter`.
        """
        definition = define(Kind.HISTOGRAMS, name, help, unit, labels, "sum")
        return self._add(Histogram, definition, max_series)

    def _add(
        self,
        make: Callable[[Rows, Definition, int], Made],
        definition: Definition,
        max_series: int,
    ) -> Made:
        """Return the instrument of a definition, made unless it is there.

        Raises:
            ValueError: There is one of that name that was made otherwise, or ``max_series`` is not
                from 1 to 10000.
        """
        whole("max_series", max_series, 1, 10_000)
        with self._lock:
            name, exported = definition.name, definition.exported
            known = self._made.values()
            made = next((m for m in known if m.definition.exported == exported), None)
            made = made or self._made.get(name)
            if made is None:
                made = self._made[name] = make(self._rows, definition, max_series)
            elif made.definition != definition:
                raise ValueError(
                    f"there is {definition.name!r} already, made otherwise: {made.definition}"
                )
            return cast("Made", made)
