"""uvicorn in a thread of a program that stops it itself, with no handler of signals."""

import signal
import sys
import threading

import uvicorn

from apps.starlette_app import app

port = int(sys.argv[1])
server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
thread = threading.Thread(target=server.run)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
thread.start()
stop.wait()
server.should_exit = True
thread.join()
