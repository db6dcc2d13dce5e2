"""A way to a server that can be blocked: packets vanish, and nobody is told.

with Proxy("127.0.0.1", server.port) as proxy:
    connect_to(proxy.port)
    proxy.block()      # connections stay open, new ones are accepted, nothing gets through
    proxy.unblock()    # what was on its way arrives
"""

import contextlib
import socket
import threading
from typing import Self

CHUNK = 65536


class Proxy:
    """Forwards TCP connections to ``host`` and ``port`` from a free ``port`` of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.blocked = self.closed = False
        self.doors: list[threading.Event] = []  # one per connection
        self.sockets: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed = True
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        self.unblock()

    def block(self) -> None:
        """From now on nothing arrives, not even that a connection was closed."""
        self.blocked = True
        self.strand()

    def strand(self) -> None:
        """As a firewall that has lost its state."""
        for door in self.doors:
            door.clear()

    def unblock(self) -> None:
        self.blocked = False
        for door in self.doors:
            door.set()

    def cut(self) -> None:
        """Ends all connections; what was on its way is lost."""
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self.closed:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(client)
            self.doors.append(door := threading.Event())
            if not self.blocked:
                door.set()
            threading.Thread(target=self._serve, args=(client, door), daemon=True).start()

    def _serve(self, client: socket.socket, door: threading.Event) -> None:
        door.wait()
        try:
            server = socket.create_connection(self.target)
        except OSError:
            client.close()
            return
        self.sockets.append(server)
        back = threading.Thread(target=self._forward, args=(server, client, door), daemon=True)
        back.start()
        self._forward(client, server, door)
        back.join()
        for connection in (client, server):
            self.sockets.remove(connection)
            connection.close()

    def _forward(self, source: socket.socket, target: socket.socket, door: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                door.wait()
                target.sendall(data)
        door.wait()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
