"""Under hypercorn on Trio and on asyncio alike, what the client has in full is counted in full."""

from __future__ import annotations

import pytest
from kits.servers import serve, wait_until

ENV = {"METRICSMW_TOKEN": "of-these-tests-only"}
AUTH = {"Authorization": "Bearer of-these-tests-only"}
PATHS = ["/stream", "/file", "/static/parts.py"]


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_streams_and_files_are_counted_with_their_latency(loop: str) -> None:
    with serve("hypercorn", "apps.parts:app", args=["-k", loop], env=ENV) as server:
        for path in PATHS:
            answer = server.get(path)
            assert (answer.status, bool(answer.body)) == (200, True)

        def counted() -> bool:
            current: dict[str, int] = server.get("/api/metrics/current", AUTH).json()["metrics"]
            return current["total_requests"] == len(PATHS)

        wait_until(counted, "all requests")
        rows = server.get("/api/metrics/routes", AUTH).json()["routes"]
        assert [row["statuses"] for row in rows] == [{"2xx": 1}] * len(PATHS)
        assert all(row["latency_p50_ms"] > 0 for row in rows)
