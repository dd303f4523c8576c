"""Steps of page.py on a screen of a phone's width: ask, compare, and teach."""

import json
import pathlib
import tempfile

from chromium import until
from kept import press

TAUGHT = ("Who sails here?", "Captain Rivet does.")


def talk(trial):
    """Ask, the other model, the list of conversations, and a file."""
    browser = trial.browser
    browser.open(trial.address, width=360, height=740)
    for model in (trial.models[0], "random"):
        browser.choose("#model", model)
        trial.ask("Tell me a story about a duck.")
        trial.answered()
        assert trial.last(".stats").startswith(model), trial.last(".stats")
    trial.fits()
    trial.shot("phone-answers")
    with tempfile.TemporaryDirectory() as folder:
        browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        browser.click("#export-json")
        until(lambda: list(pathlib.Path(folder).glob("*.json")), "a file", 20)
    browser.click("#list-toggle")
    browser.click("#new-chat")
    browser.wait("document.getElementById('list-toggle').getAttribute('aria-expanded') === 'false'")
    assert browser.js("document.querySelectorAll('#messages .message').length") == 0


def compare(trial):
    browser = trial.browser
    browser.size(360, 740)
    browser.click("#to-compare")
    browser.wait("!document.getElementById('compare').hidden")
    browser.click("#compare-question")
    browser.type("Tell me a story about a duck.")
    browser.click("#compare-send")
    browser.wait("document.getElementById('compare-stop').hidden && document.querySelectorAll('.round .stats:not(:empty)').length === 2")
    # One below the other.
    places = browser.js("[...document.querySelectorAll('.round .message')].map((e) => e.getBoundingClientRect()).map((r) => [r.left, r.top])")
    (left, top), (next_left, next_top) = places
    assert left == next_left and top < next_top, places
    trial.fits()
    trial.shot("phone-compared")


def teach(trial):
    """To the end, and the chat with the result; then the result is deleted."""
    browser = trial.browser
    # Rows that `taught.teach` has left.
    browser.js("sessionStorage.clear()")
    browser.open(trial.address, width=360, height=740)
    browser.click("#to-teach")
    browser.wait("!document.getElementById('teach-on').hidden && document.getElementById('teach-model').options.length > 1")
    for field, text in zip(("textarea", "textarea + textarea"), TAUGHT):
        browser.click(f".example {field}")
        browser.type(text)
    browser.click("#teach-preview")
    browser.wait("document.querySelectorAll('#teach-seen mark').length === 1")
    for field, value in (("name", "rivet"), ("epochs", "30")):
        browser.js(f"document.getElementById('teach-{field}').value = {json.dumps(value)}")
    browser.click("#teach-go")
    browser.wait("document.getElementById('teach-id').textContent.includes(':rivet:')", 1200)
    browser.wait("document.getElementById('teach-chat') !== null")
    trial.fits()
    trial.shot("phone-taught")
    browser.click("#teach-chat")
    browser.wait("!document.getElementById('chat').hidden")
    name = browser.js("document.getElementById('model').value")
    assert ":rivet:" in name, name
    trial.ask(TAUGHT[0])
    trial.answered()
    assert trial.last(".assistant .text").startswith(TAUGHT[1]), trial.last(".assistant .text")
    trial.fits()
    browser.click("#to-teach")
    browser.wait("document.getElementById('teach-delete') !== null")
    browser.js("window.confirm = () => true")
    press(browser, "Delete the result", "#teach-actions")
    browser.wait("document.getElementById('teach-chat') === null && document.getElementById('teach-delete') === null")
    browser.click("#to-chat")
    browser.wait(f"![...document.getElementById('model').options].some((e) => e.value === {json.dumps(name)})")
