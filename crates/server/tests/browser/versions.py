"""Step of page.py about what an edited question or a retry replaces."""

import json

from kept import press, STORY

LATER = "And then?"


def retry_first(browser):
    browser.js("[...document.querySelector('#messages .assistant').querySelectorAll('button')].at(-1).click()")


def shown(browser):
    return browser.js("[...document.querySelectorAll('#messages .text:not(.reasoning *)')].map((e) => e.innerText)")


def turn(browser, sign, number):
    press(browser, sign)
    browser.wait(f"document.querySelector('.versions span').textContent === {json.dumps(number)}", 20)


def versions(trial):
    """An earlier answer that is asked for again takes nothing away; least of all if the server does not answer."""
    browser = trial.browser
    browser.click("#new-chat")
    browser.choose("#model", trial.models[0])
    for question in (STORY, LATER):
        trial.ask(question)
        trial.answered()
    before = shown(browser)
    assert len(before) == 4
    browser.js("""window.realFetch = window.fetch; window.fetch = (path, options) => {
        if (path !== "v1/chat/completions") return realFetch(path, options);
        return Promise.resolve(new Response(JSON.stringify({ error: { message: "Not so." } }), { status: 400 })); }""")
    retry_first(browser)
    browser.wait("document.getElementById('answer-error').textContent === 'Not so.'", 20)
    assert shown(browser) == before and not browser.js("document.querySelector('.versions')")
    browser.js("window.fetch = window.realFetch")
    browser.choose("#model", "random")
    retry_first(browser)
    browser.wait("document.querySelectorAll('#messages .message').length === 2", 20)
    trial.answered()
    assert browser.js("document.getElementById('answer-error').textContent") == ""
    assert browser.js("document.querySelector('.versions span').textContent") == "2/2"
    trial.shot("versions")
    turn(browser, "‹", "1/2")
    assert shown(browser) == before
    # A version in a version: another second question.
    browser.js("[...document.querySelectorAll('#messages .user')].at(-1).querySelectorAll('footer button')[1].click()")
    browser.js("document.querySelector('.edit textarea').value = ''")
    browser.click(".edit textarea")
    browser.type("Why?")
    # It stays while the version without it is looked at.
    turn(browser, "›", "2/2")
    turn(browser, "‹", "1/2")
    browser.click(".edit textarea")
    browser.key("Enter", 13)
    trial.answered()
    assert shown(browser)[:3] == [*before[:2], "Why?"], shown(browser)
    browser.open(trial.address)
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('.versions').length === 2", 20)
    kept = browser.js("""Object.keys(localStorage).filter((key) => key.includes(".conversation.")).map((key) => localStorage[key])
        .find((text) => text.includes("Why?"))""")
    press(browser, "‹")
    browser.wait(f"document.querySelectorAll('#messages .user > .text')[1].innerText === {json.dumps(LATER)}", 20)
    assert shown(browser) == before
    browser.choose_file("#import-file", "versions.json", kept)
    browser.wait("document.querySelectorAll('#messages .user > .text')[1]?.innerText === 'Why?'", 20)
    wrong = json.loads(kept)
    wrong["messages"][1]["versions"]["ends"][1] = [{"role": "root"}]
    browser.choose_file("#import-file", "wrong.json", json.dumps(wrong))
    browser.wait("document.getElementById('import-error').textContent.startsWith('wrong.json is no conversation')", 20)
    browser.js("window.confirm = () => true")
    for _ in range(2):
        browser.click("#delete-chat")
        browser.wait("document.querySelectorAll('#messages .message').length === 0", 20)
        browser.click("#conversations button")
        browser.wait("document.querySelectorAll('#messages .message').length > 0", 20)
