#!/usr/bin/env python3
"""The traffic that Envoy and Headgate are compared with: the backends, and a client that goes through all cases.

    traffic.py backend 10.202.0.11 10.202.0.12 10.202.0.13
    traffic.py client --vip 10.201.0.1
    traffic.py client --vip 10.201.0.1 --case idle

A case is a listener of front.yaml, by its name and port. The client prints a line of JSON for each: what its
connections saw, equal ones counted together, and what is wrong. It ends with 1 if a case did not go as it has to on
any balancer; how a connection was refused (accepted and closed, or reset) is only told.

A backend takes lines:

    name            answers with its address
    exchange UP DOWN
                    reads UP bytes, answers `right` or `wrong`, and sends DOWN bytes
    count           reads to the end, and only then answers with the number of bytes, and closes
    reset           answers `ready`, and resets at the next line
"""

import argparse
import collections
import concurrent.futures
import functools
import json
import random
import select
import socket
import struct
import sys
import threading
import time

BACKEND_PORT = 9000
MIB = 1 << 20
# No case takes longer: a balancer that does not end a connection fails the case instead of holding up the script.
PATIENCE = 10


@functools.lru_cache(maxsize=4)
def pattern(length):
    """Bytes that both sides know and no balancer could guess; a lost or repeated piece does not go unnoticed."""
    return random.Random(length).randbytes(length)


def reset(connection):
    """Closes with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# === The backends ===


def serve(connection, address):
    """Carries out the lines of one connection, until the other side ends it."""
    lines = connection.makefile("rb")
    try:
        while line := lines.readline(256):
            match line.split():
                case [b"name"]:
                    connection.sendall(f"{address}\n".encode())
                case [b"exchange", up, down]:
                    right = lines.read(int(up)) == pattern(int(up))
                    connection.sendall(b"right\n" if right else b"wrong\n")
                    connection.sendall(pattern(int(down)))
                case [b"count"]:
                    total = sum(len(piece) for piece in iter(lambda: lines.read(65536), b""))
                    connection.sendall(f"{total}\n".encode())
                    return
                case [b"reset"]:
                    connection.sendall(b"ready\n")
                    lines.readline(256)
                    # The file holds the descriptor open: without this, closing the socket would not close anything.
                    lines.close()
                    reset(connection)
                    return
                case _:
                    return
    except OSError:
        pass  # The client or the balancer has reset it.
    finally:
        lines.close()
        connection.close()


def accept(listener, address):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, address), daemon=True).start()


def backend(addresses):
    for address in addresses:
        listener = socket.create_server((address, BACKEND_PORT), backlog=256)
        threading.Thread(target=accept, args=(listener, address), daemon=True).start()
    print("listening", flush=True)
    threading.Event().wait()


# === A connection of the client ===


class Failed(Exception):
    """Something that has to hold on any balancer did not."""


class Connection:
    """One connection to the balancer and what became of it."""

    def __init__(self, target):
        self.sent = 0
        self.received = 0
        self.end = None
        self.started = time.monotonic()
        self.ended = None
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(target)
            self.connected = True
        except ConnectionResetError:
            # Accepted, and reset before connect(2) could return.
            self.connected = True
            self.finish("reset")
        except OSError as error:
            self.connected = False
            self.finish("refused" if isinstance(error, ConnectionRefusedError) else type(error).__name__)

    def finish(self, how):
        """Notes the end; `how` is what the client saw of it, or what it did itself."""
        if self.end is None:
            self.end = how
            self.ended = time.monotonic()
        self.socket.close()

    def send(self, data):
        if self.end is not None:
            raise Failed(f"the connection ended ({self.end}) before the client could send")
        self.socket.sendall(data)
        self.sent += len(data)

    def receive(self, length):
        """Exactly so many bytes, or what came before the end."""
        data = b""
        while len(data) < length and self.end is None:
            data += self.piece(length - len(data))
        return data

    def line(self):
        line = b""
        while not line.endswith(b"\n") and self.end is None:
            line += self.piece(1)
        return line.decode().strip()

    def piece(self, length):
        """Some bytes; none, and the end noted, if there will be no more."""
        try:
            data = self.socket.recv(length)
        except ConnectionResetError:
            self.finish("reset")
            return b""
        except TimeoutError:
            self.finish(f"nothing for {PATIENCE} s")
            return b""
        if not data:
            self.finish("fin")
        self.received += len(data)
        return data

    def ask(self, question):
        self.send(question.encode() + b"\n")
        return self.line()

    def await_end(self):
        """Waits until the other side has ended it, and expects no data any more."""
        before = self.received
        while self.end is None:
            self.piece(65536)
        expect(self.received == before, f"{self.received - before} bytes that nobody asked for")

    def stays_open_for(self, seconds):
        """Whether nothing, neither data nor an end, comes in that time."""
        if self.end is None and select.select([self.socket], [], [], seconds)[0]:
            self.await_end()
        return self.end is None

    def close(self):
        self.finish("closed by the client")

    def half_close_and_await_end(self):
        self.socket.shutdown(socket.SHUT_WR)
        self.await_end()

    def seconds(self):
        return self.ended - self.started

    def outcome(self):
        return {
            "connected": self.connected,
            "sent": self.sent,
            "received": self.received,
            "end": self.end,
            "seconds": round(self.seconds()),
        }


def expect(condition, otherwise):
    if not condition:
        raise Failed(otherwise)


def named(connection):
    """Asks which backend it is; it has to be one."""
    name = connection.ask("name")
    expect(name.startswith("10.202."), f"{name!r} in place of a backend's name, then {connection.end}")
    return name


# === The cases: each makes connections with `connect`, and raises Failed if they do not go as they must ===


def ok(connect):
    """Six one after the other, six at once; every backend gets some."""

    def one(_):
        connection = connect()
        name = named(connection)
        connection.close()
        return name

    names = [one(number) for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as at_once:
        names += at_once.map(one, range(6))
    expect(len(set(names)) == 3, f"only {sorted(set(names))} got connections")


def bytes_(connect):
    """5 MiB up, then 7 MiB down."""
    connection = connect()
    connection.send(f"exchange {5 * MIB} {7 * MIB}\n".encode())
    connection.send(pattern(5 * MIB))
    expect(connection.line() == "right", "the bytes to the backend were not those that were sent")
    expect(connection.receive(7 * MIB) == pattern(7 * MIB), "the bytes from the backend were not those that were sent")
    connection.half_close_and_await_end()


def half(connect):
    """The client ends its direction first, and the answer comes after that."""
    connection = connect()
    connection.send(b"count\n" + pattern(1000))
    connection.socket.shutdown(socket.SHUT_WR)
    answer = connection.line()
    expect(answer == "1000", f"{answer!r} in place of 1000 as the answer")
    connection.await_end()
    expect(connection.end == "fin", f"the answer was followed by {connection.end} in place of a FIN")


def client_reset(connect):
    """The client resets."""
    for _ in range(2):
        connection = connect()
        named(connection)
        reset(connection.socket)
        connection.finish("reset by the client")


def backend_reset(connect):
    """The backend resets."""
    for _ in range(2):
        connection = connect()
        expect(connection.ask("reset") == "ready", "no answer before the reset")
        connection.send(b"now\n")
        connection.await_end()
        expect(connection.end in ("reset", "fin"), connection.end)


def dead(connect):
    """A backend that does not answer: given up after the second of connect_timeout."""
    fails(connect(), 0.9, 3)


def dead_retry(connect):
    """One of two backends does not answer, and every connection gets to the other one."""
    for _ in range(4):
        connection = connect()
        named(connection)
        connection.close()


def refused(connect):
    """A backend that refuses."""
    for _ in range(2):
        fails(connect(), 0, 2)


def refused_retry(connect):
    """One of two backends refuses, and every connection gets to the other one."""
    dead_retry(connect)


def empty(connect):
    """A cluster without a backend."""
    for _ in range(2):
        fails(connect(), 0, 2)


def overflow(connect):
    """Five connections where two are allowed."""
    held = []
    for _ in range(5):
        connection = connect()
        if connection.stays_open_for(0.3):
            held.append(connection)
    expect(len(held) == 2, f"{len(held)} connections in place of 2 were let through")
    for connection in held:
        named(connection)
        connection.close()


def idle(connect):
    """Idle for the two seconds of idle_timeout."""
    connection = connect()
    named(connection)
    fails(connection, 1.9, 4)


def duration(connect):
    """Not idle, but open for the two seconds of max_downstream_connection_duration."""
    connection = connect()
    for _ in range(3):
        named(connection)
        expect(connection.stays_open_for(0.4), f"{connection.end} before its time")
    fails(connection, 1.9, 4)


def weighted(connect):
    """Forty over two clusters with the weights 1 and 3: 30 of them for the second, give or take five sigma."""
    names = collections.Counter()
    for _ in range(40):
        connection = connect()
        names[named(connection)] += 1
        connection.close()
    expect(set(names) == {"10.202.0.11", "10.202.0.12"}, f"{dict(names)}")
    expect(names["10.202.0.12"] >= 16, f"{dict(names)} does not look like 1 to 3")


def least_request(connect):
    """Thirty that stay open: the less loaded of two random backends gets each, so no backend can fall far behind."""
    held = [connect() for _ in range(30)]
    names = collections.Counter(named(connection) for connection in held)
    for connection in held:
        connection.close()
    expect(len(names) == 3 and max(names.values()) <= 16, f"{dict(names)} is not even")


def fails(connection, earliest, latest):
    """It ends by itself, without data, after so many seconds."""
    connection.await_end()
    expect(not connection.end.startswith("nothing"), "the balancer did not end the connection")
    took = connection.seconds()
    expect(earliest <= took <= latest, f"it ended after {took:.2f} s, not after {earliest} to {latest} s")


CASES = [
    (10001, ok),
    (10002, bytes_),
    (10003, half),
    (10004, client_reset),
    (10005, backend_reset),
    (10006, dead),
    (10007, dead_retry),
    (10008, refused),
    (10009, refused_retry),
    (10010, empty),
    (10011, overflow),
    (10012, idle),
    (10013, duration),
    (10014, weighted),
    (10015, least_request),
]


def run(vip, port, case):
    """The case's line."""
    connections = []

    def connect():
        connection = Connection((vip, port))
        connections.append(connection)
        return connection

    wrong = None
    try:
        case(connect)
    except (Failed, OSError) as error:
        wrong = str(error) or type(error).__name__
    for connection in connections:
        connection.finish("left open")
    counted = collections.Counter(json.dumps(connection.outcome()) for connection in connections)
    return {
        "case": case.__name__.rstrip("_"),
        "wrong": wrong,
        "connections": [{"times": times, **json.loads(one)} for one, times in sorted(counted.items())],
    }


def client(vip, name):
    chosen = [(port, case) for port, case in CASES if name in (None, case.__name__.rstrip("_"))]
    wrong = 0
    for port, case in chosen:
        line = run(vip, port, case)
        print(json.dumps(line), flush=True)
        wrong += line["wrong"] is not None
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True, metavar="ROLE")
    serving = roles.add_parser("backend", help=f"serves port {BACKEND_PORT} of addresses until it is killed")
    serving.add_argument("addresses", nargs="+", metavar="ADDRESS")
    asking = roles.add_parser("client", help="runs the cases, each against its listener")
    asking.add_argument("--vip", default="10.201.0.1", metavar="ADDRESS", help="the balancer (default %(default)s)")
    names = [case.__name__.rstrip("_") for _, case in CASES]
    asking.add_argument("--case", choices=names, metavar="NAME", help=f"only this one of {', '.join(names)}")
    arguments = parser.parse_args()
    if arguments.role == "backend":
        backend(arguments.addresses)
    return client(arguments.vip, arguments.case)


if __name__ == "__main__":
    sys.exit(main())
