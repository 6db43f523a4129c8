# SPDX-License-Identifier: MIT
"""Worker: all other ranks send BYTES each to rank 0, which prints the goodput in Mbit/s.

Rank 0 marks "flowing" when the first bytes are in.
"""

import os
import selectors
import socket
import sys
import time

from harness.cluster.marks import mark

PORT = 7000
CHUNK = bytes(1 << 20)


def receive(senders: int, total: int) -> None:
    """Take `total` bytes from each sender; the clock starts with the first of them."""
    server = socket.create_server((os.environ["MASTER_ADDR"], PORT), backlog=senders)
    selector = selectors.DefaultSelector()
    connections = [server.accept()[0] for _ in range(senders)]
    for connection in connections:
        selector.register(connection, selectors.EVENT_READ)
        connection.sendall(b"!")  # nobody sends before all are there
    received, begin = 0, None
    while received < senders * total:
        for key, _ in selector.select():
            received += len(key.fileobj.recv(len(CHUNK)))
            if begin is None:
                begin = time.monotonic()
                mark("flowing")
    print(received * 8e-6 / (time.monotonic() - begin))


def connect() -> socket.socket:
    """Rank 0 may not be listening yet; the deadline is the job's."""
    while True:
        try:
            return socket.create_connection((os.environ["MASTER_ADDR"], PORT))
        except ConnectionRefusedError:
            time.sleep(0.01)


def send(total: int) -> None:
    """Send `total` bytes to rank 0 and stay until it has closed."""
    with connect() as connection:
        connection.recv(1)
        sent = 0
        while sent < total:
            sent += connection.send(CHUNK[: total - sent])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


if os.environ["RANK"] == "0":
    receive(int(os.environ["WORLD_SIZE"]) - 1, int(sys.argv[1]))
else:
    send(int(sys.argv[1]))
