"""Steps of page.py about files that are chosen to teach with: another one meanwhile, several at once, a large one."""

import json

from taught import TAUGHT, line

# Uploads and previews wait until `go()` is called; what is asked for a preview is kept.
SLOW = """window.waiting = []; window.previews = []; window.go = () => waiting.splice(0).forEach((next) => next());
    window.realSend = XMLHttpRequest.prototype.send;
    XMLHttpRequest.prototype.send = function (body) {
        this.upload.dispatchEvent(new ProgressEvent("progress", { loaded: 5, total: 10 }));
        waiting.push(() => realSend.call(this, body)); };
    window.realFetch = window.fetch; window.fetch = async (path, options) => {
        if (path !== "v1/fine_tuning/preview") return realFetch(path, options);
        const answer = await realFetch(path, options);
        previews.push(JSON.parse(options.body).training_file);
        return answer; }"""
USUAL = "XMLHttpRequest.prototype.send = window.realSend; window.fetch = window.realFetch"
MARKS = "[...document.querySelectorAll('#teach-seen mark')].map((e) => e.textContent.trim())"


def another_file_meanwhile(trial):
    """The file that is named is the one that is shown and learnt, also where an earlier one is still on its way."""
    browser = trial.browser
    browser.click("#to-teach")
    browser.wait("!document.getElementById('teach-on').hidden")
    browser.js(SLOW)
    for number, pair in enumerate(TAUGHT[:2]):
        browser.choose_file("#teach-file", f"file-{number}.jsonl", line(*pair))
        browser.wait(f"waiting.length === {number + 1}", 20)
    browser.js("waiting.reverse()")
    browser.js("go()")
    browser.wait("document.querySelectorAll('#teach-seen mark').length === 1", 20)
    assert browser.js("document.getElementById('teach-file-name').textContent").startswith("file-1.jsonl")
    marks = browser.js(MARKS)
    assert len(marks) == 1 and marks[0].startswith(TAUGHT[1][1]), marks
    # What is taught is that file, too.
    browser.js("""window.taughtFetch = window.fetch; window.fetch = (path, options) => {
        if (path !== "v1/fine_tuning/jobs" || options.method !== "POST") return taughtFetch(path, options);
        window.job = JSON.parse(options.body);
        return Promise.resolve(new Response('{"error": {"message": "Not now."}}', { status: 409 })); }""")
    browser.click("#teach-go")
    browser.wait("document.getElementById('teach-error').textContent === 'Not now.'", 20)
    assert browser.js("job.training_file === previews.at(-1) && previews.length === 1"), browser.js("[job, previews]")
    browser.js(USUAL)


def a_long_way(trial):
    """A file that takes its time is seen to be sent, and may be given up."""
    browser = trial.browser
    browser.js(SLOW)
    browser.choose_file("#teach-file", "long.jsonl", line(*TAUGHT[0]) * 20000)
    text = "document.getElementById('teach-busy-text').textContent"
    browser.wait(f"!document.getElementById('teach-busy').hidden && {text}.startsWith('Sending long.jsonl: 0.0 of 2.')", 20)
    assert browser.js("document.getElementById('teach-busy-bar').position") >= 0
    trial.fits()
    trial.shot("teach-busy")
    assert browser.js("document.getElementById('teach-go').disabled")
    browser.click("#teach-cancel")
    browser.wait("document.getElementById('teach-busy').hidden")
    assert browser.js("document.activeElement.id") == "teach-preview"
    browser.js("window.waiting = []")
    assert browser.js("document.getElementById('teach-error').textContent") == ""
    # The file is still chosen.
    browser.js(USUAL)
    browser.click("#teach-preview")
    browser.wait("document.querySelectorAll('#teach-seen mark').length === 5", 120)
    assert "Examples: 20,000." in browser.js("document.getElementById('teach-numbers').textContent")


def drops(trial):
    """Of several files none is taken in silence, and a text that is dropped is none: the choice stays."""
    browser = trial.browser
    error = "document.getElementById('teach-error').textContent"
    chosen = browser.js("document.getElementById('teach-file-name').textContent")

    def drop(fill):
        browser.js(f"""(() => {{ const data = new DataTransfer(); {fill}
            document.getElementById("teach-drop").dispatchEvent(new DragEvent("drop", {{ dataTransfer: data, cancelable: true }})); }})()""")

    drop("for (const name of ['a.jsonl', 'b.csv']) data.items.add(new File(['x'], name));")
    assert browser.js(error).startswith("One file at a time: a.jsonl, b.csv."), browser.js(error)
    drop("data.setData('text/plain', 'hello');")
    assert browser.js(error) == "What was dropped is no file.", browser.js(error)
    assert browser.js("document.getElementById('teach-file-name').textContent") == chosen != ""
    browser.click("#teach-no-file")
    browser.wait("!document.getElementById('teach-write').hidden")
    assert browser.js("document.activeElement.matches('.example textarea')")
    assert browser.js(error) == ""


# Bodies of answers with an error, and what is shown of them.
ERRORS = [
    (500, "application/json", '{"error": "It broke."}', "It broke."),
    (500, "application/json", '{"error": {}}', "500: the server has failed. Its log may say why."),
    (422, "application/json", '{"detail": [{"loc": ["body"], "msg": "field required"}]}', "field required"),
    (403, "application/json", '{"detail": "Not for you."}', "Not for you."),
    (502, "text/html", "<html><body><h1>502 Bad Gateway</h1></body></html>", "502: a proxy does not reach the server."),
    (504, "text/html", "<!doctype html><p>Gateway Time-out", "504: the server took longer than a proxy before it waits."),
    (418, "text/plain", "", "The server answers with status 418, and does not say why."),
    (400, "text/plain", "no such thing", "no such thing"),
    (400, "application/json", "null", "The server answers with status 400, and does not say why."),
]


def errors_of_others(trial):
    """What a proxy, or another server, says of a failure is shown in words."""
    browser = trial.browser
    browser.click("#to-chat")
    for status, kind, body, expected in ERRORS:
        browser.click("#new-chat")
        browser.js(f"""window.realFetch ??= window.fetch; window.fetch = (path, options) => {{
            if (path !== "v1/chat/completions") return realFetch(path, options);
            return Promise.resolve(new Response({json.dumps(body)}, {{ status: {status}, headers: {{ "Content-Type": "{kind}" }} }})); }}""")
        trial.ask("Hello")
        trial.answered()
        assert trial.last(".assistant > .error") == expected, (body, trial.last(".assistant > .error"))
        browser.js("window.fetch = window.realFetch; window.confirm = () => true")
        browser.click("#delete-chat")
        browser.wait("document.querySelectorAll('#messages .message').length === 0")
        # The keyboard goes on where the next question is written.
        assert browser.js("document.activeElement.id") == "question"
