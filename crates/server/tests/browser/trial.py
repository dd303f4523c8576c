"""What the steps of page.py share."""

import json
import urllib.request


def step(function):
    STEPS.append(function)
    return function


STEPS = []


class Trial:
    """What the steps share."""

    def __init__(self, browser, server, address, shots, axe):
        self.browser, self.program, self.address, self.shots = browser, server, address, shots
        self.axe = axe and axe.read_text()
        # What axe-core has found wrong, by state of the page.
        self.violations = {}
        with urllib.request.urlopen(f"{address}v1/models") as answer:
            self.models = [card["id"] for card in json.load(answer)["data"]]

    def shot(self, name):
        """The page is as it should be seen: a picture of it, and a look at it by axe-core, where they are asked for."""
        if self.shots:
            self.browser.shot(self.shots / f"{name}.png")
        if self.axe and name != "failed":
            self.browser.js(f"{self.axe}; null")
            found = self.browser.js("""axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) =>
                violations.map(({ id, impact, help, nodes }) =>
                    ({ id, impact, help, nodes: nodes.map(({ html, failureSummary }) => [html.slice(0, 200), failureSummary]) })))""")
            if found:
                self.violations[name] = found

    def ask(self, text):
        self.browser.click("#question")
        self.browser.type(text)
        self.browser.key("Enter", 13)

    def answered(self):
        self.browser.wait("document.getElementById('stop').hidden && document.querySelectorAll('.running').length === 0")

    def last(self, selector):
        return self.browser.js(f"[...document.querySelectorAll('#messages {selector}')].at(-1)?.innerText ?? ''")

    def fits(self):
        wide = self.browser.js(
            "[...document.querySelectorAll('main:not([hidden]), main:not([hidden]) *, header, header *')]"
            ".filter((e) => !e.closest('.table, pre, .away, #list, .picker > span') && e.checkVisibility()"
            " && (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1))"
            ".map((e) => e.outerHTML.slice(0, 100))")
        assert not wide, wide


def keep_settings(browser, **values):
    """Fills in the open dialog, and keeps what it says."""
    for name, value in values.items():
        browser.js(f"document.getElementById('set-{name}').value = {json.dumps(str(value))}")
    browser.click("#settings-form button[type=submit]")
    browser.wait("!document.getElementById('settings').open")


def metric(address, name):
    """The sum of a metric's samples."""
    with urllib.request.urlopen(f"{address}metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
