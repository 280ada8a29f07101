"""A package of an extra that is missed: one sentence, with the command that installs it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metricsmw import MetricsMonitor
from metricsmw.alerts import MetricsAlerter
from metricsmw.cli.main import COMMANDS, main
from metricsmw.exporters.push import OTLPExport
from metricsmw.extras import MODULES, MissingExtraError, require

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


def test_the_sentence(without: Callable[[str], None]) -> None:
    require("this", "asgi")
    without("starlette")
    without("itsdangerous")
    with pytest.raises(MissingExtraError) as raised:
        require("this", "asgi")
    said = 'this needs starlette, itsdangerous; install with: pip install "metricsmw[asgi]"'
    assert str(raised.value) == said
    assert raised.value.name == "starlette"


def test_a_package_whose_parent_is_missing(without: Callable[[str], None]) -> None:
    without("opentelemetry")
    without("opentelemetry.sdk")
    for name in list(sys.modules):
        if name.startswith("opentelemetry."):
            without(name)
    with pytest.raises(MissingExtraError, match="this needs opentelemetry; install"):
        require("this", "otlp")


def test_what_needs_them(without: Callable[[str], None]) -> None:
    for name in ("apprise", "opentelemetry.sdk.metrics"):
        without(name)
    with MetricsMonitor() as monitor:
        with pytest.raises(MissingExtraError, match=r"needs apprise; .*metricsmw\[alerts\]"):
            MetricsAlerter(monitor, notify="json://host", start=False)
        with pytest.raises(MissingExtraError, match=r"needs opentelemetry; .*metricsmw\[otlp\]"):
            OTLPExport(monitor, start=False)


@pytest.mark.parametrize("command", [one.name for one in COMMANDS if one.needs])
def test_commands(
    command: str, without: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = [one for one in COMMANDS if one.name == command]
    without(found.needs[0])
    assert main([command]) == 2
    assert capsys.readouterr().err == (
        f"metricsmw {command} needs {found.needs[0]}; "
        f'install with: pip install "metricsmw[{found.extra}]"\n'
    )


ADAPTERS = """
import sys
from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
{missing}
{imports}
def wsgi(environ, start_response): ...
async def asgi(scope, receive, send): ...
try:
    {call}
except ModuleNotFoundError as error:
    print(error, end="")
"""


@pytest.mark.parametrize(
    ("missing", "imports", "call", "extra"),
    [
        ("itsdangerous", "", "import metricsmw.adapters.django", "wsgi"),
        ("itsdangerous", "import fastapi", "wrap(fastapi.FastAPI())", "asgi"),
        ("itsdangerous", "", "wrap(wsgi)", "wsgi"),
        ("werkzeug", "", "wrap(wsgi)", "wsgi"),
        ("starlette", "", "wrap(asgi)", "asgi"),
    ],
)
def test_adapters(
    missing: str, imports: str, call: str, extra: str, run_python: Callable[..., str]
) -> None:
    code = ADAPTERS.format(missing=f"sys.modules[{missing!r}] = None", imports=imports, call=call)
    what, _, said = run_python(code).partition(" needs ")
    assert said == f'{missing}; install with: pip install "metricsmw[{extra}]"'
    assert what in ("serving the metrics", f"the metrics' {extra.upper()} app")


def test_a_python_without_sqlite(run_python: Callable[..., str]) -> None:
    call = "MetricsMonitor(history='x.db')"
    code = ADAPTERS.format(missing="sys.modules['_sqlite3'] = None", imports="", call=call)
    said = "needs _sqlite3; this Python was built without it; install one that has it"
    assert run_python(code) == f"a lasting history {said}"


@pytest.fixture
def extras() -> dict[str, list[str]]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    found: dict[str, list[str]] = tomllib.loads(PYPROJECT.read_text())["project"][
        "optional-dependencies"
    ]
    return found


def test_an_extra_brings_what_is_said_to_be_of_it(extras: dict[str, list[str]]) -> None:
    for extra, modules in MODULES.items():
        assert extra in extras
        assert all(importlib.util.find_spec(name) for name in modules)


def test_the_demo_brings_what_top_needs(extras: dict[str, list[str]]) -> None:
    assert "metricsmw[asgi,cli]" in extras["demo"]
