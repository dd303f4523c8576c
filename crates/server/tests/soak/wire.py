"""Servers with the bundled model, and requests to them without a client library."""

import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[4]
sys.path.append(str(ROOT / "crates/server/tests/browser"))


class Server:
    """A program that serves the bundled model on a free port."""

    def __init__(self, program, *flags, log=subprocess.DEVNULL):
        command = [program, "--port", "0", "--device", "cpu", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in self.process.stdout:
            found = re.search(r" at http://127\.0\.0\.1:(\d+)\.", line)
            if found:
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"{command} has not started")
        until = time.monotonic() + 120
        while self.request("GET", "/health")[0] != 200:
            assert time.monotonic() < until, "not ready"

    def connection(self, timeout=600):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def socket(self, timeout=120):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def request(self, method, path, body=None):
        """Status and answer."""
        connection = self.connection()
        try:
            headers = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def post(self, path, **body):
        """The answer, which must be one."""
        status, answer = self.request("POST", path, body)
        assert status == 200, (path, status, answer)
        return answer

    def upload(self, name, data, purpose="fine-tune"):
        """The file object of a file that was uploaded."""
        edge = "edge-of-the-parts"
        parts = (f'--{edge}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--{edge}\r\n'
                 f'content-disposition: form-data; name="file"; filename="{name}"\r\n\r\n').encode() + data
        connection = self.connection()
        try:
            connection.request("POST", "/v1/files", parts + f"\r\n--{edge}--\r\n".encode(),
                               {"content-type": f"multipart/form-data; boundary={edge}"})
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            return json.load(answer)
        finally:
            connection.close()

    def stream(self, path, body):
        """The events of a stream, one after the other; closing the generator closes the connection."""
        connection = self.connection()
        try:
            connection.request("POST", path, json.dumps(body | {"stream": True}), {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            for line in answer:
                if line.startswith(b"data: "):
                    yield line[6:].strip().decode()
        finally:
            connection.close()

    def status(self, key):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+)", text)[1])

    def memory(self):
        """Resident memory in KiB, without the model's file, which is mapped."""
        return self.status("RssAnon")

    def files(self):
        return len(list(pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
