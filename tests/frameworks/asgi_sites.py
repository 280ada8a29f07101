"""The sites of ASGI frameworks, and of servers that are neither."""

from __future__ import annotations

from typing import Any

from .sites import Wrap, async_chunks, site
from .wsgi_sites import django_urls


async def accept(websocket: Any) -> None:
    """Accept a WebSocket and wait for its end, as Starlette, FastAPI and Lilya have it."""
    await websocket.accept()
    async for _ in websocket.iter_text():
        pass


def starlette_parts() -> dict[str, Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.sessions import SessionMiddleware
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route, WebSocketRoute

    async def item(request: Any) -> Any:
        return PlainTextResponse(request.path_params["i"])

    async def login(request: Any) -> Any:
        request.session["user"] = "ada"
        return PlainTextResponse("in")

    async def stream(request: Any) -> Any:
        return StreamingResponse(async_chunks())

    routes = [
        Route("/items/{i}", item),
        Route("/login", login),
        Route("/stream", stream),
        WebSocketRoute("/ws", accept),
    ]
    return {
        "routes": routes,
        "middleware": [Middleware(SessionMiddleware, secret_key="only for tests")],
    }


ALL = ("login", "stream", "ws")


@site("Starlette", "wrap(app)", "starlette", *ALL, asgi=True)
def starlette(wrap: Wrap) -> Any:
    from starlette.applications import Starlette

    return wrap(Starlette(**starlette_parts()))


@site("FastAPI", "wrap(app)", "fastapi", *ALL, asgi=True)
def fastapi(wrap: Wrap) -> Any:
    from fastapi import FastAPI

    return wrap(FastAPI(**starlette_parts()))


@site("Django (ASGI)", "wrap(get_asgi_application())", "django", "login", "stream", asgi=True)
def django_asgi(wrap: Wrap) -> Any:
    from django.http import StreamingHttpResponse
    from django.urls import path

    django_urls()
    import frameworks.wsgi_sites as urls
    from django.core.asgi import get_asgi_application

    stream = path("stream", lambda request: StreamingHttpResponse(async_chunks()))
    urls.urlpatterns.insert(0, stream)  # type: ignore[attr-defined]
    return wrap(get_asgi_application())


@site(
    "Django Channels",
    'wrap(ProtocolTypeRouter({"http": …, "websocket": …}))',
    "channels",
    "login",
    "ws",
    asgi=True,
)
def channels(wrap: Wrap) -> Any:
    django_urls()
    from channels.generic.websocket import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        WebsocketConsumer,
    )
    from channels.routing import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        ProtocolTypeRouter,
        URLRouter,
    )
    from django.core.asgi import get_asgi_application
    from django.urls import path

    websocket = URLRouter([path("ws", WebsocketConsumer.as_asgi())])
    return wrap(ProtocolTypeRouter({"http": get_asgi_application(), "websocket": websocket}))


@site("Quart", "app.asgi_app = wrap(app.asgi_app)", "quart", *ALL, asgi=True)
def quart(wrap: Wrap) -> Any:
    from quart import Quart, Response, session, websocket

    app = Quart(__name__)
    app.secret_key = "only for tests"

    @app.get("/items/<int:i>")
    async def item(i: int) -> str:
        return str(i)

    @app.get("/login")
    async def login() -> str:
        session["user"] = "ada"
        return "in"

    @app.get("/stream")
    async def stream() -> Any:
        return Response(async_chunks())

    @app.websocket("/ws")
    async def socket() -> None:
        await websocket.accept()
        while True:
            await websocket.receive()

    app.asgi_app = wrap(app.asgi_app)  # type: ignore[method-assign]
    return app


@site("Litestar", "wrap(app)", "litestar", *ALL, asgi=True)
def litestar(wrap: Wrap) -> Any:
    import litestar as framework
    from litestar.middleware.session.client_side import CookieBackendConfig
    from litestar.response import Stream

    @framework.get("/items/{i:int}")
    async def item(i: int) -> int:
        return i

    async def login(request: Any) -> str:
        request.set_session({"user": "ada"})
        return "in"

    async def stream() -> Any:
        return Stream(async_chunks())

    stream.__annotations__ = {"return": Stream}
    stream_route = framework.get("/stream")(stream)

    async def socket(socket: Any) -> None:
        await socket.accept()
        async for _ in socket.iter_data():
            pass

    # Annotated by hand: the framework is no global that it could look up.
    login.__annotations__ = {"request": framework.Request, "return": str}
    socket.__annotations__ = {"socket": framework.WebSocket, "return": None}

    session = CookieBackendConfig(secret=b"only for tests!!")
    routes = [
        item,
        framework.get("/login")(login),
        stream_route,
        framework.websocket("/ws")(socket),
    ]
    return wrap(framework.Litestar(routes, middleware=[session.middleware]))


@site("Falcon (ASGI)", "wrap(app)", "falcon", "stream", "ws", asgi=True)
def falcon_asgi(wrap: Wrap) -> Any:
    import falcon.asgi

    class Item:
        async def on_get(self, req: Any, resp: Any, i: int) -> None:
            resp.text = str(i)

    class Stream:
        async def on_get(self, req: Any, resp: Any) -> None:
            resp.stream = async_chunks()

    class Socket:
        async def on_websocket(self, req: Any, ws: Any) -> None:
            await ws.accept()
            await ws.receive_text()

    app = falcon.asgi.App()
    app.add_route("/items/{i:int}", Item())
    app.add_route("/stream", Stream())
    app.add_route("/ws", Socket())
    return wrap(app)


@site("Connexion", "wrap(app)", "connexion", asgi=True, lifespan=True)
def connexion(wrap: Wrap) -> Any:
    import connexion as framework  # type: ignore[import-untyped,import-not-found,unused-ignore]

    parameter = {"name": "i", "in": "path", "required": True, "schema": {"type": "integer"}}
    operation = {
        "operationId": f"{__name__}.connexion_item",
        "parameters": [parameter],
        "responses": {"200": {"description": "the item"}},
    }
    specification = {
        "openapi": "3.0.0",
        "info": {"title": "items", "version": "1"},
        "paths": {"/items/{i}": {"get": operation}},
    }
    app = framework.AsyncApp(__name__)
    app.add_api(specification)
    return wrap(app)


async def connexion_item(i: int) -> str:
    return str(i)


@site("Strawberry in FastAPI", "wrap(app)", "strawberry", asgi=True, item="/graphql?query={a}")
def strawberry(wrap: Wrap) -> Any:
    import strawberry as framework  # type: ignore[import-not-found,unused-ignore]
    from fastapi import FastAPI
    from strawberry.fastapi import GraphQLRouter  # type: ignore[import-not-found,unused-ignore]

    def resolve_a() -> str:
        return "a"

    query = type("Query", (), {"__annotations__": {"a": str}})
    query.a = framework.field(resolver=resolve_a)  # type: ignore[attr-defined]
    app = FastAPI()
    app.include_router(GraphQLRouter(framework.Schema(framework.type(query))), prefix="/graphql")
    return wrap(app)


@site("Ariadne", "wrap(GraphQL(schema))", "ariadne", asgi=True, item="/")
def ariadne(wrap: Wrap) -> Any:
    from ariadne import make_executable_schema  # type: ignore[import-not-found,unused-ignore]
    from ariadne.asgi import GraphQL  # type: ignore[import-not-found,unused-ignore]

    return wrap(GraphQL(make_executable_schema("type Query { a: String! }")))


@site(
    "python-socketio",
    "wrap(socketio.ASGIApp(sio, app))",
    "socketio",
    asgi=True,
)
def socketio(wrap: Wrap) -> Any:
    import socketio as framework  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from starlette.applications import Starlette

    return wrap(
        framework.ASGIApp(framework.AsyncServer(async_mode="asgi"), Starlette(**starlette_parts()))
    )


@site("MCP", "wrap(server.streamable_http_app())", "mcp", asgi=True, item="/mcp", lifespan=True)
def mcp(wrap: Wrap) -> Any:
    try:
        from mcp.server import MCPServer  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # before version 2
        from mcp.server.fastmcp import (  # type: ignore[import-not-found,unused-ignore]
            FastMCP as MCPServer,
        )
    return wrap(MCPServer("items").streamable_http_app())


@site("NiceGUI", "wrap(app); ui.run_with(app)", "nicegui", asgi=True, lifespan=True)
def nicegui(wrap: Wrap) -> Any:
    from fastapi import FastAPI
    from nicegui import ui  # type: ignore[import-not-found,unused-ignore]

    app = wrap(FastAPI())

    @ui.page("/items/{i}")  # type: ignore[untyped-decorator,unused-ignore]
    def item(i: int) -> None:
        ui.label(str(i))

    ui.run_with(app)
    return app


@site("Gradio", "wrap(mount_gradio_app(app, blocks, …))", "gradio", asgi=True, item="/ui/config")
def gradio(wrap: Wrap) -> Any:
    import gradio as framework  # type: ignore[import-not-found,unused-ignore]
    from fastapi import FastAPI

    with framework.Blocks() as blocks:
        framework.Markdown("hello")
    return wrap(framework.mount_gradio_app(FastAPI(), blocks, path="/ui"))


@site("Sanic", "wrap(app)", "sanic", "ws", asgi=True, lifespan=True)
def sanic(wrap: Wrap) -> Any:
    from sanic import Sanic, text  # type: ignore[import-not-found,unused-ignore]

    app = Sanic("items")

    @app.get("/items/<i:int>")
    async def item(request: Any, i: int) -> Any:
        return text(str(i))

    @app.websocket("/ws")
    async def socket(request: Any, ws: Any) -> None:
        await ws.recv()

    return wrap(app)


@site("BlackSheep", "wrap(app)", "blacksheep", "ws", asgi=True, lifespan=True)
def blacksheep(wrap: Wrap) -> Any:
    import blacksheep as framework  # type: ignore[import-not-found,unused-ignore]

    app = framework.Application()

    @framework.get("/items/{int:i}")  # type: ignore[untyped-decorator,unused-ignore]
    async def item(i: int) -> str:
        return str(i)

    async def socket(websocket: framework.WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()

    socket.__annotations__["websocket"] = framework.WebSocket
    framework.ws("/ws")(socket)
    return wrap(app)


@site("Lilya", "wrap(app)", "lilya", "ws", asgi=True)
def lilya(wrap: Wrap) -> Any:
    from lilya.apps import Lilya  # type: ignore[import-not-found,unused-ignore]
    from lilya.routing import Path, WebSocketPath  # type: ignore[import-not-found,unused-ignore]

    async def item(i: str) -> str:
        return i

    return wrap(Lilya(routes=[Path("/items/{i}", item), WebSocketPath("/ws", accept)]))


@site("Emmett", "wrap(app)", "emmett", asgi=True)
def emmett(wrap: Wrap) -> Any:
    from emmett import App  # type: ignore[import-not-found,unused-ignore]

    app = App(__name__)

    @app.route("/items/<int:i>", output="str")  # type: ignore[untyped-decorator,unused-ignore]
    async def item(i: int) -> str:
        return str(i)

    return wrap(app)


@site("Responder", "wrap(api)", "responder", asgi=True)
def responder(wrap: Wrap) -> Any:
    import responder as framework  # type: ignore[import-not-found,unused-ignore]

    api = framework.API()

    @api.route("/items/{i}")  # type: ignore[untyped-decorator,unused-ignore]
    async def item(req: Any, resp: Any, *, i: str) -> None:
        resp.text = i

    return wrap(api)


@site("Datasette", "wrap(ds.app())", "datasette", asgi=True, item="/_memory", lifespan=True)
def datasette(wrap: Wrap) -> Any:
    from datasette.app import Datasette  # type: ignore[import-not-found,unused-ignore]

    return wrap(Datasette(memory=True).app())


@site("Microdot (ASGI)", "wrap(app)", "microdot", asgi=True)
def microdot_asgi(wrap: Wrap) -> Any:
    from microdot.asgi import Microdot  # type: ignore[import-not-found,unused-ignore]

    app = Microdot()

    @app.get("/items/<int:i>")
    async def item(request: Any, i: int) -> str:
        return str(i)

    return wrap(app)


@site("aiohttp", "", "aiohttp", asgi=True)
def aiohttp(wrap: Wrap) -> Any:
    from aiohttp import web  # type: ignore[import-not-found,unused-ignore]

    return wrap(web.Application())


@site("Tornado", "", "tornado", asgi=True)
def tornado(wrap: Wrap) -> Any:
    from tornado.web import Application  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return wrap(Application())


@site("Robyn", "", "robyn", asgi=True)
def robyn(wrap: Wrap) -> Any:
    from robyn import Robyn  # type: ignore[import-not-found,unused-ignore]

    return wrap(Robyn(__file__))
