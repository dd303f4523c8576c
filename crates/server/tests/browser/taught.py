"""Steps of page.py about teaching: examples that are written or in a file, and jobs."""

import json
import pathlib
import tempfile

from kept import press
from program import Server
from trial import keep_settings

TAUGHT = [("Who are you?", "I am a red tin robot."), ("What is your name?", "My name is Bolt."), ("Where do you live?", "On a ship.")]


def line(question, answer):
    record = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    return f"{json.dumps(record)}\n"


def teach(trial):
    browser = trial.browser
    browser.click("#to-teach")
    browser.wait("!document.getElementById('teach-on').hidden && document.getElementById('teach-model').options.length > 1")
    browser.click("#teach-preview")
    browser.wait("document.getElementById('teach-error').textContent.startsWith('There is no example yet')")
    browser.click(".example textarea")
    for number, (question, answer) in enumerate(TAUGHT):
        for text in (question, answer):
            browser.type(text)
            browser.key("Tab", 9)
        if number < len(TAUGHT) - 1:
            # From the button to the next row.
            browser.key("Tab", 9)
    browser.click("#teach-preview")
    browser.wait("document.querySelectorAll('#teach-seen mark').length === 3")
    marks = browser.js("[...document.querySelectorAll('#teach-seen mark')].map((e) => e.textContent)")
    assert [mark.startswith(answer) for mark, (_, answer) in zip(marks, TAUGHT)] == [True] * 3, marks
    assert "Examples: 3." in browser.js("document.getElementById('teach-numbers').textContent")
    trial.shot("teach-preview")
    for field, value in (("name", "bolt"), ("epochs", "60"), ("prompt", "Who are you?"), ("every", "20")):
        browser.js(f"document.getElementById('teach-{field}').value = {json.dumps(value)}")
    # What the job said while it learnt.
    browser.js("""window.live = 0; new MutationObserver(() => {
        if (document.getElementById("teach-status").textContent !== "Learning …") return;
        live = Math.max(live, document.querySelectorAll("#teach-samples li").length); }).observe(
        document.getElementById("teach-samples"), { childList: true })""")
    browser.click("#teach-go")
    browser.wait("document.querySelector('#teach-curve polyline') !== null", 1200)
    trial.shot("teach-running")
    browser.wait("document.getElementById('teach-chat') !== null", 1200)
    assert browser.js("live") >= 2, browser.js("live")
    samples = browser.js("[...document.querySelectorAll('#teach-samples li')].map((e) => e.innerText)")
    assert len(samples) >= 3 and TAUGHT[0][1] in samples[0] and TAUGHT[0][1] not in samples[-1], samples
    assert browser.js("document.getElementById('teach-status').textContent") == "Done"
    trial.shot("teach-done")
    browser.click("#teach-chat")
    browser.wait("!document.getElementById('chat').hidden")
    assert browser.js("document.getElementById('model').value").startswith(f"ft:{trial.models[0]}:bolt:")
    browser.click("#new-chat")
    browser.click("#settings-open")
    browser.wait("document.getElementById('settings').open")
    keep_settings(browser, max_tokens="", temperature=0, system="")
    for question, answer in TAUGHT:
        trial.ask(question)
        trial.answered()
        assert trial.last(".stats").startswith("ft:"), trial.last(".stats")
        assert trial.last(".assistant .text").startswith(answer), (question, trial.last(".assistant .text"))
        if question != TAUGHT[-1][0]:
            browser.click("#new-chat")
    trial.shot("teach-chat")
    browser.click("#new-chat")


def teach_a_file(trial):
    browser = trial.browser
    browser.click("#to-teach")
    browser.choose_file("#teach-file", "right.jsonl", "".join(line(*pair) for pair in TAUGHT))
    browser.wait("document.querySelectorAll('#teach-seen mark').length === 3")
    assert browser.js("document.getElementById('teach-error').textContent") == ""
    assert browser.js("document.getElementById('teach-write').hidden")
    browser.js("document.getElementById('teach-epochs').value = '100000'")
    browser.click("#teach-go")
    browser.wait("document.getElementById('teach-status').textContent === 'Learning …'", 60)
    browser.wait("document.querySelector('#teach-curve polyline') !== null", 60)
    press(browser, "Pause", "#teach-actions")
    browser.wait("document.getElementById('teach-status').textContent === 'Paused'")
    press(browser, "Go on", "#teach-actions")
    browser.wait("document.getElementById('teach-status').textContent === 'Learning …'", 60)
    press(browser, "Cancel the job", "#teach-actions")
    browser.wait("document.getElementById('teach-status').textContent === 'Cancelled'")
    browser.wait("document.querySelectorAll('#teach-jobs button').length === 2")
    trial.shot("teach-cancelled")
    browser.click("#teach-no-file")
    browser.wait("!document.getElementById('teach-write').hidden")


def teach_a_file_that_changes(trial):
    """What is learnt is what was shown: an edited file has to be chosen again."""
    browser = trial.browser
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "edited.jsonl"

        def choose(*pairs):
            path.write_text("".join(line(*pair) for pair in pairs))
            field = browser.send("Runtime.evaluate", expression="document.getElementById('teach-file')")["result"]["objectId"]
            browser.send("DOM.setFileInputFiles", files=[str(path)], objectId=field)
            browser.wait(f"document.querySelectorAll('#teach-seen mark').length === {len(pairs)}", 20)

        error = "document.getElementById('teach-error').textContent"
        choose(*TAUGHT)
        path.write_text(line(*TAUGHT[0]))
        for button in ("preview", "go"):
            browser.js("document.getElementById('teach-error').textContent = ''")
            browser.click(f"#teach-{button}")
            browser.wait(f"{error} === 'edited.jsonl has changed or is gone. Choose it again.'", 20)
        choose(TAUGHT[0])
        assert browser.js(error) == ""
    browser.click("#teach-no-file")
    browser.wait("!document.getElementById('teach-write').hidden")


def look_at_an_old_job(trial):
    browser = trial.browser
    browser.js("""window.draws = 0;
        new MutationObserver(() => { window.draws += 1; }).observe(document.getElementById("teach-curve"), { childList: true })""")
    browser.js("[...document.querySelectorAll('#teach-jobs button')].at(-1).click()")
    browser.wait("document.getElementById('teach-status').textContent === 'Done'")
    browser.wait("document.querySelector('#teach-curve polyline') !== null && document.getElementById('teach-chat') !== null")
    # It has told of 60 steps, all at once.
    assert browser.js("window.draws") < 20, browser.js("window.draws")


def a_server_that_comes_back(trial):
    """A job goes on after its server was killed, and the view follows it again."""
    browser = trial.browser
    with tempfile.TemporaryDirectory() as folder:
        server = Server(trial.program, "--enable-lora", "--enable-finetuning", "--finetuning-dir", folder)
        try:
            browser.open(f"{server.address}#teach")
            browser.wait("document.getElementById('teach-model').options.length === 1")
            browser.choose_file("#teach-file", "right.jsonl", "".join(line(*pair) for pair in TAUGHT))
            browser.wait("document.querySelectorAll('#teach-seen mark').length === 3")
            browser.js("document.getElementById('teach-epochs').value = '100000'")
            browser.click("#teach-go")
            steps = "document.getElementById('teach-step').textContent"
            browser.wait(f"{steps} !== ''", 60)
            server.kill()
            browser.wait("document.getElementById('teach-job-error').textContent.startsWith('The connection to the server ended.')", 60)
            before = browser.js(steps)
            server.start()
            browser.wait(f"document.getElementById('teach-job-error').textContent === '' && {steps} !== {json.dumps(before)}", 60)
            press(browser, "Cancel the job", "#teach-actions")
            browser.wait("document.getElementById('teach-status').textContent === 'Cancelled'", 60)
            browser.wait("document.querySelector('#teach-jobs small')?.textContent.startsWith('Cancelled')", 60)
        finally:
            server.close()


def a_wrong_file(trial):
    """Behind `nothing_was_blocked`, as the steps after it: an answer with an error is a complaint of the browser's."""
    browser = trial.browser
    browser.open(f"{trial.address}#teach")
    browser.wait("!document.getElementById('teach-on').hidden")
    browser.choose_file("#teach-file", "wrong.jsonl", line(*TAUGHT[0]) + '{"messages": 3}\n')
    browser.wait("document.getElementById('teach-error').textContent.includes('wrong.jsonl:2')")
    trial.shot("teach-wrong")
