"""The bearer token that a command's options name."""

from __future__ import annotations

import argparse
import os

VARIABLE = "METRICSMW_TOKEN"


def add_token_arguments(parser: argparse.ArgumentParser, default: str = VARIABLE) -> None:
    """Add the options that name a token; ``default`` says in the help where else it comes from."""
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token-file", metavar="FILE", help=f"a file with the bearer token (default: {default})"
    )
    token.add_argument(
        "--token",
        help="the bearer token itself; everybody on this machine can see it, in `ps`",
    )


def token_in(options: argparse.Namespace) -> str:
    """Return the token that the options name; "" for none. Raises `TopError` for a bad file."""
    if options.token_file is not None:
        from metricsmw.cli.client import read_token  # and HTTP, for those who ask a server only

        return read_token(options.token_file)
    return options.token or os.environ.get(VARIABLE, "").strip()
