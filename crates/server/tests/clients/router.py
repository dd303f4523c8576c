"""Runs PyPI's routers in front of two servers of the bundled model, all of which it starts.

    python -m venv venv && venv/bin/pip install -r crates/server/tests/clients/router-requirements.txt
    venv/bin/python crates/server/tests/clients/router.py target/debug/server

A router spreads requests in turn, keeps equal beginnings together, and goes on when a server is killed or told to end. A subscriber
reads the events of a KV cache. Prints a line for each check, and ends with 1 if one of them failed, or if there is no router. CI has
vllm-router only.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager

import kv_events

# A debug build on a busy machine starts within this many seconds.
START = 180
BIN = pathlib.Path(sys.executable).parent
ROUTERS = ("vllm-router", "sglang-router")
STORY = "Once upon a time there was a little duck who lived near the lake. " * 12
# Streams that are long enough to be interrupted.
LONG = {"max_tokens": 700, "ignore_eos": True, "stream": True, "temperature": 1.0}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def fetch(url, body=None, headers=None):
    """Status, headers and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


@contextmanager
def process(*command):
    """A program until the block ends; what it has said, if the block fails."""
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            yield running
        except BaseException:
            log.seek(0)
            sys.stderr.write(f"{command[0]}:\n{log.read().decode(errors='replace')[-3000:]}\n")
            raise
        finally:
            if running.poll() is None:
                running.terminate()
            try:
                running.wait(timeout=60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_for(url, running):
    for _ in range(5 * START):
        if running.poll() is not None:
            raise RuntimeError(f"the program ended with {running.returncode}")
        try:
            if fetch(url)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


class Server:
    """A server that publishes events of its KV cache."""

    def __init__(self, stack, program):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.events, self.replay = free_port(), free_port()
        config = {
            "enable_kv_cache_events": True,
            "endpoint": f"tcp://0.0.0.0:{self.events}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.replay}",
            "topic": "kv-events",
        }
        flags = ["--device", "cpu", "--port", port, "--kv-events-config", json.dumps(config)]
        self.process = stack.enter_context(process(program, *flags))

    def metric(self, name):
        """The sum of a metric's samples."""
        page = fetch(f"{self.url}/metrics")[2]
        samples = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", page, re.M)
        return sum(map(float, samples))

    def answered(self):
        """Requests for text so far."""
        page = fetch(f"{self.url}/metrics")[2]
        return sum(map(float, re.findall(r'^http_requests_total{handler="/v1/completions".*} (\S+)$', page, re.M)))


@contextmanager
def router(program, policy, servers, *flags):
    """The address of a router."""
    port = free_port()
    # Of this router it is a command of its own.
    launch = ["launch"] if program == "sglang-router" else []
    command = [BIN / program, *launch, "--host", "127.0.0.1", "--port", port, "--prometheus-port", free_port(), "--policy", policy]
    command += ["--worker-startup-check-interval", 1, "--health-check-interval-secs", 1, *flags]
    command += ["--worker-urls", *[server.url for server in servers]]
    with process(*command) as running:
        address = f"http://127.0.0.1:{port}"
        # It may be healthy before it knows its servers.
        for path in ("/health", "/v1/models"):
            wait_for(f"{address}{path}", running)
        yield address


@contextmanager
def pair(program):
    """Two servers."""
    with ExitStack() as stack:
        servers = [Server(stack, program) for _ in range(2)]
        for server in servers:
            wait_for(f"{server.url}/health", server.process)
        yield servers


def complete(address, prompt, model="bundled", **fields):
    return fetch(f"{address}/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 4, **fields})


def counted(servers, action):
    """How many requests each server has answered meanwhile."""
    before = [server.answered() for server in servers]
    action()
    return [server.answered() - count for server, count in zip(servers, before)]


def in_turn(name, servers):
    """Requests alternate; models, ids and errors come through."""
    with router(name, "round_robin", servers) as address:
        models = json.loads(fetch(f"{address}/v1/models")[2])
        # sglang-router asks its servers for their names by a route of SGLang's.
        assert models["data"][0]["id"] == ("unknown" if name == "sglang-router" else "bundled"), models

        def ask():
            for i in range(8):
                status, headers, text = complete(address, f"{i} ducks", request_id=f"mine-{i}")
                assert status == 200 and json.loads(text)["choices"], text
            status, headers, text = fetch(
                f"{address}/v1/completions", {"model": "bundled", "prompt": "a"}, {"x-request-id": "of-the-client"}
            )
            assert "of-the-client" in json.loads(text)["id"], text

        counts = counted(servers, ask)
        assert min(counts) >= 4 and sum(counts) == 9, counts
        status, _, text = fetch(f"{address}/v1/completions", {"model": "bundled", "prompt": "a", "max_tokens": -1})
        assert 400 <= status < 500 and "max_tokens" in text, (status, text)
        return f"{counts[0]:.0f} and {counts[1]:.0f} requests"


def equal_beginnings(name, servers):
    """Prompts with one beginning meet at the server that has it."""
    with router(name, "cache_aware", servers) as address:
        hits = [server.metric("vllm:prefix_cache_hits_total") for server in servers]

        def ask():
            for i in range(6):
                status, _, text = complete(address, f"{name}. {STORY} Chapter {i}.")
                assert status == 200, text

        counts = counted(servers, ask)
        assert sorted(counts) == [0, 6], counts
        own = counts.index(6)
        found = servers[own].metric("vllm:prefix_cache_hits_total") - hits[own]
        assert found > 500, found
        return f"6 requests at one server, {found:.0f} tokens from its cache"


class Stream(threading.Thread):
    """A long answer; whether it came to its end."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.whole, self.started, self.error = address, False, threading.Event(), None
        self.start()

    def run(self):
        body = {"model": "bundled", "prompt": "Tell a story.", **LONG}
        request = urllib.request.Request(
            f"{self.address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                for line in answer:
                    self.started.set()
                    self.whole |= line.strip() == b"data: [DONE]"
        except OSError as error:
            self.error = error
        except Exception as error:  # http.client's, where a chunk is cut
            self.error = error
        finally:
            self.started.set()


def interrupted(name, program, how):
    """Streams while one of two servers goes; how many came to their end."""
    with pair(program) as servers, router(name, "round_robin", servers) as address:
        streams = [Stream(address) for _ in range(6)]
        for stream in streams:
            assert stream.started.wait(120)
        running = [server.metric("vllm:num_requests_running") for server in servers]
        assert min(running) >= 1, running
        servers[0].process.send_signal(how)
        if how == signal.SIGTERM:
            # The port stays open while it drains: no health, no new request.
            for _ in range(50):
                status, headers, text = fetch(f"{servers[0].url}/health")
                if status != 200:
                    break
                time.sleep(0.02)
            assert status == 503 and headers["retry-after"], (status, text)
            assert complete(servers[0].url, "a")[0] == 503
        answers = [complete(address, f"{i} more")[0] for i in range(8)]
        for stream in streams:
            stream.join(300)
        whole = sum(stream.whole for stream in streams)
        assert answers == [200] * 8, answers
        status = servers[0].process.wait(timeout=60)
        return running, whole, status


def killed(name, program):
    """A killed server takes only its own streams with it."""
    running, whole, _ = interrupted(name, program, signal.SIGKILL)
    assert whole == 6 - running[0], (running, whole)
    return f"{running[0]:.0f} of 6 streams broke, 8 of 8 new requests were answered"


def drained(name, program):
    """A server that is told to end finishes its streams first."""
    running, whole, status = interrupted(name, program, signal.SIGTERM)
    assert whole == 6 and status == 0, (running, whole, status)
    return "6 of 6 streams came to their end, 8 of 8 new requests were answered"


def events(servers):
    """libzmq and msgspec read the events, and missed ones are replayed."""
    return kv_events.check(servers[0].url, servers[0].events, servers[0].replay, f"Read by a subscriber. {STORY}")


def main(program):
    failed = False

    def check(label, test, *arguments):
        nonlocal failed
        try:
            result = test(*arguments)
            print(f"ok    {label}: {result}", flush=True)
        except Exception:
            failed = True
            print(f"FAIL  {label}\n{traceback.format_exc()}", flush=True)

    routers = [name for name in ROUTERS if (BIN / name).exists()]
    if not routers:
        print(f"FAIL  neither of {', '.join(ROUTERS)} is in {BIN}", flush=True)
        return 1
    for name in set(ROUTERS) - set(routers):
        print(f"left out: {name} is not in {BIN}", flush=True)
    only = os.environ.get("ONLY", "")
    with pair(program) as servers:
        check("pyzmq and msgspec: events", events, servers)
        for name in routers:
            for test in (in_turn, equal_beginnings):
                if only in test.__name__:
                    check(f"{name}: {test.__doc__.splitlines()[0]}", test, name, servers)
    for name in routers:
        for test in (killed, drained):
            check(f"{name}: {test.__doc__.splitlines()[0]}", test, name, program)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
