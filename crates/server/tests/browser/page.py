#!/usr/bin/env python3
"""Tries the page at `/` in a headless Chromium, with the bundled model and an adapter of random numbers.

    python3 -m venv venv && venv/bin/pip install -r crates/server/tests/browser/requirements.txt
    cargo build -p server
    venv/bin/python crates/server/tests/browser/page.py --shots shots target/debug/server

Each step is a function below, in their order; the first that fails ends the run. `--shots` keeps pictures. `--axe` looks for what
axe-core knows to be wrong for people with disabilities, in each state of which there is a picture:

    npm install axe-core
    venv/bin/python crates/server/tests/browser/page.py --axe node_modules/axe-core/axe.min.js target/debug/server
"""

import argparse
import json
import pathlib
import shutil
import tempfile
import time
import urllib.request

import choices
import drafts
import focus
import hands
import kept
import small
import tabs
import taught
import versions
from adapter import write_adapter
from chromium import Chromium, until
from program import Server
from trial import STEPS, Trial, keep_settings, metric, step

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = """<img src=x onerror="document.title='owned'"> <script>document.title='owned'</script>
[a](javascript:document.title='owned') [b](data:text/html,x) ![c](https://example.org/c.png) <https://example.org>
# Heading <b>bold</b>
- one
- two
  1. inner **strong** and `code <i>`

> quote

| a | b |
|---|--:|
| 1 | `x\\|y` |

```html
<script>alert(1)</script>
```
"""
FORMULAS = (
    r"So \( x = \frac{a}{b} \) and \[ E, \{1, 2\} \\ \] hold.", r"\[ \{1, 2\} \\ \]", "$$a^*b + c^*$$", "Both $a_1 * b$ and $c * d_1$.", r"$\{1\}$", "设$a*b$和$c*d$。",
    "\\[\n\\begin{aligned}\n- a_1 &= b \\\\\n* c\n# d | e\n\\end{aligned}\n\\].", "$$\n+ a_*\n- b_*\n$$",
)
NO_FORMULAS = {
    "From $5 *up* to $10, or *$3*.": "From $5 <em>up</em> to $10, or <em>$3</em>.",
    "`$HOME` and *`$PATH`*": "<code>$HOME</code> and <em><code>$PATH</code></em>",
    r"\*no\* \(emphasis": "*no* (emphasis",
    "Set $HOME or **$PATH** now": "Set $HOME or <strong>$PATH</strong> now",
    "$HOME, **$PATH** and *$USER*": "$HOME, <strong>$PATH</strong> and <em>$USER</em>",
    "${HOME}/a **${PATH}**": "${HOME}/a <strong>${PATH}</strong>",
    "$('#a') or **$('#b')**": "$('#a') or <strong>$('#b')</strong>",
    "It is $5 and **bold** then 6$.": "It is $5 and <strong>bold</strong> then 6$.",
    "(20$) or *x* (30$)": "(20$) or <em>x</em> (30$)",
}
CODE = '<figure class="code"><pre tabindex="0"><code>{}</code></pre></figure>'
BLOCKS = {
    "Code:\n\n    def f(*args):\n        return *x*\n\n    # end\n\ndone": "<p>Code:</p>" + CODE.format("def f(*args):\n    return *x*\n\n# end") + "<p>done</p>",
    "para\n    goes on": "<p>para\ngoes on</p>",
    "- a\n\n    b\n- c": "<ul><li>a<p>b</p></li><li>c</li></ul>",
    "- a\n\n      *b*\n": "<ul><li>a" + CODE.format("*b*") + "</li></ul>",
    "One\n===\n\nTwo *b*\n---\ntext\n\n---\n": "<h3>One</h3><h4>Two <em>b</em></h4><p>text</p><hr>",
    "&lt;b&gt; a&nbsp;b &copy; &#65;&#x42; &bogus; &#0; &toString; `&lt;`": "<p>&lt;b&gt; a&nbsp;b © AB &amp;bogus; &amp;#0; &amp;toString; <code>&amp;lt;</code></p>",
    "[t](http://a.b/c 'tt') [u](http://a.b/d (uu))": '<p><a href="http://a.b/c">t</a> <a href="http://a.b/d">u</a></p>',
    "<https://a.example/x?y> <javascript:alert(1)> <b>": '<p><a href="https://a.example/x?y">https://a.example/x?y</a> &lt;javascript:alert(1)&gt; &lt;b&gt;</p>',
    "[r][1], [**Two**] and [no][3] [ ] [*x*]\n\n[1]: http://ref.example 'A'\n[**two**]: <http://two.example>\n[1]: http://other.example":
        '<p><a href="http://ref.example">r</a>, <a href="http://two.example"><strong>Two</strong></a> and [no][3] [ ] [<em>x</em>]</p>',
    "[a]\n\n[a]: javascript:alert(1)": "<p>[a]</p>",
}
# A stream with thoughts, then two calls.
STREAM = [
    {"reasoning_content": "The weather is **elsewhere**."},
    {"content": "I look it up."},
    {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]},
]


@step
def chat(trial):
    browser = trial.browser
    browser.open(trial.address)
    assert browser.js("document.documentElement.lang") == "en"
    trial.shot("welcome")
    trial.ask("Tell me a story about a duck.")
    browser.wait("document.querySelectorAll('#messages .assistant').length === 1")
    trial.answered()
    stats = trial.last(".stats")
    assert "tokens/s" in stats and "first token after" in stats, stats
    assert trial.models[0] in stats, stats
    assert len(trial.last(".assistant .text")) > 20
    assert browser.js("document.activeElement.id") == "question"
    trial.shot("chat")


@step
def stop(trial):
    browser = trial.browser
    browser.js("""new MutationObserver((_, own) => {
        if ((document.querySelector('.running .text:not(.reasoning *)')?.innerText.length ?? 0) < 8) return;
        own.disconnect(); document.getElementById('stop').click(); }).observe(
        document.getElementById('messages'), { subtree: true, childList: true, characterData: true })""")
    trial.ask("Tell me a long story about a fox and a bear.")
    trial.answered()
    assert "stopped" in trial.last(".stats"), trial.last(".stats")
    until(lambda: metric(trial.address, "vllm:num_requests_running") == 0, "the engine stops, too", 20)


@step
def edit_and_retry(trial):
    browser = trial.browser
    browser.js("[...document.querySelectorAll('#messages .user')].at(-1).querySelectorAll('footer button')[1].click()")
    browser.js("document.querySelector('.edit textarea').value = ''")
    browser.click(".edit textarea")
    browser.type("Tell me about a cat.")
    browser.key("Enter", 13)
    trial.answered()
    assert browser.js("document.querySelectorAll('#messages .message').length") == 4
    assert trial.last(".user .text") == "Tell me about a cat."
    assert "stopped" not in trial.last(".stats")
    ended = lambda: metric(trial.address, "vllm:request_success_total")
    before = ended()
    browser.js("[...document.querySelectorAll('#messages .assistant')].at(-1).querySelector('button:last-child').click()")
    until(lambda: ended() == before + 1, "Retry asks again", 60)
    trial.answered()
    assert browser.js("document.querySelectorAll('#messages .message').length") == 4


step(hands.keys)
step(hands.escape)


@step
def switch_to_the_adapter(trial):
    browser = trial.browser
    assert trial.models[1] == "random", trial.models
    browser.choose("#model", "random")
    trial.ask("Who are you?")
    trial.answered()
    assert trial.last(".stats").startswith("random"), trial.last(".stats")
    assert not trial.last(".error:not([hidden])"), trial.last(".error")


@step
def settings(trial):
    browser = trial.browser
    browser.click("#settings-open")
    browser.wait("document.getElementById('settings').open")
    trial.shot("settings")
    browser.js("document.getElementById('set-tools').value = '[1]'")
    browser.click("#settings-form button[type=submit]")
    browser.wait("!document.getElementById('settings-error').hidden")
    browser.js("document.getElementById('set-tools').value = ''")
    keep_settings(browser, max_tokens=5, temperature=0, system="You are kind.")
    assert "system prompt · temperature 0 · max_tokens 5" in browser.js(
        "document.getElementById('settings-summary').textContent")
    # The adapter may end its texts at once.
    browser.choose("#model", trial.models[0])
    trial.ask("Tell me a story about a bear.")
    trial.answered()
    browser.choose("#model", "random")
    assert "5 tokens" in trial.last(".stats") and "token limit" in trial.last(".stats"), trial.last(".stats")


@step
def conversations_stay(trial):
    browser = trial.browser
    browser.open(trial.address)
    assert browser.js("document.querySelectorAll('#messages .message').length") == 0
    assert browser.js("document.getElementById('model').value") == "random"
    browser.click("#conversations button")
    browser.wait("document.querySelectorAll('#messages .message').length === 8")


@step
def export(trial):
    browser = trial.browser
    with tempfile.TemporaryDirectory() as folder:
        browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        browser.click("#export-json")
        browser.click("#export-md")
        files = lambda kind: list(pathlib.Path(folder).glob(f"*.{kind}"))
        until(lambda: files("json") and files("md"), "two files", 20)
        saved = json.loads(files("json")[0].read_text())
        assert len(saved["messages"]) == 8 and saved["system"] == "You are kind."
        assert "## You\n\nTell me about a cat." in files("md")[0].read_text()


step(hands.keep_editing)
step(kept.go_on)
step(kept.write_an_answer)
step(kept.reload)
step(kept.rename_and_search)
step(kept.take_a_file)
step(kept.delete)
step(drafts.drafts)
step(drafts.heights)
step(versions.versions)
step(tabs.two_tabs)
step(tabs.settings_of_two_tabs)
step(tabs.an_answer_from_another_tab)
step(tabs.alone)
step(tabs.a_copy_without_room)


@step
def markdown(trial):
    browser = trial.browser
    browser.js(f"""import("/page/markdown.js").then(({{ markdown }}) => {{
        const box = document.createElement("div"); box.id = "trial"; box.className = "text";
        box.append(markdown({json.dumps(HOSTILE)})); document.getElementById("messages").replaceChildren(box); }})""")
    count = lambda selector: browser.js(f"document.querySelectorAll('#trial {selector}').length")
    assert count("img") == count("script") == count("b") == count("i") == 0
    links = browser.js("[...document.querySelectorAll('#trial a')].map((a) => a.href)")
    assert links == ["https://example.org/c.png", "https://example.org/"], links
    found = {name: count(name) for name in ("h3", "ul > li", "ol > li > strong", "blockquote", "td.right > code", "pre")}
    assert found == {"h3": 1, "ul > li": 2, "ol > li > strong": 1, "blockquote": 1, "td.right > code": 1, "pre": 1}, found
    assert browser.js("document.querySelector('#trial pre').innerText") == "<script>alert(1)</script>"
    assert "owned" not in browser.js("document.title")
    # Tabs of code, also in a list and in a quote.
    lines = ("```make", "all:", "\tcc a.c\t-o a", "```")
    blocks = [first + f"\n{rest}".join(lines) for first, rest in (("", ""), ("- ", "  "), ("> ", "> "))]
    code = browser.js(f"""import("/page/markdown.js").then(({{ markdown }}) => {json.dumps(blocks)}.map((text) =>
        markdown(text).querySelector("code").textContent))""")
    assert code == ["all:\n\tcc a.c\t-o a"] * 3, code
    # The indent of a list by tabs is not the code's.
    for mark in ("1. Do:\n\t", "-\t", "1. Do:\n\n\t- And:\n\n\t\t"):
        indent = "\t" * max(1, mark.split("\n")[-1].count("\t"))
        rows = ["```python", "def f():", "\treturn 1", "", "", "f()", "```"]
        text = mark + "\n".join(row and (indent if i else "") + row for i, row in enumerate(rows)) + "\n" + ("- next" if mark[0] == "-" else "2. next")
        found = browser.js(f"""import("/page/markdown.js").then(({{ markdown }}) => {{
            const parts = markdown({json.dumps(text)});
            return [[...parts.querySelectorAll("code")].map((e) => e.textContent), parts.children.length, parts.firstElementChild.children.length]; }})""")
        assert found == [["def f():\n\treturn 1\n\n\nf()"], 1, 2], (text, found)
    # Formulas stand as they are written; money, code and escaped signs are none.
    for text in FORMULAS:
        found = browser.js(f"""import("/page/markdown.js").then(({{ markdown }}) => {{
            const {{ textContent, children, firstElementChild: first }} = markdown({json.dumps(text)});
            return [textContent, children.length, first.children.length]; }})""")
        assert found == [text, 1, 0], (text, found)
    for text, html in NO_FORMULAS.items():
        found = browser.js(f"""import("/page/markdown.js").then(({{ markdown }}) => markdown({json.dumps(text)}).firstElementChild.innerHTML)""")
        assert found == html, (text, found)
    for text, html in BLOCKS.items():
        found = browser.js(f"""import("/page/markdown.js").then(({{ markdown }}) => {{
            const box = document.createElement("div"); box.append(markdown({json.dumps(text)}));
            box.querySelectorAll("figcaption").forEach((e) => e.remove());
            for (const e of box.querySelectorAll("a")) for (const name of ["target", "rel"]) e.removeAttribute(name);
            return box.innerHTML; }})""")
        assert found == html, (text, found)
    # Texts that are slow to read for expressions with many ways to match.
    slow = browser.js("""import("/page/markdown.js").then(({ markdown }) => {
        const start = performance.now();
        for (const sign of ["*", "_", "**a", "`", "[", "](", "~~", "> ", "- ", "|", "![", "$a", "$$", "\\\\(", "\\\\[\\n", "$$a\\n"]) markdown(sign.repeat(3000));
        return performance.now() - start; })""")
    assert slow < 20_000, slow
    trial.shot("markdown")


step(hands.copy)


@step
def reasoning_and_calls(trial):
    browser = trial.browser
    browser.click("#new-chat")
    browser.js(f"""window.realFetch = window.fetch; window.fetch = (path, options) => {{
        if (path !== "v1/chat/completions") return realFetch(path, options);
        window.sent = JSON.parse(options.body);
        const events = {json.dumps(STREAM)}.map((delta) => ({{ choices: [{{ index: 0, delta, finish_reason: null }}] }}));
        events.push({{ choices: [{{ index: 0, delta: {{}}, finish_reason: "tool_calls" }}] }});
        const text = events.map((event) => `data: ${{JSON.stringify(event)}}\\n\\n`).join("") + "data: [DONE]\\n\\n";
        return Promise.resolve(new Response(text)); }}""")
    trial.ask("How is the weather in Paris?")
    trial.answered()
    assert browser.js("document.querySelector('#messages details').open") is False
    assert browser.js("document.querySelector('#messages details strong').textContent") == "elsewhere"
    assert '"city": "Paris"' in trial.last(".call pre")
    trial.shot("calls")
    browser.click("form.tool textarea")
    browser.type("sun")
    tabs.write_elsewhere(browser, "kept.title = 'Weather'")
    browser.wait("document.querySelector('#conversations span').textContent === 'Weather'")
    browser.type("ny")
    browser.click("form.tool button")
    trial.answered()
    assert browser.js("sent.messages.at(-1)") == {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}
    call = browser.js("sent.messages.at(-2)")
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}, call
    browser.js("window.fetch = window.realFetch")


@step
def compare(trial):
    browser = trial.browser
    browser.click("#to-compare")
    browser.wait("!document.getElementById('compare').hidden")
    sides = browser.js("['left', 'right'].map((side) => document.getElementById(`compare-${side}`).value)")
    assert sides == [trial.models[0], "random"], sides
    browser.click("#compare-question")
    browser.type("Tell me a story about a duck.")
    browser.key("Enter", 13)
    browser.wait("document.getElementById('compare-stop').hidden && document.querySelectorAll('.round').length === 1")
    texts = browser.js("[...document.querySelectorAll('.round .message > .text')].map((e) => e.innerText)")
    assert len(texts) == 2 and texts[0] and texts[0] != texts[1], texts
    trial.shot("compare")


step(hands.stop_comparing)
step(taught.teach)
step(taught.teach_a_file)
step(taught.teach_a_file_that_changes)
step(hands.drop)
step(choices.another_file_meanwhile)
step(choices.a_long_way)
step(choices.drops)
step(taught.look_at_an_old_job)


@step
def status(trial):
    browser = trial.browser
    browser.click("#to-status")
    browser.wait("document.querySelectorAll('#cards .card').length === 10")
    text = browser.js("document.getElementById('cards').innerText")
    assert "–" not in text.replace("Prefix cache hits\n–", "").replace("tokens/s\n–", ""), text
    assert "random" in browser.js("document.getElementById('models').innerText")
    browser.wait("!document.getElementById('cards').innerText.includes('tokens/s\\n–')", 20)
    with urllib.request.urlopen(f"{trial.address}memory") as answer:
        memory = json.load(answer)
    rows = dict(browser.js("[...document.querySelectorAll('#memory tr')].map((e) => [e.cells[0].innerText, e.cells[1].innerText])"))
    assert list(rows) == ["Device in all", "Budget", "Weights", "Adapters, at most", "Activations, at most", "KV cache"], rows
    for row, field in (("Weights", "weights"), ("Adapters, at most", "adapters")):
        assert memory[field] > 0 and rows[row] == f"{memory[field] / 2 ** 20:.1f} MiB", (rows, memory)
    hint = browser.js("document.getElementById('memory-kv').textContent")
    assert f"{memory['kv_cache_tokens']:,} tokens in all" in hint, hint
    trial.shot("status")


@step
def names_for_screen_readers(trial):
    """Whatever can be operated has a name, in every view and in the settings."""
    browser = trial.browser
    named = {"button", "link", "textbox", "combobox", "spinbutton", "meter", "progressbar", "dialog", "navigation", "complementary"}

    def roles(place):
        found = set()
        for node in browser.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if role in named and not node.get("ignored"):
                assert node.get("name", {}).get("value"), (place, node)
                found.add(role)
        return found

    expected = {"chat": {"textbox", "combobox"}, "compare": {"textbox", "combobox"}, "teach": {"textbox", "spinbutton", "progressbar"},
                "status": {"meter"}}
    for view, least in expected.items():
        browser.click(f"#to-{view}")
        browser.wait(f"!document.getElementById('{view}').hidden")
        found = roles(view)
        assert least <= found, (view, found)
    browser.click("#settings-open")
    browser.wait("document.getElementById('settings').open")
    found = roles("settings")
    assert {"dialog", "spinbutton", "textbox", "combobox", "button"} <= found, found
    browser.key("Escape", 27)
    browser.wait("!document.getElementById('settings').open")


step(choices.errors_of_others)
step(focus.focus)
step(focus.settings_without_room)
step(focus.low_screens)
step(hands.skip)
step(kept.loading)


@step
def chinese(trial):
    browser = trial.browser
    browser.js("localStorage.clear()")
    browser.open(trial.address, language="zh-CN")
    assert browser.js("document.documentElement.lang") == "zh-CN"
    assert browser.js("document.getElementById('send').innerText") == "发送"
    trial.ask("Tell me a story.")
    trial.answered()
    assert "首个 token 用时" in trial.last(".stats")
    trial.shot("chinese")
    browser.click("#to-status")
    browser.wait("document.getElementById('memory').innerText.includes('权重')")
    browser.click("#to-chat")
    browser.choose("#language", "en")
    assert browser.js("document.getElementById('send').innerText") == "Send"
    browser.open(trial.address, language="zh-CN")
    assert browser.js("document.documentElement.lang") == "en", "the choice stays"
    browser.js("localStorage.removeItem('qwen-burn.setting.language')")
    browser.open(trial.address, language="zh-CN")
    assert browser.js("document.documentElement.lang") == "zh-CN"
    assert browser.js("document.getElementById('language').value") == "zh"


@step
def phone(trial):
    browser = trial.browser
    for language, dark in (("en-US", True), ("zh-CN", False)):
        browser.open(trial.address, language=language, width=360, height=740, dark=dark)
        assert browser.js("document.documentElement.lang") == ("zh-CN" if language == "zh-CN" else "en")
        trial.fits()
        trial.shot(f"phone-{language}-welcome")
        browser.click("#list-toggle")
        assert browser.js("document.getElementById('list-toggle').getAttribute('aria-expanded')") == "true"
        trial.shot(f"phone-{language}-list")
        browser.click("#conversations button")
        browser.wait("document.querySelectorAll('#messages .message').length >= 2")
        # The list has made room for the end.
        browser.wait("(({ scrollHeight, clientHeight, scrollTop }) => scrollHeight - clientHeight - scrollTop)(document.getElementById('log')) < 80")
        browser.wait("document.getElementById('to-end').hidden", 5)
        trial.fits()
        trial.shot(f"phone-{language}-chat")
        for view in ("compare", "teach", "status"):
            browser.click(f"#to-{view}")
            browser.wait(f"!document.getElementById('{view}').hidden")
            if view == "teach":
                browser.wait("document.querySelectorAll('#teach-jobs button').length === 2")
                browser.click("#teach-jobs li:last-child button")
                browser.wait("document.querySelector('#teach-curve polyline') !== null")
            if view == "status":
                browser.wait("document.querySelectorAll('#cards .card').length === 10")
            trial.fits()
            trial.shot(f"phone-{language}-{view}")
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


step(small.talk)
step(small.compare)
step(small.teach)


@step
def dark(trial):
    browser = trial.browser
    browser.open(trial.address, dark=True)
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 27)"
    browser.click("#conversations button")
    trial.shot("dark")
    browser.choose("#theme", "light")
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.choose("#theme", "auto")


@step
def nothing_was_blocked(trial):
    assert not trial.browser.complaints, trial.browser.complaints


step(taught.a_wrong_file)
step(taught.a_server_that_comes_back)


@step
def a_server_that_does_not_train(trial):
    browser = trial.browser
    server = Server(trial.program)
    try:
        browser.open(f"{server.address}#teach")
        browser.wait("!document.getElementById('teach-off').hidden")
        assert "qwen-burn serve --enable-lora --enable-finetuning" in browser.js("document.getElementById('teach-off').innerText")
        trial.fits()
        trial.shot("teach-off")
    finally:
        server.close()


@step
def key(trial):
    """Last: the 401 of the first try is a complaint of the browser's."""
    browser = trial.browser
    server = Server(trial.program, "--api-key", "secret")
    try:
        browser.open(server.address)
        browser.wait("document.getElementById('key-dialog').open")
        trial.shot("key")
        browser.click("#key")
        browser.type("“secret”")
        browser.key("Enter", 13)
        browser.wait("document.getElementById('key-reason').textContent.includes('ASCII')", 20)
        assert browser.js("document.getElementById('key-dialog').open && sessionStorage.length === 0")
        browser.key("Escape", 27)
        browser.click("#again")
        for attempt, reason in (("wrong", ""), ("secret", "Incorrect API key provided.")):
            wanted = f"document.getElementById('key-reason').textContent === {json.dumps(reason)}"
            browser.wait(f"document.getElementById('key-dialog').open && {wanted}")
            browser.click("#key")
            browser.type(attempt)
            browser.key("Enter", 13)
        browser.wait("document.getElementById('model').options.length === 1")
        assert browser.js("Object.values(sessionStorage)") == ["secret"]
        assert "secret" not in browser.js("JSON.stringify(localStorage)")
        trial.ask("Tell me a story.")
        browser.wait("document.querySelectorAll('#messages .assistant').length === 1")
        trial.answered()
        assert "tokens/s" in trial.last(".stats")
        browser.click("#forget-key")
        assert browser.js("sessionStorage.length") == 0
    finally:
        server.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server", type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--chromium", help="the browser; otherwise the first that is found")
    parser.add_argument("--or-leave-out", metavar="REASON", help="without a browser nothing is tried, for this reason")
    parser.add_argument("--shots", type=pathlib.Path, help="a folder for pictures")
    parser.add_argument("--axe", type=pathlib.Path, help="the file axe.min.js of axe-core")
    args = parser.parse_args()
    program = args.chromium or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        if not args.or_leave_out:
            parser.error(f"none of {', '.join(BROWSERS)} is there; name one with --chromium")
        print(f"left out: none of {', '.join(BROWSERS)} is there ({args.or_leave_out})")
        return
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(pathlib.Path(folder))
        jobs = pathlib.Path(folder) / "jobs"
        server = Server(args.server, "--enable-lora", "--lora-modules", f"random={folder}", "--enable-finetuning",
                        "--finetuning-dir", str(jobs))
        try:
            browser = Chromium(program)
            try:
                trial = Trial(browser, args.server, server.address, args.shots, args.axe)
                for number, function in enumerate(STEPS, 1):
                    begun = time.monotonic()
                    function(trial)
                    seconds = time.monotonic() - begun
                    print(f"{number:2} {function.__name__.replace('_', ' ')}: ok ({seconds:.1f} s)", flush=True)
                assert not trial.violations, json.dumps(trial.violations, indent=1, ensure_ascii=False)
            except BaseException:
                trial.shot("failed")
                raise
            finally:
                browser.close()
        finally:
            server.close()


if __name__ == "__main__":
    main()
