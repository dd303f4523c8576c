"""A headless Chromium, driven by its debugging protocol."""

import base64
import contextlib
import copy
import json
import pathlib
import subprocess
import tempfile
import time
import urllib.request

import websocket


class Chromium:
    """One browser with a page, and all that the page complained about in `complaints`."""

    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory()
        profile = pathlib.Path(self.folder.name)
        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run",
             "--remote-allow-origins=*", "--hide-scrollbars", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
             "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        port_file = profile / "DevToolsActivePort"
        until(lambda: port_file.exists() and port_file.read_text().strip(), "Chromium's port", 60)
        self.port = port_file.read_text().split()[0]
        self.complaints = []
        self.connect(next(target for target in self.targets("/json") if target["type"] == "page"))

    def targets(self, path, method="GET"):
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)) as answer:
            return json.load(answer)

    def connect(self, target):
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=120)
        self.num_sent = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        # Frames are drawn and keys taken as in a window in front, also while another tab is.
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    @contextlib.contextmanager
    def tab(self):
        """One more page of this browser, with the same storage."""
        tab = copy.copy(self)
        tab.connect(self.targets("/json/new?about:blank", "PUT"))
        try:
            yield tab
        finally:
            tab.send("Page.close")
            tab.socket.close()

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        # Its children may still be writing.
        time.sleep(0.5)
        self.folder._ignore_cleanup_errors = True
        self.folder.cleanup()

    def send(self, method, **params):
        self.num_sent += 1
        self.socket.send(json.dumps({"id": self.num_sent, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.num_sent:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.note(message)

    def note(self, event):
        """Keeps errors: uncaught ones, blocked by the policy, failed requests."""
        params = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"])

    def js(self, expression):
        """The value of an expression, which may be a promise."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, expression, seconds=240):
        try:
            until(lambda: self.js(expression), expression, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe page's complaints: {json.dumps(self.complaints, indent=1)}") from None

    def open(self, address, language="en-US", width=1200, height=800, dark=False):
        agent = self.js("navigator.userAgent")
        self.send("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.size(width, height)
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && document.getElementById('model')?.options.length > 0"
                  " || document.querySelector('dialog[open]') !== null")

    def size(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)

    def click(self, selector):
        """Clicks where the element is, as a mouse does, once it stays there: a page that still moves gets the click elsewhere."""
        look = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{ block: "center" }}); const r = e.getBoundingClientRect();
            const at = [r.x + r.width / 2, r.y + r.height / 2], top = document.elementFromPoint(...at);
            return [...at, top !== null && (e.contains(top) || top.contains(e))]; }})()"""
        before, box = None, self.js(look)
        for _ in range(100):
            if box == before and box[2]:
                break
            time.sleep(0.05)
            before, box = box, self.js(look)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def key(self, key, code, **more):
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, **more)

    def choose(self, selector, value):
        self.js(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.value = {json.dumps(value)}; e.dispatchEvent(new Event("change")); }})()""")

    def choose_file(self, selector, name, text):
        """Gives a field for files one of this name."""
        self.js(f"""(() => {{ const files = new DataTransfer(), input = document.querySelector({json.dumps(selector)});
            files.items.add(new File([{json.dumps(text)}], {json.dumps(name)})); input.files = files.files;
            input.dispatchEvent(new Event("change")); }})()""")

    def shot(self, path):
        image = self.send("Page.captureScreenshot", format="png")
        pathlib.Path(path).write_bytes(base64.b64decode(image["data"]))


def until(condition, what, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain for: {what}"
        time.sleep(0.05)
