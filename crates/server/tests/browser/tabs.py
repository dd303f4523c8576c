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


def write_elsewhere(browser, change):
    """What another tab does that writes the open conversation: `change` is a statement about its messages."""
    browser.js(f"""(() => {{ const key = `qwen-burn.conversation.${{document.querySelector("#conversations [aria-current]").dataset.id}}`;
        const kept = JSON.parse(localStorage[key]), {{ messages }} = kept; {change}; kept.updated += 1;
        localStorage[key] = JSON.stringify(kept); dispatchEvent(new StorageEvent("storage", {{ key }})); }})()""")


def an_answer_from_another_tab(trial):
    """What is drawn stays where it is while another tab's answer grows: thoughts that are unfolded, a selection, a word in an edit."""
    browser = trial.browser
    browser.click("#new-chat")
    browser.choose("#model", trial.models[0])
    for _ in range(2):
        trial.ask(STORY)
        trial.answered()
    write_elsewhere(browser, "messages[3].reasoning = 'So.'")
    browser.wait("document.querySelectorAll('#messages details:not([hidden])').length === 1")
    browser.js("[...document.querySelectorAll('#messages details')].at(-1).open = true")
    browser.js("document.querySelector('#messages .user footer button:last-child').click()")
    browser.send("Input.imeSetComposition", text="你", selectionStart=1, selectionEnd=1)
    browser.js("window.drawn = [...document.getElementById('messages').children]; window.edited = document.activeElement")
    write_elsewhere(browser, "messages[3].content += ' And **more**.'; messages[3].reasoning += ' Then.'")
    browser.wait("[...document.querySelectorAll('#messages strong')].at(-1)?.textContent === 'more'")
    assert browser.js("drawn.every((e, i) => e === document.getElementById('messages').children[i])")
    assert browser.js("drawn[3].querySelector('details').open && drawn[3].querySelector('details').innerText.includes('Then.')")
    assert browser.js("document.activeElement === edited")
    browser.type("你好")
    assert browser.js("edited.value") == f"{STORY}你好", browser.js("edited.value")
    browser.js("window.confirm = () => true")
    browser.click("#delete-chat")
    browser.choose("#model", "random")


def alone(trial):
    """A browser without a channel between tabs has the page, too."""
    with trial.browser.tab() as tab:
        tab.send("Page.addScriptToEvaluateOnNewDocument", source="delete window.BroadcastChannel")
        tab.open(trial.address)
        assert tab.js("typeof BroadcastChannel") == "undefined"


def a_copy_without_room(trial):
    """A conversation that another tab has written, and that finds no room under an id of its own, keeps its id and title."""
    found = trial.browser.js("""import("/page/store.js").then((store) => {
        const own = Object.assign(store.newConversation(), { title: "Own", messages: [{ role: "user", content: "a" }] });
        store.saveConversation(own);
        const before = structuredClone(own);
        store.saveConversation(structuredClone(own));
        const { setItem } = Storage.prototype;
        Storage.prototype.setItem = () => { throw new Error("full"); };
        const isKept = store.saveConversation(own);
        Storage.prototype.setItem = setItem;
        store.deleteConversation(own.id);
        return [isKept, JSON.stringify(own) === JSON.stringify(before)]; })""")
    assert found == [False, True], found
