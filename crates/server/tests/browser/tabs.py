"""Steps of page.py in two tabs of one browser."""

from hands import ENDLESS, STORY as FOX, WRITES
from kept import STORY, titles
from trial import Trial, keep_settings


def has(browser, count):
    browser.wait(f"document.querySelectorAll('#messages .message').length === {count}", 30)


def two_tabs(trial):
    """A conversation that is open twice loses nothing, is seen to be answered, can be stopped and deleted from both."""
    browser = trial.browser
    browser.click("#new-chat")
    browser.choose("#model", trial.models[0])
    trial.ask(STORY)
    trial.answered()
    before = len(titles(browser))
    with browser.tab() as tab:
        other = Trial(tab, trial.program, trial.address, None, None)
        tab.open(trial.address)
        tab.choose("#model", trial.models[0])
        tab.click("#conversations button")
        has(tab, 2)
        for count in (4, 6):
            other.ask(STORY)
            other.answered()
            has(browser, count)
            trial.answered()
        trial.ask(STORY)
        trial.answered()
        for page in (browser, tab):
            has(page, 8)
            assert len(titles(page)) == before, titles(page)
        browser.js(ENDLESS)
        trial.ask(FOX)
        has(tab, 10)
        tab.wait("document.querySelector('.running') !== null", 30)
        tab.wait("document.querySelector('#conversations small').textContent === 'answering'", 30)
        tab.click("#stop")
        for page in (trial, other):
            page.answered()
            page.browser.wait("[...document.querySelectorAll('#messages .stats')].at(-1).innerText.includes('stopped')", 30)
        # The other tab's version has come, and this one has not heard of it.
        browser.js("window.fetch = window.realFetch")
        newer = """(() => { const { id } = document.querySelector("#conversations [aria-current]").dataset;
            const key = `qwen-burn.conversation.${id}`;
            const kept = JSON.parse(localStorage[key]); kept.updated += 1; localStorage[key] = JSON.stringify(kept); })()"""
        browser.js(newer)
        trial.ask(STORY)
        trial.answered()
        found = titles(browser)
        assert found[:2] == [f"{STORY} (2)", STORY] and len(found) == before + 1, found
        has(browser, 12)
        has(tab, 10)
        # Deleted there while it is answered here.
        browser.js(ENDLESS)
        tab.click("#conversations button")
        has(tab, 12)
        trial.ask(FOX)
        has(tab, 14)
        browser.wait(WRITES, 30)
        tab.js("window.confirm = () => true")
        tab.click("#delete-chat")
        for page in (browser, tab):
            has(page, 0)
        browser.js("window.fetch = window.realFetch")
        for page in (browser, tab):
            assert titles(page) == found[1:], titles(page)
        tab.click("#conversations button")
        has(tab, 10)
        tab.click("#delete-chat")
        browser.wait(f"document.querySelectorAll('#conversations li').length === {before - 1}", 30)
    browser.choose("#model", "random")


def settings_of_two_tabs(trial):
    """What one tab saves does not take back what another has saved since the form was opened."""
    browser = trial.browser
    summary = "document.getElementById('settings-summary').textContent"
    with browser.tab() as tab:
        tab.open(trial.address)
        for page in (browser, tab):
            page.click("#settings-open")
            page.wait("document.getElementById('settings').open")
        keep_settings(tab, top_p=0.5)
        browser.wait(f"{summary}.includes('top_p 0.5')", 20)
        keep_settings(browser, top_k=7)
        for page in (browser, tab):
            page.wait(f"{summary}.includes('top_p 0.5') && {summary}.includes('top_k 7')", 20)
        tab.click("#settings-open")
        keep_settings(tab, top_p="", top_k="")
        browser.wait(f"!{summary}.includes('top_')", 20)
