"""Where the processes of a run meet before JAX connects them.

JAX ends a process by SIGABRT when another one does not come. So they first meet here, over plain sockets: whoever
waits says for whom, and what cannot work is a UserError in every process that is there. Process 0 listens; the others
connect, say who they are, and read one JSON object a line: {"absent": [2, 3]}, and at last {"absent": []} or
{"error": "..."}.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from lepton_jax.core.errors import UserError

EVERY = 10.0  # seconds between two lines about who is waited for
_RETRY = 0.5  # seconds between two attempts to reach process 0
_LINE = 4096  # bytes of a message; whoever sends more is no process of ours


def meet(address: str, processes: int, process: int, timeout: float) -> None:
    """Returns once all processes are there; nothing listens at `address` any more then.

    Args:
      address: HOST:PORT of process 0.
      processes: how many there are.
      process: which one this is.
      timeout: seconds that this process waits.

    Raises:
      UserError: no HOST:PORT, or one that process 0 cannot listen at; the time is over, naming the absent; two
        processes with one number; or another number of processes. All that are there get it.
    """
    host, port = parse(address)
    if process == 0:
        _listen(address, port, processes, timeout)
    else:
        _join(address, host, port, processes, process, timeout)


def parse(address: str) -> tuple[str, int]:
    """Returns host and port of "HOST:PORT"; an IPv6 address may have its brackets."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"mesh.coordinator={address!r}: must be HOST:PORT of process 0, such as node1:9876")
    return host.strip("[]"), int(port)


def _names(numbers: list[int], shown: int = 8) -> str:
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:shown]))}{more}"


def _say(text: str) -> None:
    print(f"lepton_jax: {text}", file=sys.stderr, flush=True)


class _Peer:
    """A connection to process 0: what it has sent so far, and which process it turned out to be."""

    def __init__(self, connection: socket.socket, host: str):
        self.connection, self.host = connection, host
        self.received = b""
        self.process: int | None = None

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # one that is gone is noticed when it is read from
            self.connection.sendall(json.dumps(message).encode() + b"\n")


def _listen(address: str, port: int, processes: int, timeout: float) -> None:
    """Process 0: collects the others; tells them who is absent, and how it ended."""
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=1024, dualstack_ipv6=both
        )
    except OSError as error:
        raise UserError(f"mesh.coordinator={address!r}: process 0 cannot listen at port {port} ({error.strerror}); "
                        f"choose a free one, the same for every process") from None  # fmt: skip
    peers: list[_Peer] = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        stack.callback(lambda: [peer.connection.close() for peer in peers])
        stack.enter_context(server)
        selector.register(server, selectors.EVENT_READ)
        end, next_line = time.monotonic() + timeout, 0.0
        try:
            while True:
                absent = sorted(set(range(1, processes)) - {peer.process for peer in peers})
                if not absent and not selector.select(0):  # nor has one that came left again
                    break
                now = time.monotonic()
                if absent and now >= end:
                    raise UserError(f"{_names(absent)} of {processes} did not come to {address} within {timeout:g} "
                                    f"seconds; start every process with the same mesh.coordinator")  # fmt: skip
                if absent and now >= next_line:
                    _say(f"process 0 of {processes} waits for {_names(absent)} at {address}, up to {timeout:g} s")
                    for peer in peers:
                        peer.send({"absent": absent})
                    next_line = now + EVERY
                for key, _ in selector.select(max(min(end, next_line) - now, 0)):
                    if key.fileobj is server:
                        connection, origin = server.accept()
                        connection.settimeout(5.0)
                        peers.append(_Peer(connection, str(origin[0])))
                        selector.register(connection, selectors.EVENT_READ, peers[-1])
                    elif not _hear(key.data, peers, processes, absent):
                        selector.unregister(key.data.connection)
                        key.data.connection.close()
                        peers.remove(key.data)
        except UserError as error:
            for peer in peers:
                peer.send({"error": str(error)})
            raise
        server.close()  # JAX listens here next, and those who get the answer connect at once
        for peer in peers:
            peer.send({"absent": []})


def _hear(peer: _Peer, peers: list[_Peer], processes: int, absent: list[int]) -> bool:
    """Reads what a peer has sent; returns whether it stays. Raises UserError where it shows a mistake."""
    try:
        data = peer.connection.recv(_LINE)
    except OSError:
        return False
    peer.received += data
    if not data or len(peer.received) > _LINE:
        return False
    if b"\n" not in peer.received or peer.process is not None:
        return True
    try:
        message = json.loads(peer.received)
        number, count = int(message["process"]), int(message["processes"])
    except (ValueError, TypeError, KeyError):
        return False  # somebody else's
    if count != processes:
        raise UserError(f"process {number} (from {peer.host}) was started as one of {count}, process 0 as one of "
                        f"{processes}; give every process the same mesh.processes")  # fmt: skip
    if number in {other.process for other in peers} | {0}:
        raise UserError(f"two processes have the number {number}, one of them at {peer.host}; give each its own "
                        f"mesh.process, from 0 to {processes - 1}")  # fmt: skip
    peer.process = number
    others = [other for other in absent if other != number]
    if others:  # else the answer for all follows
        peer.send({"absent": others})
    return True


def _join(address: str, host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Another process: reaches process 0 and waits for its answer."""
    end, who = time.monotonic() + timeout, f"process {process} of {processes}"
    with _reach(address, host, port, who, end, timeout) as connection:
        absent, next_line = [0], 0.0
        try:
            connection.sendall(json.dumps({"process": process, "processes": processes}).encode() + b"\n")
            for message in _messages(connection, end):
                if "error" in message:
                    raise UserError(str(message["error"]))
                absent = message["absent"]
                if not absent:
                    return
                if time.monotonic() >= next_line:
                    _say(f"{who} waits for {_names(absent)} at {address}, up to {timeout:g} s")
                    next_line = time.monotonic() + EVERY / 2
        except TimeoutError:
            raise UserError(f"{_names(absent)} of {processes} did not come to {address} within {timeout:g} seconds; "
                            f"start every process with the same mesh.coordinator") from None  # fmt: skip
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError):  # its end, or the answer of somebody else
            pass
    raise UserError(f"{who}: process 0 at {address} ended while others were waited for; see its output")


def _reach(address: str, host: str, port: int, who: str, end: float, timeout: float) -> socket.socket:
    """Returns a connection to process 0, which may start later than this one."""
    next_line = 0.0
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(min(5.0, end - time.monotonic()), 0.1))
            if connection.getsockname() != connection.getpeername():  # TCP may connect a port to itself
                return connection
            connection.close()
            reason = "nothing listens there"
        except OSError as error:  # its name may not be known yet either
            reason = error.strerror or str(error)
        now = time.monotonic()
        if now >= end:
            raise UserError(f"{who} could not reach process 0 at {address} within {timeout:g} seconds ({reason}); "
                            f"start it, or correct mesh.coordinator")  # fmt: skip
        if now >= next_line:
            _say(f"{who} waits for process 0 at {address}, up to {timeout:g} s ({reason})")
            next_line = now + EVERY
        time.sleep(min(_RETRY, max(end - now, 0.0)))


def _messages(connection: socket.socket, end: float) -> Iterator[dict[str, Any]]:
    """Yields what process 0 sends, until it closes the connection; raises TimeoutError at `end`."""
    received = b""
    while True:
        # Process 0 counts its own seconds: should both end together, its answer is the better one.
        connection.settimeout(max(end + 2.0 - time.monotonic(), 0.1))
        data = connection.recv(_LINE)
        if not data:
            return
        *lines, received = (received + data).split(b"\n")
        yield from map(json.loads, lines)
