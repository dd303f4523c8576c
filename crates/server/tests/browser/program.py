"""The server with the bundled model."""

import pathlib
import socket
import subprocess
import urllib.request

from chromium import until

ROOT = pathlib.Path(__file__).parents[4]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The program with the bundled model."""

    def __init__(self, program, *flags):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}/"
        self.command = [program, "--port", str(port), "--device", "cpu", *flags]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.is_ready, f"{self.command}", 180)

    def is_ready(self):
        assert self.process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(f"{self.address}health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.terminate()
        self.process.wait()
