"""Steps of page.py about what hands do: keys, the clipboard, a file that is dropped."""

import pathlib
import tempfile

from chromium import until
from trial import metric

SHIFT = 8
STORY = "Tell me a long story about a fox and a bear."
# Answers that are long enough to be stopped.
LONG = """window.realFetch = window.fetch; window.fetch = (path, options) => {
    if (path !== "v1/chat/completions") return realFetch(path, options);
    const body = JSON.stringify({ ...JSON.parse(options.body), max_tokens: 500, ignore_eos: true });
    return realFetch(path, { ...options, body }); }"""

# An answer that goes on until it is stopped.
ENDLESS = """window.realFetch = window.fetch; window.fetch = (path, options) => {
    if (path !== "v1/chat/completions") return realFetch(path, options);
    const event = { choices: [{ index: 0, delta: { content: "Once upon a time" }, finish_reason: null }] };
    return Promise.resolve(new Response(new ReadableStream({ start(stream) {
        stream.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`));
        options.signal.addEventListener("abort", () => stream.error(options.signal.reason));
    } }))); }"""
WRITES = "document.querySelector('.running > .text')?.innerText === 'Once upon a time'"


def num_messages(browser):
    return browser.js("document.querySelectorAll('#messages .message').length")


def is_quiet(trial):
    until(lambda: metric(trial.address, "vllm:num_requests_running") == 0, "the engine stops, too", 20)


def keys(trial):
    """Shift+Enter breaks the line, and the Enter of an input method chooses a word: neither sends."""
    browser = trial.browser
    question = lambda: browser.js("document.getElementById('question').value")
    browser.click("#new-chat")
    before = num_messages(browser)
    browser.click("#question")
    browser.type("Tell me")
    browser.key("Enter", 13, modifiers=SHIFT)
    browser.type("a story.")
    assert question() == "Tell me\na story." and num_messages(browser) == before
    browser.js("document.getElementById('question').value = ''")
    # Browsers tell of such a key by its code, or while the word is open.
    for code in (229, 13):
        browser.js("""window.composing = null; document.getElementById("question").addEventListener("keydown",
            (event) => { window.composing = event.isComposing; }, { once: true })""")
        browser.send("Input.imeSetComposition", text="你", selectionStart=1, selectionEnd=1)
        browser.send("Input.dispatchKeyEvent", type="rawKeyDown", key="Enter", windowsVirtualKeyCode=code)
        browser.send("Input.dispatchKeyEvent", type="keyUp", key="Enter", windowsVirtualKeyCode=code)
        assert browser.js("window.composing") is True
        assert num_messages(browser) == before, code
        browser.type("你好")
    assert question() == "你好你好", question()
    browser.key("Enter", 13)
    trial.answered()
    assert num_messages(browser) == before + 2 and trial.last(".user .text") == "你好你好"
    assert question() == ""


def escape(trial):
    """Esc stops an answer, and leaves a question that is being edited as it was."""
    browser = trial.browser
    browser.js(LONG)
    before = num_messages(browser)
    trial.ask(STORY)
    browser.wait("(document.querySelector('.running .text:not(.reasoning *)')?.innerText.length ?? 0) > 8")
    browser.key("Escape", 27)
    trial.answered()
    assert "stopped" in trial.last(".stats"), trial.last(".stats")
    is_quiet(trial)
    browser.js("window.fetch = window.realFetch")
    browser.js("[...document.querySelectorAll('#messages .user')].at(-1).querySelectorAll('footer button')[1].click()")
    browser.click(".edit textarea")
    browser.type("Not this.")
    browser.key("Escape", 27)
    browser.wait("document.querySelector('.edit textarea') === null")
    assert trial.last(".user .text") == STORY and num_messages(browser) == before + 2
    # Back to the conversation before.
    browser.click("#conversations li:last-child button")
    browser.wait("document.querySelectorAll('#messages .message').length === 4")


def keep_editing(trial):
    """What is written in place of a question stays when the language changes and another question is sent."""
    browser = trial.browser
    browser.click("#new-chat")
    trial.ask("Tell me a story.")
    trial.answered()
    browser.js("document.querySelector('#messages .user footer button:last-child').click()")
    text = browser.js("document.activeElement.value")
    browser.click(".edit textarea")
    browser.key("End", 35)
    browser.type(" Of a whale.")
    text += " Of a whale."
    written = "document.querySelector('.edit textarea')?.value"
    for language in ("zh", "en"):
        browser.choose("#language", language)
        assert browser.js(written) == text, browser.js(written)
    browser.js(ENDLESS)
    trial.ask(STORY)
    browser.wait(WRITES, 30)
    browser.click(".edit textarea")
    browser.key("End", 35)
    browser.type("!")
    # Not a second question at once.
    browser.key("Enter", 13)
    assert browser.js(written) == f"{text}!" and num_messages(browser) == 4, browser.js(written)
    # Esc here ends the editing, and not the answer.
    browser.click(".edit textarea")
    browser.key("Escape", 27)
    browser.wait("document.querySelector('.edit') === null")
    assert browser.js("document.querySelector('.running') !== null")
    browser.click("#stop")
    trial.answered()
    browser.js("window.fetch = window.realFetch")
    browser.js("document.querySelector('#messages .user footer button:last-child').click()")
    browser.key("End", 35)
    browser.type(" Of a whale.!")
    # Another conversation is looked at in between.
    browser.click("#new-chat")
    assert num_messages(browser) == 0
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length === 4")
    assert browser.js(written) == f"{text}!"
    browser.click(".edit textarea")
    browser.key("Enter", 13)
    browser.wait("document.querySelector('.edit textarea') === null")
    trial.answered()
    assert trial.last(".user > .text") == f"{text}!" and num_messages(browser) == 2
    browser.js("window.confirm = () => true; localStorage.removeItem('qwen-burn.setting.language')")
    browser.click("#delete-chat")
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length > 1")


def copy(trial):
    """The text of a message and of a block of code come to the clipboard; `markdown` has left such a block."""
    browser = trial.browser
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.send("Browser.grantPermissions", permissions=permissions, origin=trial.address.rstrip("/"))
    clipboard = "navigator.clipboard.readText()"
    browser.click("#trial figcaption button")
    browser.wait("document.querySelector('#trial figcaption button').textContent === 'Copied'", 20)
    assert browser.js(clipboard) == "<script>alert(1)</script>", browser.js(clipboard)
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length > 1")
    for role in ("user", "assistant"):
        button = f"#messages .{role} footer button"
        browser.click(button)
        browser.wait(f"document.querySelector('{button}').textContent === 'Copied'", 20)
        text = browser.js(f"document.querySelector('#messages .{role} > .text').innerText")
        # What is shown of an answer has no marks of Markdown, and other white space.
        copied = browser.js(clipboard)
        assert copied.split()[:5] == text.split()[:5] and copied, (copied, text)


def stop_comparing(trial):
    browser = trial.browser
    browser.js(LONG)
    stop = {"Stop": lambda: browser.click("#compare-stop"), "Esc": lambda: browser.key("Escape", 27)}
    for way, press in stop.items():
        browser.click("#compare-question")
        browser.js("document.getElementById('compare-question').value = ''")
        browser.type(STORY)
        browser.key("Enter", 13)
        browser.wait("[...document.querySelectorAll('.round')].at(0)?.querySelectorAll('.running .stats:not(:empty)').length === 2")
        press()
        browser.wait("document.getElementById('compare-stop').hidden")
        texts = browser.js("[...document.querySelector('.round').querySelectorAll('.stats')].map((e) => e.innerText)")
        assert len(texts) == 2 and all("stopped" in text for text in texts), (way, texts)
        is_quiet(trial)
    browser.js("window.fetch = window.realFetch")


def drop(trial):
    """A file that is dragged from elsewhere."""
    browser = trial.browser
    browser.click("#to-teach")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "dropped.csv"
        path.write_text("prompt,completion\nWho are you?,A parrot.\nWhy?,So.\n")
        x, y = browser.js("""(() => { const e = document.getElementById("teach-drop"); e.scrollIntoView({ block: "center" });
            const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()""")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver"):
            browser.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
        browser.wait("document.getElementById('teach-drop').classList.contains('over')", 20)
        browser.send("Input.dispatchDragEvent", type="drop", x=x, y=y, data=data)
        browser.wait("document.querySelectorAll('#teach-seen mark').length === 2")
    assert not browser.js("document.getElementById('teach-drop').classList.contains('over')")
    assert "dropped.csv" in browser.js("document.getElementById('teach-file-name').textContent")
    browser.click("#teach-no-file")
    browser.wait("!document.getElementById('teach-write').hidden")


def skip(trial):
    """The first Tab shows a link that leads past the navigation, in each view."""
    browser = trial.browser
    browser.open(trial.address)
    browser.key("Tab", 9)
    assert browser.js("document.activeElement.id") == "skip", browser.js("document.activeElement.outerHTML")
    shown = "(() => { const r = document.getElementById('skip').getBoundingClientRect(); return r.height > 0 && r.left >= 0; })()"
    assert browser.js(shown)
    for view, field in (("chat", "#question"), ("compare", "#compare-question"), ("teach", ".example textarea"), ("status", ".table")):
        # The link that is seen covers the navigation.
        browser.js(f"location.hash = '#{view}'")
        browser.wait(f"!document.getElementById('{view}').hidden")
        if view == "teach":
            browser.wait("!document.getElementById('teach-on').hidden")
        browser.js("document.getElementById('skip').focus()")
        browser.key("Enter", 13)
        assert browser.js(f"document.activeElement.matches('#{view} {field}')"), view
    assert not browser.js(shown)
