"""``basicsr demo``: a page on this machine on which pictures are cleaned (extra ``[demo]``: Starlette and uvicorn).

A picture comes in as the body of one request, and the answer to that request is all there is of it: lines of progress,
then the previews and the result. A temporary folder has it meanwhile; nothing is kept. One picture is cleaned at a
time; others wait, a few of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hranet_arch import memory
from hranet_arch.demo_cleaner import Cleaner, Report
from hranet_arch.errors import InputError, first_line, list_stops
from hranet_arch.pages import read_page

LARGEST_RESULT = 512 * 2**20  # bytes: 48 million pixels of 3 x 16 bits, and then some
MOST_WAITING = 4


class _Stopped(Exception):
    """The page was closed, or its user has cancelled."""


# --- one picture at a time --------------------------------------------------------------------------------------------


class _Desk:
    """Takes jobs, does one at a time in a thread of its own, and tells what becomes of them."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="basicsr-demo")
        self._jobs: list[asyncio.Queue] = []  # what is to be told of the one that is done now, then of those that wait
        self._arriving = 0  # pictures that are being sent

    @property
    def is_full(self) -> bool:
        return len(self._jobs) + self._arriving > MOST_WAITING

    @contextlib.contextmanager
    def arrive(self) -> Iterator[None]:
        """While a picture is sent, which takes memory already."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    async def run(self, work: Callable[[Report], list[bytes]]) -> AsyncIterator[bytes]:
        """Lines of JSON: ``waiting`` (how many are before it), ``progress``, ``result`` or ``error``; then its bytes.

        ``work`` is stopped, at its next report, when this iterator is closed.
        """
        loop, events, stopped = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def report(event: dict | list[bytes]) -> None:
            if stopped.is_set():
                raise _Stopped
            _tell(loop, events.put_nowait, event)

        if self._jobs:
            events.put_nowait({"waiting": len(self._jobs)})
        self._jobs.append(events)
        future = self._executor.submit(_work, work, report)
        try:
            while True:
                event = await events.get()
                if isinstance(event, list):
                    for part in event:
                        yield part
                    return
                yield json.dumps(event).encode() + b"\n"
                if "error" in event:
                    return
        finally:
            stopped.set()
            future.cancel()
            future.add_done_callback(lambda _: _tell(loop, self._leave, events))

    def stop(self) -> None:
        """Ends all jobs, with a word of why."""
        for events in self._jobs:
            events.put_nowait({"error": "basicsr demo was stopped."})

    def _leave(self, job: asyncio.Queue) -> None:
        place = self._jobs.index(job)
        self._jobs.remove(job)
        for waiting, events in enumerate(self._jobs[place:], place):
            if waiting:  # the first is told by `_work` itself
                events.put_nowait({"waiting": waiting})


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[object], None], value: object) -> None:
    with contextlib.suppress(RuntimeError):  # the server has ended meanwhile, and its loop is closed
        loop.call_soon_threadsafe(function, value)


def _work(work: Callable[[Report], list[bytes]], report: Callable[[dict | list[bytes]], None]) -> None:
    """In the thread: what goes wrong is told in words."""
    try:
        report({"waiting": 0})
        try:
            report(work(report))
        except InputError as error:
            report({"error": str(error)})
        except _Stopped:
            raise
        except Exception as error:
            text = f"This picture could not be cleaned ({type(error).__name__}: {error})."
            if memory.is_out_of_memory(error):
                text = "There is not enough memory for this picture. Close other programs, or try a smaller one."
            report({"error": text})
    except _Stopped:
        return


# --- the requests -----------------------------------------------------------------------------------------------------


def make_app(cleaner: Cleaner, host: str = "127.0.0.1") -> _Guard:
    """The page and what it asks for, as an ASGI application; its ``stop`` ends the cleanings under way.

    Args:
        cleaner: see there.
        host: a name under which the page may be asked for, beside ``localhost`` and addresses in numbers.
    """
    token, nonce = secrets.token_urlsafe(), secrets.token_urlsafe()
    desk, limits, blending = _Desk(), cleaner.limits, asyncio.Lock()

    async def show(request: Request) -> Response:
        data = {"token": token, "models": cleaner.list_choices(), "upload": limits.upload, "pixels": limits.pixels}
        text = json.dumps(data).replace("<", "\\u003c")
        page = read_page("demo_page.html").replace("{{DATA}}", text).replace("{{NONCE}}", nonce)
        return HTMLResponse(page)

    async def clean(request: Request) -> Response:
        _require_token(request, token)
        model = _read_number(request, "model", 0, len(cleaner.models) - 1)
        sigma = None if request.query_params.get("sigma") == "auto" else _read_number(request, "sigma", 0, 255)
        if desk.is_full:
            raise HTTPException(503, "Several pictures are waiting already. Try again in a minute.")
        with desk.arrive():
            data = await _read_body(request, limits.upload)

        async def stream() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(
                desk.run(lambda report: cleaner.clean(data, int(model), sigma, report))
            ) as lines:
                async for line in lines:
                    yield line

        return StreamingResponse(stream(), media_type="application/octet-stream")

    async def blend(request: Request) -> Response:
        _require_token(request, token)
        strength = _read_number(request, "strength", 0, 1)
        try:
            async with blending:  # one in memory at a time
                data = await _read_body(request, limits.upload + LARGEST_RESULT)
                split = int(_read_number(request, "split", 0, len(data)))
                result = await asyncio.to_thread(cleaner.blend, data[:split], data[split:], strength)
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        return Response(result, media_type="application/octet-stream")

    routes = [Route("/", show), Route("/clean", clean, methods=["POST"]), Route("/blend", blend, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _explain, ClientDisconnect: _answer_nobody})
    return _Guard(app, host, nonce, desk.stop)


async def _explain(request: Request, error: HTTPException) -> Response:
    return PlainTextResponse(error.detail, error.status_code)


async def _answer_nobody(request: Request, error: ClientDisconnect) -> Response:
    """The page was closed, or its user has cancelled, while the picture was sent."""
    return Response(status_code=400)


def _require_token(request: Request, token: str) -> None:
    """Only the page knows it: other pages in the same browser cannot read it, nor send such a header."""
    if not secrets.compare_digest(request.headers.get("x-demo-token", "").encode(), token.encode()):
        raise HTTPException(403, "This page is of an earlier run of basicsr demo. Load it again.")


def _read_number(request: Request, name: str, lowest: float, highest: float) -> float:
    text = request.query_params.get(name, "")
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not lowest <= number <= highest:
        raise HTTPException(422, f"{name}={text!r} is not allowed: it must be a number from {lowest:g} to {highest:g}.")
    return number


async def _read_body(request: Request, largest: int) -> bytes:
    text = f"The file is too large: {largest / 2**20:.0f} MB are the most here. `basicsr denoise` takes larger ones."
    given = request.headers.get("content-length", "0")
    if not given.isdecimal() or len(given) > 15 or int(given) > largest:
        raise HTTPException(413, text)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > largest:  # what a request says of its length need not be so
            raise HTTPException(413, text)
    return bytes(data)


class _Guard:
    """Answers only requests that name this machine, and only the page's own; sets the headers that protect it.

    A foreign page can make a browser ask us: under a name of its own that it lets point here (DNS rebinding), hence
    names must be known and addresses are numbers; or across origins, hence ``Origin`` must be ours.
    """

    def __init__(self, app: Callable, host: str, nonce: str, stop: Callable[[], None]) -> None:
        self.app = app
        self.stop = stop
        self.names = {"localhost", host.lower()}
        self.headers = {
            "content-security-policy": f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "cache-control": "no-store",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        given = Headers(scope=scope)
        host, origin = given.get("host", ""), given.get("origin")
        app = self.app
        if not self._is_ours(host):
            app = PlainTextResponse("This page is not served under this name. Ask for 127.0.0.1 or localhost.", 421)
        elif origin is not None and origin.partition("://")[2] != host:
            app = PlainTextResponse("Another page's request.", 403)
        await app(scope, receive, send_guarded)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True


# --- the server -------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine; port 0: any that is free.

    Raises:
        InputError: if the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # the second of what is no name of a host
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"Cannot listen on {host}:{port}: {reason}. Give another --port or --host.") from error


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address in numbers."""
    return ipaddress.ip_address(address).is_loopback


def serve(app: _Guard, listening: socket.socket) -> None:
    """Answers requests until Ctrl-C or another signal to stop, and raises KeyboardInterrupt then."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.stop()  # it waits for answers to end
            logging.getLogger("uvicorn.error").disabled = True  # which has tracebacks of uploads that it breaks off
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    server = Server(config)
    for number in list_stops():
        signal.signal(number, server.handle_exit)  # of these it hears SIGTERM alone by itself
    server.run(sockets=[listening])
    raise KeyboardInterrupt
