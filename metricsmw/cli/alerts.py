"""`metricsmw alerts`: try rules, send a test to receivers, silence a running server's alerts."""

from __future__ import annotations

import argparse
from urllib.parse import urlencode

from metricsmw.alerts.alerter import this_origin
from metricsmw.alerts.checking import test_alert
from metricsmw.alerts.delivery import as_receivers, send_test
from metricsmw.cli import replay
from metricsmw.cli.client import WRONG_USAGE, MetricsClient, TopError
from metricsmw.cli.output import complain, write
from metricsmw.cli.tokens import token_in

# A server waits for its receivers for as long as each may take.
TEST_SECONDS = 60.0
TIMEOUT_SECONDS = 30.0


def run_send_test(options: argparse.Namespace) -> int:
    """Run `metricsmw alerts send-test`.

    Returns:
        0 where every receiver took the alert, 1 where one did not, 2 for wrong usage.
    """
    if bool(options.url) == bool(options.notify):
        complain("alerts send-test", "give a server's URL, or receivers by --notify")
        return WRONG_USAGE
    found: list[tuple[str, str | None]]
    try:
        if options.notify:
            receivers = as_receivers(options.notify)
            results = send_test(receivers, test_alert(this_origin("")), TIMEOUT_SECONDS)
            found = [(name, None if error is None else str(error)) for name, error in results]
        else:
            client = MetricsClient(options.url, token_in(options))
            rows = client.ask("/alerts/test", "receivers", post=True, seconds=TEST_SECONDS)
            found = [(str(row["receiver"]), row["error"]) for row in rows]
    except TopError as error:
        complain("alerts send-test", error)
        return error.code
    except (ValueError, TypeError, KeyError, ModuleNotFoundError) as error:
        complain("alerts send-test", error)
        return WRONG_USAGE
    for name, problem in found:
        write(f"{name}: {'taken' if problem is None else f'failed: {problem}'}")
    return int(any(problem is not None for _, problem in found))


def run_silence(options: argparse.Namespace) -> int:
    """Run `metricsmw alerts silence`; return the exit code, 0 where it is set."""
    query = {"until": options.until} if options.until else {"for": options.length or "0s"}
    if options.type is not None:
        query["type"] = options.type
    try:
        client = MetricsClient(options.url, token_in(options))
        silences = client.ask(f"/alerts/silence?{urlencode(query)}", "silences", post=True)
        lines = [f"{one['type'] or 'all rules'} until {one['until']}" for one in silences]
    except TopError as error:
        complain("alerts silence", error)
        return error.code
    except (TypeError, KeyError):
        complain("alerts silence", f"{options.url} does not answer as metrics do")
        return 1
    write("silenced: " + "; ".join(lines) if lines else "nothing is silenced")
    return 0


ACTIONS = {"test": replay.run, "send-test": run_send_test, "silence": run_silence}


def run(options: argparse.Namespace) -> int:
    """Do what the subcommand says; return the exit code."""
    return ACTIONS[options.action](options)
