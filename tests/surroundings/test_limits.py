"""CPU and memory are of the container's limit where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from kits.surroundings import Stage, container, control_group

MB = 1 << 20


@pytest.fixture
def stage(tmp_path: Path):
    with Stage(tmp_path) as stage:
        yield stage


def test_memory_of_the_groups_limit(stage: Stage, tmp_path: Path) -> None:
    with control_group("memory", memory__limit_in_bytes=256 * MB) as group:
        server = stage.start(within=container(cgroup=[group]), METRICSMW_DIR=str(tmp_path / "d"))
        server.do("record")
        shown = server.do("read")
        limits = server.do("statistics")["configuration"]
        assert limits["memory_limit_mb"] == 256
        assert limits["memory_limit"] == "cgroup v1"
        share = 100 * shown["memory_usage_mb"] / 256
        assert shown["memory_usage_pct"] == pytest.approx(share, abs=0.02)
        # It is changed as the container runs.
        server.do(
            "run", "from metricsmw.engine.reading import resources as r; r.LIMITS_SECONDS = 0"
        )
        (group / "memory.limit_in_bytes").write_text(f"{512 * MB}\n")
        assert server.do("statistics")["configuration"]["memory_limit_mb"] == 512
        server.kill()
