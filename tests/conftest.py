"""What all tests share: tiers, one hypothesis profile, and no state that another test left.

The tiers are markers that are set here and nowhere else: `server` (starts a real server or a real
engine), `browser` (looks at the page in Chromium), `slow` (takes seconds, whatever for). What has
none of them is the quick tier: `pytest -m "not (server or browser or slow)"`.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import hypothesis
import pytest

import metricsmw.monitor
from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording import recorder

Folder = TemporaryDirectory[str]
TESTS = Path(__file__).resolve().parent
# The files that take minutes: where several processes share the tests, none is to begin with one
# of these as the others end.
LONG = [
    TESTS / name
    for name in (
        "adapters/dashboard/test_connection.py",
        "adapters/dashboard/test_looks.py",
        "adapters/dashboard/test_numbers.py",
        "conformance/test_frameworks_served.py",
        "alerts/test_servers.py",
        "engine/workers/test_kills.py",
        "exporters/test_scraped_servers.py",
        "test_readme.py",
        "test_typing.py",
    )
]
# Files whose tests start servers otherwise than by a `serve`.
SERVER = {
    "adapters/dashboard/test_connection.py",
    "adapters/dashboard/test_looks.py",
    "adapters/dashboard/test_numbers.py",
    "cli/test_demo.py",
    "conformance/test_servers_in_process.py",
    "exporters/test_engines.py",
    "exporters/test_victoria.py",
    "servers/test_stalled_clients.py",
    "surroundings/test_cleaners.py",
    "surroundings/test_identity.py",
    "surroundings/test_limits.py",
    "surroundings/test_notes.py",
    "surroundings/test_room.py",
}
# Files, and tests of a file, that take seconds: many examples or requests, builds, interpreters,
# crews of processes.
SLOW = {
    "adapters/api/test_fuzzed_requests.py",
    "adapters/api/test_subapps.py::test_imports_no_other_framework",
    "adapters/django/test_wrapped.py::test_a_request_leaves_nothing_to_the_garbage_collector",
    "adapters/test_beside_others.py::test_both_count_in_each_order",
    "adapters/test_beside_others.py::test_tools_that_patch_the_process",
    "adapters/test_errors.py",
    "adapters/test_evidence.py::test_by_default_no_secret_is_anywhere",
    "adapters/test_evidence.py::test_opentelemetry_is_not_imported",
    "adapters/test_last_resorts.py::test_a_request_leaves_nothing_to_collect",
    "adapters/test_starlette.py::test_endpoints_that_no_walk_finds_cost_a_bounded_number_of_walks",
    "adapters/test_wrap.py::test_wrap_imports_no_framework_that_the_app_does_not_use",
    "alerts/test_alerter.py::test_a_burn_rate_waits_until_its_long_window_is_covered",
    "alerts/test_lasting.py::test_a_burn_rate_goes_on_after_a_restart",
    "alerts/test_lasting.py::test_killed_in_the_middle_it_has_all_but_the_minute_in_progress",
    "alerts/test_lasting.py::test_one_worker_writes_and_its_death_loses_nothing",
    "alerts/test_lasting.py::test_percentiles_of_any_range_are_those_of_its_requests",
    "alerts/test_lasting.py::test_the_history_goes_back_beyond_the_hour",
    "alerts/test_lasting_damage.py",
    "alerts/test_leaders.py",
    "alerts/test_replay.py::test_it_says_what_an_alerter_told",
    "alerts/test_route_minutes.py::test_a_table_of_a_span_is_the_sum_of_its_minutes",
    "alerts/test_scheduled_export.py::test_a_daily_export_and_one_by_minutes_share_a_folder",
    "conformance/test_asgi_random.py",
    "conformance/test_frameworks.py::test_each_request",
    "conformance/test_frameworks.py::test_paths_that_are_not_there_share_a_row",
    "conformance/test_paths.py::test_ten_thousand_paths_that_are_not_there",
    "conformance/test_score.py",
    "conformance/test_wsgi_random.py",
    "engine/reading/test_first_byte.py::test_percentiles_are_those_of_first_bytes",
    "engine/reading/test_one_reading.py::test_its_parts_agree_while_threads_record",
    "engine/reading/test_rates.py::test_however_many_requests_are_exact",
    "engine/reading/test_rates.py::test_the_window_is_the_one_promised",
    "engine/reading/test_routes_table.py::test_against_a_list",
    "engine/reading/test_series.py::test_reading_while_others_record",
    "engine/reading/test_workers.py::test_against_a_list",
    "engine/reading/test_workers.py::test_readers_in_turn_know_what_one_that_always_looks_does",
    "engine/recording/test_errors.py",
    "engine/recording/test_free_threaded.py::test_no_count_is_lost_without_a_gil",
    "engine/recording/test_recorder.py::test_it_records_as_one_does_by_hand",
    "engine/recording/test_threads.py",
    "engine/recording/test_users.py::test_against_a_dictionary",
    "engine/storage/test_captures.py::test_another_process_never_sees_half_a_one",
    "engine/storage/test_captures.py::test_readers_never_see_half_a_one",
    "engine/storage/test_percentiles.py::test_every_bucket_border_and_its_neighbours",
    "engine/storage/test_percentiles.py::test_percentiles_are_within_the_bound",
    "engine/storage/test_percentiles.py::test_percentiles_of_a_route_are_within_its_bound",
    "engine/workers/test_damaged_segments.py",
    "engine/workers/test_damaged_shared_files.py",
    "engine/workers/test_footprint.py::test_memory",
    "engine/workers/test_fuzzed_files.py::test_any_note_of_alerts_is_read_or_damaged",
    "engine/workers/test_fuzzed_files.py::test_any_number_in_a_live_segment",
    "engine/workers/test_jobs.py",
    "engine/workers/test_leader.py::test_a_note_is_read_as_it_was_written",
    "engine/workers/test_leader.py::test_anything_else_is_damage_and_nothing_worse",
    "engine/workers/test_lifecycle_model.py",
    "engine/workers/test_no_room.py",
    "engine/workers/test_reset_across_workers.py::test_from_any_worker_under_load",
    "engine/workers/test_reset_across_workers.py::test_many_in_a_row",
    "engine/workers/test_shared_history.py",
    "engine/workers/test_shared_users.py::test_a_million_are_an_estimate_in_bounded_memory",
    "engine/workers/test_shared_users.py::test_ten_thousand_are_exact",
    "engine/workers/test_shared_users.py::test_the_error_is_what_it_is_said_to_be",
    "engine/workers/test_shared_users.py::test_the_estimate_follows_activity",
    "engine/workers/test_shared_users.py::test_the_estimate_holds_while_the_sample_grows",
    "engine/workers/test_statuses.py::test_killed_while_a_row_gets_another_name",
    "engine/workers/test_statuses.py::test_through_kills_takeovers_resets_and_full_tables",
    "engine/workers/test_torn_reads.py",
    "exporters/test_exemplars.py::test_each_is_in_the_series_that_counts_it",
    "exporters/test_formats.py",
    "frameworks/test_table.py",
    "monitor/test_exports.py::test_a_reader_never_sees_half_a_file",
    "monitor/test_fork.py::test_a_fork_while_threads_record",
    "monitor/test_lifecycle.py::test_memory_does_not_grow_with_requests",
    "monitor/test_lifecycle.py::test_what_it_held_is_released",
    "monitor/test_model.py",
    "monitor/test_slowest.py::test_the_slowest_of_each_route_is_there_however_busy_another_is",
    "monitor/test_slowest.py::test_they_survive_a_kill_and_go_on_in_the_next_worker",
    "monitor/test_slowest.py::test_what_must_be_captured_is_and_nothing_else",
    "test_extras.py::test_adapters",
    "test_packaging.py::test_a_build_brings_the_charts",
    "test_packaging.py::test_a_build_refuses_other_charts",
    "test_packaging.py::test_a_build_without_npm_goes_on_and_says_so",
    "test_packaging.py::test_an_sdist_has_all_and_builds_without_npm",
    "test_privates.py::test_tests_take_no_private_name",
    "test_readme.py::test_code_runs",
    "test_typing.py",
}
QUICK = "not (server or browser or slow)"
SERVES = re.compile(r"^from kits\.servers import .*\bserve\b", re.MULTILINE)
# Hundreds of interpreters are started: without bytecode each compiles all that it imports, and each
# process of pytest rewrites all assertions.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# No deadline: how long an example takes is a matter of the machine. The quick tier has fewer.
hypothesis.settings.register_profile("metricsmw", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile("metricsmw")
sys.path.insert(0, str(TESTS))  # so that tests import their kits: `from kits.servers import serve`
pytest.register_assert_rewrite("kits")


def pytest_configure(config: pytest.Config) -> None:
    """Let a polite end (SIGTERM) run every `finally`: servers are stopped there."""
    if is_quick(config):
        hypothesis.settings.load_profile("quick")
    runner = os.getpid()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == runner:
            raise KeyboardInterrupt
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)

    signal.signal(signal.SIGTERM, interrupt)


def is_quick(config: pytest.Config) -> bool:
    """Tell whether the quick tier is asked for, by the words that name it."""
    return str(config.option.markexpr).strip() == QUICK


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files of which the quick tier has no test; some of them import a browser."""
    if not is_quick(config):
        return None
    file = collection_path.relative_to(TESTS).as_posix() if collection_path != TESTS else ""
    if file in SERVER | SLOW | {"adapters/dashboard"}:
        return True
    # As in `tiers`: all tests of a module with a `serve` start servers.
    return True if file.endswith(".py") and SERVES.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tiers, and begin with the long files."""
    for item in items:
        for tier in tiers(item):
            item.add_marker(tier)
    items.sort(key=lambda item: item.path not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Have the garbage collector never look at what is imported meanwhile: it stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def tiers(item: pytest.Item) -> Iterator[str]:
    """Yield the markers of a test, by its file and by the fixtures that it uses."""
    file = item.path.relative_to(TESTS).as_posix()
    fixtures = getattr(item, "fixturenames", ())
    function = getattr(item, "originalname", item.name)
    if "browser" in fixtures:
        yield "browser"
    if "serve" in fixtures or hasattr(getattr(item, "module", None), "serve") or file in SERVER:
        yield "server"
    if file in SLOW or f"{file}::{function}" in SLOW:
        yield "slow"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what the servers that outlive a failing test (those of fixtures) have printed."""
    report = yield
    if report.failed and (kit := sys.modules.get("kits.servers")):
        for server in kit.LIVE:
            report.sections.append((f"Output of {server.name}", server.output()))
    return report


@pytest.fixture(scope="session")
def spare_folders() -> Iterator[list[Folder]]:
    """Folders that tests have left as they were: making one for each test takes long on a disk."""
    folders: list[Folder] = []
    yield folders
    for folder in folders:
        folder.cleanup()


def is_as_new(folder: Folder) -> bool:
    """Tell whether a test has left the folder as it was made: empty, of this user alone."""
    with suppress(OSError):
        status = os.stat(folder.name)
        is_private = (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, os.geteuid())
        return is_private and not os.listdir(folder.name)
    return False


@pytest.fixture(autouse=True)
def server_of_its_own(
    monkeypatch: pytest.MonkeyPatch, spare_folders: list[Folder]
) -> Iterator[None]:
    """Each test is a server of its own: another directory, another monitor, default settings."""
    for name in [name for name in os.environ if name.startswith("METRICSMW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(metricsmw.monitor, "_singleton", None)
    # A framework's app sets up logging for the whole process, where one is imported.
    logging.root.setLevel(logging.WARNING)
    # What an earlier test has left for the garbage collector would open itself again in every
    # process that this one forks.
    recorder.live_recorders.clear()
    # Not tmp_path, whose teardown fails where a test is interrupted before it has begun. A thread
    # that opens a segment may be at it still.
    folder = (
        spare_folders.pop()
        if spare_folders
        else TemporaryDirectory(prefix="metricsmw-test-", ignore_cleanup_errors=True)
    )
    monkeypatch.setenv("METRICSMW_DIR", folder.name)
    try:
        yield
        if metricsmw.monitor._singleton is not None:
            metricsmw.monitor._singleton.close()
    finally:
        if is_as_new(folder):
            spare_folders.append(folder)
        else:
            folder.cleanup()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until the test moves it."""
    return ManualClock()


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    """A private monitor with the default settings on the manual clock."""
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run source code in a fresh interpreter that imports the same metricsmw; its stdout.

    The server-wide monitor keeps its segments below the test's own folder.
    """

    def run(source: str, **environment: str) -> str:
        groups = tmp_path / "groups"
        groups.mkdir(mode=0o700, exist_ok=True)
        package_parent = str(Path(metricsmw.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={
                **os.environ,
                "PYTHONPATH": package_parent,
                "METRICSMW_DIR": str(groups),
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
