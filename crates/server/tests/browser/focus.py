"""Steps of page.py about where the keyboard goes, and about screens and storages without room."""

from hands import ENDLESS, WRITES, num_messages
from kept import press

FOCUS = "document.activeElement.id || document.activeElement.dataset.do"


def focus(trial):
    """Who sends, stops, retries, edits or deletes by keyboard goes on from there, and not from the top of the page."""
    browser = trial.browser
    browser.click("#to-chat")
    browser.click("#new-chat")
    trial.ask("Tell me a story.")
    trial.answered()

    def use(selector, text):
        """Presses a button that has the keyboard."""
        browser.js(f"[...document.querySelectorAll('{selector}')].find((e) => e.textContent === '{text}').focus()")
        browser.key("Enter", 13)

    use("#messages .assistant footer button", "Retry")
    browser.wait("document.querySelector('.versions') !== null")
    trial.answered()
    assert browser.js(FOCUS) == "question", browser.js(FOCUS)
    use("#messages .user footer button", "Edit")
    browser.wait("document.activeElement.matches('.edit textarea')")
    browser.key("Escape", 27)
    assert browser.js(FOCUS) == "edit", browser.js(FOCUS)
    browser.key("Enter", 13)
    browser.wait("document.activeElement.matches('.edit textarea')")
    browser.type(" ")
    browser.key("Enter", 13)
    browser.wait("document.querySelector('.edit') === null")
    trial.answered()
    assert browser.js(FOCUS) == "question", browser.js(FOCUS)
    use("#messages .assistant footer button", "Edit")
    use("#messages .edit button", "Save")
    assert browser.js(FOCUS) == "edit", browser.js(FOCUS)
    browser.js(ENDLESS)
    trial.ask("Tell me more.")
    browser.wait(WRITES, 30)
    use("#stop", "Stop")
    trial.answered()
    assert browser.js(FOCUS) == "question", browser.js(FOCUS)
    browser.js("window.fetch = window.realFetch; window.confirm = () => true")
    use("#delete-chat", "Delete")
    assert num_messages(browser) == 0 and browser.js(FOCUS) == "question", browser.js(FOCUS)


def low_screens(trial):
    """A magnified page, and a phone that lies on its side, scroll as a whole: messages keep most of the height."""
    browser = trial.browser
    for width, height in ((320, 256), (568, 320)):
        browser.open(trial.address, width=width, height=height)
        for view in ("chat", "compare", "teach", "status"):
            browser.js(f"location.hash = '#{view}'")
            browser.wait(f"!document.getElementById('{view}').hidden")
            trial.fits()
        browser.js("location.hash = '#chat'")
        browser.wait("!document.getElementById('chat').hidden")
        shown = browser.js("document.getElementById('log').clientHeight")
        assert shown >= height * 0.6, (width, height, shown)
        trial.ask("Tell me a story about a duck.")
        trial.answered()
        trial.fits()
        trial.shot(f"low-{width}")
        box = browser.js("""(() => { const e = document.getElementById("question"); e.scrollIntoView({ block: "center" });
            const r = e.getBoundingClientRect(); return [r.top, r.bottom]; })()""")
        assert 0 <= box[0] < box[1] <= height, box
        assert browser.js("document.scrollingElement.scrollHeight > innerHeight && document.scrollingElement.scrollTop > 0")
    browser.open(trial.address)


def settings_without_room(trial):
    """A setting that the browser cannot keep is in force, and said to last no longer than the page."""
    browser = trial.browser
    browser.open(trial.address)
    browser.js("""window.realSet = Storage.prototype.setItem; Storage.prototype.setItem = function () {
        throw new DOMException("full", "QuotaExceededError"); }""")
    is_told = "!document.getElementById('unkept').hidden"
    assert not browser.js(is_told)
    browser.click("#settings-open")
    browser.wait("document.getElementById('settings').open")
    browser.js("document.getElementById('set-max_tokens').value = '7'")
    press(browser, "Save", "#settings-form")
    browser.wait(f"!document.getElementById('settings').open && {is_told}", 20)
    assert "max_tokens 7" in browser.js("document.getElementById('settings-summary').textContent")
    browser.click("#settings-open")
    browser.wait("document.getElementById('set-max_tokens').value === '7'", 20)
    browser.click("#settings-cancel")
    browser.choose("#theme", "dark")
    trial.shot("unkept")
    browser.js("Storage.prototype.setItem = window.realSet")
    browser.choose("#theme", "auto")
    assert browser.js(is_told), "the other setting is still not kept"
    browser.click("#settings-open")
    browser.js("document.getElementById('set-max_tokens').value = ''")
    press(browser, "Save", "#settings-form")
    browser.wait(f"!({is_told})", 20)
