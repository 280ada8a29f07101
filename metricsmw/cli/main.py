"""The `metricsmw` console script: one entry in `COMMANDS` a command, imported when it runs."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

from metricsmw import __version__
from metricsmw.cli.output import complain
from metricsmw.cli.tokens import add_token_arguments
from metricsmw.extras import MissingExtraError, require

Number = TypeVar("Number", int, float)

MAX_DEMO_RATE = 500


@dataclass(frozen=True)
class Command:
    """One subcommand: what it is called, what it needs installed, its arguments and its work.

    `run` names a function as "module:function"; it is imported only when the command is called,
    after the packages in `needs` were found, and takes the parsed arguments to an exit code.
    """

    name: str
    help: str
    extra: str
    needs: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: str


def _number(kind: type[Number], low: Number, high: Number) -> Callable[[str], Number]:
    """Return an argparse type: a number of that kind from `low` to `high`, both included."""

    def parse(text: str) -> Number:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")

    return parse


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; whoever reaches it can log in to the demo (%(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_number(int, 0, 65535),
        default=8000,
        help="port to listen on; 0 picks a free one (%(default)s)",
    )
    parser.add_argument(
        "--workers", type=_number(int, 1, 64), default=2, help="server processes (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=_number(float, 1, 86_400),
        help="end after that long and print the final snapshot (default: run until Ctrl-C)",
    )
    parser.add_argument(
        "--rate",
        type=_number(float, 1, MAX_DEMO_RATE),
        default=50,
        help=f"requests a second sent at it, up to {MAX_DEMO_RATE} (%(default)s)",
    )


def _alerts_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    test = actions.add_parser(
        "test",
        help="would this rule have fired in a recorded history, when, and how often",
        description="Try alert rules on a recorded history.",
    )
    test.add_argument(
        "--rule",
        action="append",
        required=True,
        help='a rule such as "error_rate_pct > 5 for 2m clear 3"; may be given several times',
    )
    test.add_argument(
        "--history", required=True, metavar="FILE", help="an export, as of /export/json"
    )
    test.add_argument(
        "--fail-if-fired", action="store_true", help="exit with 1 where a rule would have fired"
    )
    send = actions.add_parser(
        "send-test",
        help="send a test alert to a server's receivers, or to those named",
        description="Send a test alert, and tell which receivers took it.",
    )
    send.add_argument("url", nargs="?", metavar="URL", help="the site of a running server")
    send.add_argument(
        "--notify", action="append", metavar="URL", help="a receiver, as an Apprise URL"
    )
    add_token_arguments(send)
    silence = actions.add_parser(
        "silence",
        help="tell nobody of a running server's alerts until a time",
        description="Silence the alerts of a running server, for all its workers.",
    )
    silence.add_argument("url", metavar="URL", help="the site")
    end = silence.add_mutually_exclusive_group(required=True)
    end.add_argument("--for", dest="length", metavar="2h", help="for so long")
    end.add_argument("--until", metavar="TIME", help="until a time in ISO 8601")
    end.add_argument("--end", action="store_true", help="end the silence")
    silence.add_argument("--type", metavar="NAME", help="of the rules of that name only")
    add_token_arguments(silence)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the site, or its metrics at another path")
    parser.add_argument(
        "--rule",
        action="append",
        required=True,
        help='what must hold, such as "p95 < 300 at least 100 requests"; may be repeated',
    )
    parser.add_argument(
        "--for",
        dest="seconds",
        type=_seconds,
        metavar="30s",
        help="watch for so long, and judge what happened in it (default: the server's window)",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--junit", metavar="FILE", help="write the outcome as JUnit's XML, too")
    add_token_arguments(parser)
    parser.epilog = (
        "Exit codes: 0 all rules hold, 1 one does not, 2 one is not known, or the server does not "
        "answer."
    )


def _seconds(text: str) -> int:
    """Return the whole seconds of a duration, for argparse."""
    from metricsmw.alerts.grammar import seconds  # and all of alerts, for `check --for` only

    try:
        length = round(seconds(text))
        if 1 <= length <= 3600:
            return length
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'{text!r} is no time from "1s" to "1h"')


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True, dest="what")
    grafana = kinds.add_parser("grafana", help="a dashboard, as JSON that Grafana imports")
    grafana.add_argument("--title", default="metricsmw", help="the dashboard's (%(default)s)")
    rules = kinds.add_parser(
        "prometheus-rules", help="alert rules and burn rates, as a rules file of Prometheus"
    )
    rules.add_argument(
        "url", nargs="?", metavar="URL", help="the site of a running server, for its rules"
    )
    rules.add_argument(
        "--rule",
        action="append",
        help='a rule such as "error_rate_pct > 5 for 2m clear 3"; may be given several times',
    )
    rules.add_argument(
        "--file", action="append", metavar="FILE", help="a file with a rule a line; # is a comment"
    )
    rules.add_argument(
        "--window", default="5m", help="over how long rates are taken, such as 5m (%(default)s)"
    )
    add_token_arguments(rules)


def _whose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", help="the servers of this user, a name or a number")
    parser.add_argument(
        "--dir", metavar="FOLDER", help="also the servers that have this METRICSMW_DIR"
    )


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    _whose_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="PID|NAME",
        help="a process of the server, or a part of its command line (default: the only one)",
    )
    _whose_arguments(parser)


def _top_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="URL|PID|NAME",
        help="the site, or its metrics at another path; or a server of this machine, by a process "
        "of it or a part of its command line (default: the only one)",
    )
    _whose_arguments(parser)
    add_token_arguments(
        parser,
        "METRICSMW_TOKEN; where none is set and the server asks for one, so does this command",
    )
    parser.add_argument("--once", action="store_true", help="print the numbers once")
    parser.add_argument("--json", action="store_true", help="print them once, as JSON")
    parser.epilog = (
        "A server of this machine is read from its shared memory; it is not asked, and needs no "
        "token. In the table, n r e 5 p 9 s sort by column; w l x c show workers, slow requests, "
        "kinds of error and the app's own numbers; q quits. Exit codes: 0 done, 1 no answer, "
        "2 wrong usage, 3 not let in, 130 interrupted."
    )


COMMANDS = (
    Command(
        name="demo",
        help="start a demo app with several workers, send it traffic and show its live numbers",
        extra="demo",
        needs=("httpx", "itsdangerous", "starlette", "uvicorn", "websockets"),
        arguments=_demo_arguments,
        run="metricsmw.cli.demo:run",
    ),
    Command(
        name="alerts",
        help="try alert rules and receivers, silence alerts",
        extra="",
        needs=(),
        arguments=_alerts_arguments,
        run="metricsmw.cli.alerts:run",
    ),
    Command(
        name="check",
        help="say by the exit code whether rules hold on a live server",
        extra="",
        needs=(),
        arguments=_check_arguments,
        run="metricsmw.cli.check:run",
    ),
    Command(
        name="generate",
        help="print a Grafana dashboard, or alert rules for Prometheus",
        extra="",
        needs=(),
        arguments=_generate_arguments,
        run="metricsmw.cli.generate:run",
    ),
    Command(
        name="ls",
        help="list the servers of this user on this machine",
        extra="",
        needs=(),
        arguments=_ls_arguments,
        run="metricsmw.cli.servers:run",
    ),
    Command(
        name="token",
        help="print the token that a server of this machine has made for itself",
        extra="",
        needs=(),
        arguments=_token_arguments,
        run="metricsmw.cli.servers:run_token",
    ),
    Command(
        name="top",
        help="show a server's live numbers in the terminal",
        extra="cli",
        needs=("rich",),
        arguments=_top_arguments,
        run="metricsmw.cli.top:run",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script with `arguments` (default: the process's own); return its exit code.

    0: done; 1: it failed; 2: wrong usage, a port in use or a missing extra; 3: not let in;
    130: interrupted. Wrong usage and `--version` leave through `SystemExit`, as argparse does.
    """
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        if command.needs:
            require(f"metricsmw {command.name}", command.extra, command.needs)
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        return 2
    module, _, function = command.run.partition(":")
    try:
        run: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
        code = run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left (`| head`)
        _drop_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        complain(command.name, f"the output cannot be written: {error.strerror}")
        return 1
    return code


def _drop_output() -> None:
    """Let what is still buffered go nowhere: at the interpreter's end it would raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metricsmw", description="Live request metrics inside any Python web app."
    )
    parser.add_argument("--version", action="version", version=f"metricsmw {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
