"""Steps of page.py about conversations that are kept: their names, files, answers that go on, and the way to their end."""

import json
import re
import urllib.request

from hands import LONG, is_quiet

STORY = "Tell me a story about a bear."


def press(browser, text, within="#messages"):
    """Clicks the last button with this text."""
    browser.js(f"[...document.querySelectorAll('{within} button')].findLast((e) => e.textContent === {json.dumps(text)}).click()")


def titles(browser):
    return browser.js("[...document.querySelectorAll('#conversations li span')].map((e) => e.textContent)")


def asked(trial, path, body):
    request = urllib.request.Request(f"{trial.address}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def go_on(trial):
    """An answer that the limit has cut goes on as if it had not been cut. `settings` has left temperature 0 and 5 tokens."""
    browser = trial.browser
    browser.click("#new-chat")
    browser.choose("#model", trial.models[0])
    trial.ask(STORY)
    trial.answered()
    first = trial.last(".assistant .text")
    press(browser, "Go on")
    browser.wait(f"[...document.querySelectorAll('#messages .assistant .text')].at(-1).innerText.length > {len(first)}")
    trial.answered()
    messages = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": STORY}]
    body = {"model": trial.models[0], "messages": messages, "temperature": 0, "max_tokens": 10}
    answer = asked(trial, "v1/chat/completions", body)
    whole = answer["choices"][0]["message"]["content"]
    assert trial.last(".assistant .text") == whole.strip(), (first, trial.last(".assistant .text"), whole)
    assert browser.js("document.querySelectorAll('#messages .message').length") == 2
    assert f"· {answer['usage']['completion_tokens']} tokens ·" in trial.last(".stats"), (answer, trial.last(".stats"))
    used = browser.js("document.getElementById('context-use').textContent")
    with urllib.request.urlopen(f"{trial.address}v1/models") as answer:
        limit = json.load(answer)["data"][0]["max_model_len"]
    found = re.fullmatch(r"([\d,]+) of ([\d,]+) tokens of context", used)
    assert found and int(found[2].replace(",", "")) == limit and int(found[1]) > 15, used


def write_an_answer(trial):
    """What a model has said may be written otherwise, nothing is asked for, and what it said stays within reach."""
    browser = trial.browser
    said = trial.last(".assistant .text")
    press(browser, "Edit", "#messages .assistant")
    browser.js("document.querySelector('.edit textarea').value = ''")
    browser.click(".edit textarea")
    browser.type("There was a bear.")
    press(browser, "Save")
    assert trial.last(".assistant .text") == "There was a bear."
    for sign, text in (("‹", said), ("›", "There was a bear.")):
        press(browser, sign)
        assert trial.last(".assistant .text") == text, (sign, trial.last(".assistant .text"))
    # What stands there may be the beginning of an answer.
    assert trial.last(".stats") == f"{trial.models[0]} · edited", trial.last(".stats")
    assert "Go on" in trial.last(".assistant footer"), trial.last(".assistant footer")
    assert browser.js("document.querySelectorAll('#messages .message').length") == 2
    browser.open(trial.address)
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length === 2")
    assert trial.last(".assistant .text") == "There was a bear."


def reload(trial):
    """What an answer has so far stays when the page is loaded anew, as an answer that was stopped."""
    browser = trial.browser
    browser.click("#new-chat")
    browser.js(LONG)
    trial.ask(STORY)
    browser.wait("(document.querySelector('.running > .text')?.innerText.length ?? 0) > 8", 30)
    browser.js("window.before = true")
    browser.send("Page.reload")
    browser.wait("window.before === undefined && document.getElementById('model')?.options.length > 0", 30)
    is_quiet(trial)
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length === 2")
    assert len(trial.last(".assistant > .text")) > 8
    assert "stopped" in trial.last(".stats") and not trial.last(".error:not([hidden])"), trial.last(".assistant")
    browser.js("window.confirm = () => true")
    browser.click("#delete-chat")
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length === 2")


def rename_and_search(trial):
    browser = trial.browser
    browser.js("window.prompt = () => 'Grizzly'")
    browser.click("#rename-chat")
    before = titles(browser)
    assert before[0] == "Grizzly" and len(before) > 1, before
    browser.click("#search")
    for text, found in (("gRIZZ", ["Grizzly"]), ("there was a bear.", ["Grizzly"]), ("zzzz", [])):
        browser.js("document.getElementById('search').value = ''")
        browser.type(text)
        assert titles(browser) == found, (text, titles(browser))
    assert browser.js("document.getElementById('no-conversations').innerText") == "Nothing found."
    browser.js("document.getElementById('search').value = ''; document.getElementById('search').dispatchEvent(new Event('input'))")
    assert titles(browser) == before


def take_a_file(trial):
    """A conversation that was saved as JSON comes back, also a long one, whose end is a click away."""
    browser = trial.browser
    kept = browser.js("""Object.keys(localStorage).filter((key) => key.includes(".conversation.")).map((key) => localStorage[key])
        .find((text) => text.includes("Grizzly"))""")
    before = titles(browser)
    browser.choose_file("#import-file", "bear.json", kept)
    browser.wait(f"document.querySelectorAll('#conversations li').length === {len(before) + 1}")
    assert titles(browser)[0] == "Grizzly" and trial.last(".assistant .text") == "There was a bear."
    for wrong in ("{", "[]", '{"messages": []}', '{"messages": [{"role": "user", "content": 3}]}',
                  '{"messages": [{"role": "root", "content": "a"}]}'):
        browser.js("document.getElementById('import-error').textContent = ''")
        browser.choose_file("#import-file", "wrong.json", wrong)
        browser.wait("document.getElementById('import-error').textContent.startsWith('wrong.json is no conversation')")
    assert len(titles(browser)) == len(before) + 1
    long = json.loads(kept)
    long["messages"] *= 30
    browser.choose_file("#import-file", "long.json", json.dumps(long))
    browser.wait("document.querySelectorAll('#messages .message').length === 60")
    assert browser.js("document.getElementById('import-error').textContent") == ""
    browser.js("document.getElementById('log').scrollTop = 0")
    browser.wait("!document.getElementById('to-end').hidden")
    trial.shot("to-end")
    browser.click("#to-end")
    browser.wait("document.getElementById('to-end').hidden")


def delete(trial):
    """Only after the question is answered with yes."""
    browser = trial.browser
    before = titles(browser)
    browser.js("window.confirm = () => false")
    browser.click("#delete-chat")
    assert titles(browser) == before
    browser.js("window.confirm = () => true")
    for _ in range(3):
        browser.click("#conversations button")
        browser.wait("document.querySelectorAll('#messages .message').length >= 2")
        browser.click("#delete-chat")
        browser.wait("document.querySelectorAll('#messages .message').length === 0")
    assert titles(browser) == before[3:], (before, titles(browser))
    browser.open(trial.address)
    assert titles(browser) == before[3:]
    browser.choose("#model", "random")


def loading(trial):
    """A server that loads its model says how far it is, and the page goes on by itself."""
    browser = trial.browser
    browser.open(trial.address)
    browser.js("""window.realFetch = window.fetch; window.fetch = (path, options) => {
        if (path !== "v1/models") return realFetch(path, options);
        const error = { message: "Not yet.", progress: { done: 3, of: 24 } };
        return Promise.resolve(new Response(JSON.stringify({ error }), { status: 503 })); }""")
    browser.js("window.dispatchEvent(new Event('focus'))")
    browser.wait("!document.getElementById('trouble').hidden", 20)
    assert browser.js("document.getElementById('trouble-text').textContent") == "The server loads its model. This page goes on by itself."
    shown = browser.js("(({ value, max, hidden }) => [value, max, hidden])(document.getElementById('trouble-progress'))")
    assert shown == [3, 24, False], shown
    trial.shot("loading")
    browser.js("window.fetch = window.realFetch")
    browser.wait("document.getElementById('trouble').hidden", 20)
