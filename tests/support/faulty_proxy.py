"""A TCP proxy before a real server, which can be down, slow, hung, or answer 503 in its place."""

import re
import socket
import threading
import time
from contextlib import suppress
from typing import Literal

Mode = Literal["works", "refuses", "busy", "slow", "hangs"]

REFUSAL = b"<Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
    len(REFUSAL),
    REFUSAL,
)
REQUEST = re.compile(rb"(?:GET|PUT|POST|DELETE|HEAD|PATCH) (\S+) HTTP/1\.1\r\n")
LONGEST = 65_536


class FaultyProxy:
    """Passes connections on to 127.0.0.1:`port` as `mode` says; counts the `connections` and lists the `requests`."""

    def __init__(self, port: int) -> None:
        self.mode: Mode = "works"
        self.delay = 0.05
        """Seconds before each chunk of an answer, when slow."""
        self.connections = 0
        self.requests: list[str] = []
        """Method and address of each request that was passed on."""
        self._to = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def set(self, mode: Mode) -> None:
        """Change the mode, and break off connections of the mode before."""
        self.mode = mode
        with self._lock:
            for connection in self._open:
                _reset(connection)
            self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.set("refuses")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[client, self.mode], daemon=True).start()

    def _serve(self, client: socket.socket, mode: Mode) -> None:
        if mode == "refuses":
            _reset(client)
        elif mode == "busy":
            client.recv(LONGEST)
            client.sendall(BUSY)
            client.close()
        elif mode == "hangs":
            with self._lock:
                self._open.add(client)
        else:
            server = socket.create_connection(("127.0.0.1", self._to))
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._pass, args=[client, server, 0.0, self.requests], daemon=True).start()
            self._pass(server, client, self.delay if mode == "slow" else 0.0, [])

    def _pass(self, source: socket.socket, target: socket.socket, delay: float, requests: list[str]) -> None:
        begun = b""  # of a request line
        try:
            while data := source.recv(LONGEST):
                found = list(REQUEST.finditer(begun + data))
                requests += [match[0].decode().rpartition(" ")[0] for match in found]
                begun = (begun + data)[found[-1].end() if found else 0 :][-LONGEST:]
                time.sleep(delay)
                target.sendall(data)
        except OSError:
            pass
        for connection in (source, target):
            connection.close()


def _reset(connection: socket.socket) -> None:
    """Close at once, without a farewell."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
