"""Steps of page.py about texts that are not sent yet."""

TEXTS = ["Who are you?", "A parrot.", "Why?", "So.", "What", "that", "A fourth", "row"]


def drafts(trial):
    """A question and written examples outlive a reload, and are gone once they are sent or emptied."""
    browser = trial.browser
    browser.click("#new-chat")
    questions = {"chat": "#question", "compare": "#compare-question"}
    for view, field in questions.items():
        browser.click(f"#to-{view}")
        browser.click(field)
        browser.type(f"In {view},\nand more")
    browser.click("#to-teach")
    browser.wait("!document.getElementById('teach-on').hidden")
    browser.click("#teach-add")
    for i, text in enumerate(TEXTS):
        browser.js(f"document.querySelectorAll('.example textarea')[{i}].focus()")
        browser.type(text)
    browser.open(trial.address)
    for view, field in questions.items():
        browser.click(f"#to-{view}")
        assert browser.js(f"document.querySelector('{field}').value") == f"In {view},\nand more"
    written = "[...document.querySelectorAll('.example textarea')].map(({ value }) => value)"
    assert browser.js(written) == TEXTS
    browser.click("#to-chat")
    browser.click("#question")
    browser.key("Enter", 13)
    trial.answered()
    browser.click("#to-compare")
    browser.click("#compare-question")
    browser.send("Input.dispatchKeyEvent", type="keyDown", key="a", commands=["selectAll"])
    browser.key("Backspace", 8)
    browser.click("#to-teach")
    for _ in range(4):
        browser.js("document.querySelector('.example button').click()")
    browser.open(trial.address)
    assert browser.js("sessionStorage.length") == 0, browser.js("JSON.stringify(sessionStorage)")
    assert browser.js(written) == [""] * 6
    browser.js("window.confirm = () => true")
    browser.click("#conversations button")
    browser.click("#delete-chat")


def heights(trial):
    """A question's field has its height also where another view was the one that was loaded."""
    browser = trial.browser
    for loaded, other in (("chat", "#compare-question"), ("compare", "#question")):
        browser.send("Page.navigate", url="about:blank")
        browser.open(f"{trial.address}#{loaded}")
        browser.click("#to-compare" if loaded == "chat" else "#to-chat")
        height = f"(({{ offsetHeight, scrollHeight }}) => [offsetHeight, scrollHeight])(document.querySelector('{other}'))"
        browser.wait(f"document.querySelector('{other}').offsetHeight > 0")
        shown, needed = browser.js(height)
        assert shown >= needed > 0, (other, shown, needed)
    browser.open(trial.address)
