#!/usr/bin/env python3
"""Thousands of connections that are opened, cut, left idle or fed slowly: afterwards the server has as many files and as much memory.

    cargo build -p server
    python3 crates/server/tests/soak/connections.py --number 10000 target/debug/server

`--slow` waits for the time limits of slow clients, too: two minutes.
"""

import argparse
import json
import random
import resource
import sys
import time

from wire import Server

BODY = json.dumps({"prompt": "Once upon a time", "max_tokens": 200, "stream": True, "ignore_eos": True}).encode()
HEAD = (f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n").encode()
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def use(connection, draw):
    """What one client does; half of them go away in the middle of something."""
    kind = draw.randrange(8)
    if kind == 0:
        connection.sendall(HEAD[:draw.randrange(1, len(HEAD))])
    elif kind == 1:
        connection.sendall(HEAD + BODY[:draw.randrange(len(BODY))])
    elif kind == 2 and draw.random() < 0.2:
        connection.sendall(HEAD + BODY)
        connection.recv(100)
    elif kind == 3:
        connection.sendall(draw.randbytes(200))
    elif kind >= 4:
        connection.sendall(GET)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200"), "no answer"
    return kind


def settled(server, files):
    """Waits until the connections are gone."""
    until = time.monotonic() + 60
    while server.files() > files and time.monotonic() < until:
        time.sleep(0.2)
    return server.files()


def flood(server, number, at_once):
    """Opens so many connections, of which as many are open at once."""
    draw = random.Random(7)
    open_ones = []
    for _ in range(number):
        connection = server.socket(60)
        use(connection, draw)
        open_ones.append(connection)
        if len(open_ones) >= at_once:
            open_ones.pop(draw.randrange(len(open_ones))).close()
    most = server.files()
    for connection in open_ones:
        connection.close()
    return most


def idle(server, number):
    """Keeps so many connections alive without a use, and asks beside them."""
    kept = []
    for _ in range(number):
        connection = server.socket(60)
        connection.sendall(GET)
        connection.recv(1000)
        kept.append(connection)
    start = time.monotonic()
    assert server.request("GET", "/health")[0] == 200
    took, files = time.monotonic() - start, server.files()
    for connection in kept:
        connection.close()
    return files, took


def slow(server):
    """How long clients may take that send a byte now and then, in seconds."""
    found = {}
    large = HEAD.replace(str(len(BODY)).encode(), b"100000")
    for name, start, rest in (("head", b"", HEAD), ("body", large + BODY[:3], b"a" * 1000), ("idle", GET, b"")):
        began = time.monotonic()
        with server.socket(1) as connection:
            connection.sendall(start)
            for i in range(300):
                try:
                    got = connection.recv(4000)
                    if not got or b" 408 " in got:
                        break
                except TimeoutError:
                    pass
                try:
                    connection.sendall(rest[i:i + 1])
                except OSError:
                    break
        found[name] = round(time.monotonic() - began)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=1000)
    parser.add_argument("--growth", type=float, default=4, help="most growth of the memory in MiB")
    parser.add_argument("--slow", action="store_true")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # The server raises its own limit from this one.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    # The KV cache takes its memory when it is first used: a small one does so before the measurement, also of few connections.
    server = Server(args.server, "--kv-cache-memory-bytes", "4MiB", "--max-model-len", "256")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flood(server, args.number, args.at_once)
    time.sleep(5)
    files = server.files()
    before = server.memory()
    start = time.monotonic()
    report = {"number": args.number, "most_files": flood(server, args.number, args.at_once)}
    report["seconds"] = round(time.monotonic() - start, 1)
    report["files"] = [files, settled(server, files)]
    report["idle"] = idle(server, args.at_once)
    report["files_after_idle"] = settled(server, files)
    after = server.memory()
    report["MiB"] = [round(memory / 1024, 1) for memory in (before, after)]
    if args.slow:
        report["slow_seconds"] = slow(server)
    answer = server.post("/v1/completions", prompt="Once upon a time", max_tokens=5)
    server.terminate()
    report["exit_code"] = server.process.wait(60)
    print(json.dumps(report, indent=2))
    wrong = [what for what, is_right in {
        f"files: expected at most {files + 1}": max(report["files"][1], report["files_after_idle"]) <= files + 1,
        f"memory: expected at most {args.growth} MiB more": after - before <= args.growth * 1024,
        "exit code: expected 0": report["exit_code"] == 0,
        "no answer after the connections": bool(answer["choices"]),
    }.items() if not is_right]
    sys.exit("; ".join(wrong) or 0)


if __name__ == "__main__":
    main()
