"""VictoriaMetrics itself receives what is pushed: each bucket, quantiles, three servers merged."""

from __future__ import annotations

import math
import random
import time
from collections import Counter as Tally

import pytest
from kits.engines import VICTORIA_SUITES, Engine, victoria_metrics
from kits.servers import wait_until

from metricsmw.engine.storage.histogram import index, upper_bound
from metricsmw.exporters.model import (
    CounterFamily,
    Exposition,
    GaugeFamily,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.otlp import OTLPSender

pytestmark = pytest.mark.timeout(180)

NAME = "http_server_request_duration_seconds"
CHANCE = random.Random(3)
SERVERS = {
    name: [CHANCE.lognormvariate(mean, 0.7) for _ in range(10_000)]
    for name, mean in (("one", -4), ("two", -3), ("three", -2))
}


def exposition(instance: str, latencies: list[float]) -> Exposition:
    tally = Tally(index(seconds) for seconds in latencies)
    first = min(tally)
    counts = [tally[bucket] for bucket in range(first, max(tally) + 1)]
    point = HistogramPoint({"http.route": "/"}, 5, first, counts, sum(latencies), 1.6e9)
    return Exposition(
        {"service.name": "shop", "service.instance.id": instance},
        [
            HistogramFamily("http.server.request.duration", "s", "Duration.", [point]),
            CounterFamily("orders", "{order}", "Orders.", [NumberPoint({}, 7, 1.6e9)]),
            GaugeFamily(
                "http.server.active_requests", "{request}", "In flight.", [NumberPoint({}, 2)]
            ),
        ],
    )


def push(engine: Engine, exposition: Exposition) -> None:
    OTLPSender(f"{engine.url}/opentelemetry/v1/metrics", None, 20.0).send(exposition, time.time())


def visible(engine: Engine, expression: str, expected: float) -> None:
    engine.ask("/internal/force_flush")
    wait_until(
        lambda: engine.value(expression, time.time() + 1) == expected,
        f"{expression} to be {expected}",
    )


@pytest.mark.parametrize("suite", VICTORIA_SUITES)
def test_each_bucket_arrives_and_three_servers_merge(suite: str) -> None:
    with victoria_metrics(suite) as engine:
        for name, latencies in SERVERS.items():
            push(engine, exposition(name, latencies))
        everything = sorted(latency for latencies in SERVERS.values() for latency in latencies)
        visible(engine, f"sum({NAME}_count)", len(everything))
        now = time.time() + 1
        for name, latencies in SERVERS.items():
            # A range is named "lower...upper".
            found = {
                tuple(map(float, sample.labels["vmrange"].split("..."))): sample.value
                for sample in engine.query(f'{NAME}_bucket{{service.instance.id="{name}"}}', now)
                or engine.query(f'{NAME}_bucket{{service_instance_id="{name}"}}', now)
            }
            tally = Tally(index(seconds) for seconds in latencies)
            assert len(found) == len(tally)
            for (lower, upper), count in found.items():
                bucket = round(math.log2(upper) * 32)
                assert count == tally[bucket]
                assert upper == pytest.approx(upper_bound(bucket), rel=1e-3)
                assert lower == pytest.approx(upper_bound(bucket - 1), rel=1e-3)
        for quantile in (0.5, 0.95, 0.99):
            value = engine.value(
                f"histogram_quantile({quantile}, sum({NAME}_bucket) by (vmrange))", now
            )
            exact = everything[math.ceil(quantile * len(everything)) - 1]
            assert value == pytest.approx(exact, rel=0.011)
        assert engine.value("sum(orders_total)", now) == 21
        assert engine.value("sum(http_server_active_requests)", now) == 6
