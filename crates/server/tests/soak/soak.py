#!/usr/bin/env python3
"""Everything at once, for as long as asked: greedy answers stay right, memory stays flat, SIGTERM loses nothing.

    cargo build -p server
    python3 crates/server/tests/soak/soak.py --seconds 1200 target/debug/server

Each function marked `@action` is done by several threads in a random order. A thread of its own trains one adapter after the
other, talks to it and deletes it; some jobs are paused or cancelled. At the end SIGTERM comes while streams and a job run, and the
server is started again, which has to end the job. Then there is a report in JSON; the exit code is 1 if something was wrong.
"""

import argparse
import collections
import json
import pathlib
import random
import statistics
import sys
import tempfile
import threading
import time

from wire import Server

from adapter import write_adapter

CHAT = "/v1/chat/completions"
JOBS = "/v1/fine_tuning/jobs"
# How jobs end.
ENDS = ("succeeded", "failed", "cancelled")
QUESTIONS = ["Who are you?", "Tell me a story about a bear.", "What is 2 + 2?", "Say hello.", "Once upon a time", "你好", "Write a poem.",
             "List three colours."]
LONG = "There was a little duck who lived in a big house near the lake. "
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0,
          "maximum": 99}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
          "required": ["name", "age", "tags"], "additionalProperties": False}
ACTIONS = []


def action(function):
    ACTIONS.append(function)
    return function


def greedy(question, **more):
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "repetition_penalty": 1, "max_tokens": 40} | more


def content(answer):
    return answer["choices"][0]["message"]["content"]


class Soak:
    def __init__(self, program, folder):
        self.adapter = folder / "adapters" / "random"
        self.adapter.mkdir(parents=True)
        write_adapter(self.adapter)
        flags = ["--max-num-seqs", "16", "--kv-cache-memory-bytes", "24MiB", "--max-num-queued-reqs", "64"]
        lora = ["--enable-lora", "--lora-roots", str(self.adapter.parent), "--lora-modules", f"taught={self.adapter}", "--max-loras", "4"]
        jobs = ["--enable-finetuning", "--finetuning-dir", str(folder / "jobs")]
        # A busy machine takes its time for the streams that run at the end.
        patience = ["--shutdown-timeout", "300"]
        self.command = [program, "--served-model-name", "base", *flags, *lora, *jobs, *patience]
        self.texts = Server(*self.command)
        self.vectors = Server(program, "--runner", "pooling", *flags)
        self.counts = collections.Counter()
        self.wrong = []
        self.num_names = 0
        self.lock = threading.Lock()
        # What each answer must be, from a server that does nothing else.
        self.answers = {(model, question): content(self.texts.post(CHAT, model=model, **greedy(question)))
                        for model in ("base", "taught") for question in QUESTIONS}
        data = "\n".join(json.dumps({"prompt": question, "completion": "I am a red tin robot."}) for question in QUESTIONS)
        self.file = self.texts.upload("robots.jsonl", data.encode())["id"]
        self.embeddings = {question: self.embed(question) for question in QUESTIONS}
        self.echo = self.long(0)

    def teach(self, until):
        """Jobs over HTTP, one after the other."""
        draw = random.Random("jobs")
        while time.monotonic() < until:
            try:
                self.teach_once(draw, until)
            except Exception as error:
                self.check(False, "teach", error)

    def create_job(self, **settings):
        settings = {"max_steps": 16, "lora_r": 4, "save_steps": 4} | settings
        return self.texts.post(JOBS, model="base", training_file=self.file, hyperparameters=settings)

    def job(self, job):
        return self.texts.request("GET", f"{JOBS}/{job['id']}")[1]

    def wait_for(self, job, statuses, until):
        """The job once it is in one of these states; none if there is no time left."""
        while job["status"] not in statuses:
            if time.monotonic() > until:
                return None
            time.sleep(0.5)
            job = self.job(job)
        return job

    def teach_once(self, draw, until):
        job = self.create_job()
        change = draw.choice(["pause", "cancel", None, None])
        if change and (job := self.wait_for(job, ("running", *ENDS), until)):
            status, answer = self.texts.request("POST", f"{JOBS}/{job['id']}/{change}", {})
            if status == 200 and change == "pause":
                status, answer = self.texts.request("POST", f"{JOBS}/{job['id']}/resume", {})
            # One that has just ended.
            self.check(status == 200 or self.job(job)["status"] == "succeeded", change, status, answer)
            with self.lock:
                self.counts[change] += 1
        job = job and self.wait_for(job, ENDS, until)
        if not job:
            return
        if job["status"] == "cancelled" and change == "cancel":
            checkpoints = self.texts.request("GET", f"{JOBS}/{job['id']}/checkpoints")[1]["data"]
            model = checkpoints and checkpoints[0]["fine_tuned_model_checkpoint"].split(":ckpt-step-")[0]
        else:
            self.check(job["status"] == "succeeded", "job", job)
            model = job["fine_tuned_model"]
            self.knows_robots(model)
        if model:
            status, answer = self.texts.request("DELETE", f"/v1/models/{model}")
            self.check(status == 200, "delete", status, answer)
        with self.lock:
            self.counts["teach"] += 1

    def knows_robots(self, model):
        answer = content(self.texts.post(CHAT, model=model, **greedy(QUESTIONS[0])))
        self.check("robot" in answer, "taught", answer)

    def embed(self, text):
        return self.vectors.post("/v1/embeddings", input=text)["data"][0]["embedding"]

    def long(self, salt):
        prompt = f"{salt} " + LONG * 35
        answer = self.texts.post("/v1/completions", model="base", prompt=prompt, temperature=0, repetition_penalty=1, max_tokens=8)
        return answer["choices"][0]["text"]

    def check(self, is_right, *what):
        if not is_right:
            with self.lock:
                self.wrong.append(repr(what)[:500])

    def work(self, seed, until):
        draw = random.Random(seed)
        while time.monotonic() < until:
            do = draw.choice(ACTIONS)
            try:
                do(self, draw)
            except Exception as error:
                self.check(False, do.__name__, error)
            with self.lock:
                self.counts[do.__name__] += 1

    def fresh_name(self):
        with self.lock:
            self.num_names += 1
            return f"adapter-{self.num_names}"


@action
def answer_greedily(soak, draw):
    model, question = draw.choice(list(soak.answers))
    answer = content(soak.texts.post(CHAT, model=model, **greedy(question)))
    soak.check(answer == soak.answers[model, question], "greedy", model, question, answer)


@action
def stream_greedily(soak, draw):
    model, question = draw.choice(list(soak.answers))
    events = list(soak.texts.stream(CHAT, {"model": model, **greedy(question)}))
    soak.check(events[-1] == "[DONE]", "stream has no end", events[-1:])
    deltas = (json.loads(event)["choices"] for event in events[:-1])
    answer = "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices)
    soak.check(answer == soak.answers[model, question], "streamed", model, question, answer)


@action
def go_away(soak, draw):
    body = greedy(draw.choice(QUESTIONS), model=draw.choice(["base", "taught"]), n=draw.choice([1, 3]), max_tokens=300, ignore_eos=True)
    stream = soak.texts.stream(CHAT, body)
    for _ in range(draw.randrange(1, 20)):
        next(stream, None)
    stream.close()


@action
def cut_a_request(soak, draw):
    body = json.dumps(greedy("cut", model="base")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    with soak.texts.socket() as connection:
        connection.sendall(whole[:draw.randrange(len(whole))])


@action
def read_a_long_prompt(soak, draw):
    text = soak.long(draw.choice([0, 0, draw.random()]))
    soak.check(isinstance(text, str), "long", text)
    text = soak.long(0)
    soak.check(text == soak.echo, "long", text)


@action
def follow_a_schema(soak, draw):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    body = greedy(draw.choice(QUESTIONS), model="base", response_format=form, temperature=draw.choice([0, 1]), max_tokens=80)
    answer = soak.texts.post(CHAT, **body)
    if answer["choices"][0]["finish_reason"] == "stop":
        value = json.loads(content(answer))
        soak.check(set(value) == {"name", "age", "tags"} and 0 <= value["age"] <= 99, "schema", value)


@action
def follow_a_regex(soak, draw):
    answer = content(soak.texts.post(CHAT, **greedy("A code?", model="base", temperature=1, structured_outputs={"regex": "[ab]{3}"})))
    soak.check(len(answer) == 3 and set(answer) <= set("ab"), "regex", answer)


@action
def sample_several(soak, draw):
    answer = soak.texts.post(CHAT, **greedy(draw.choice(QUESTIONS), model="base", n=3, temperature=1, top_p=0.9, logprobs=True,
                                            top_logprobs=3))
    soak.check(len(answer["choices"]) == 3, "n", answer)


@action
def load_and_unload(soak, draw):
    name = soak.fresh_name()
    soak.texts.post("/v1/load_lora_adapter", lora_name=name, lora_path="random")
    question = draw.choice(QUESTIONS)
    answer = content(soak.texts.post(CHAT, model=name, **greedy(question)))
    soak.check(answer == soak.answers["taught", question], "adapter", question, answer)
    if draw.random() < 0.3:
        stream = soak.texts.stream(CHAT, {"model": name, **greedy(question, max_tokens=300)})
        next(stream, None)
        stream.close()
    soak.texts.post("/v1/unload_lora_adapter", lora_name=name)


@action
def embed_texts(soak, draw):
    question = draw.choice(QUESTIONS)
    differences = (abs(a - b) for a, b in zip(soak.embed(question), soak.embeddings[question], strict=True))
    # The last bits depend on what is computed in the same step.
    largest = max(differences)
    soak.check(largest < 1e-6, "embedding", question, largest)


@action
def be_refused(soak, draw):
    path, body = draw.choice([
        (CHAT, {"messages": []}), (CHAT, {"messages": [{"role": "user", "content": "a"}], "temperature": -1}),
        ("/v1/completions", {"prompt": "a " * 5000, "max_tokens": 1}), ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"}),
        (CHAT, {"model": "no", "messages": [{"role": "user", "content": "a"}]}),
        (CHAT, greedy("a", structured_outputs={"regex": "("})),
    ])
    status, answer = soak.texts.request("POST", path, body)
    soak.check(400 <= status < 500, "refused", path, status, answer)


def measure(server, until, samples):
    while time.monotonic() < until:
        samples.append((time.monotonic(), server.memory(), server.files()))
        time.sleep(2)


def tell(soak, start, until):
    """A line a minute of how far it is."""
    while time.monotonic() < until:
        time.sleep(max(0, min(60, until - time.monotonic())))
        with soak.lock:
            num, jobs, wrong = sum(soak.counts.values()), soak.counts["teach"], len(soak.wrong)
        print(f"{time.monotonic() - start:.0f} s: {num} requests, {jobs} jobs, {wrong} wrong", file=sys.stderr, flush=True)


def drift(samples, warm):
    """How far the memory of the last third after the warm-up is from that of the first third, in percent, with both."""
    after = [memory for at, memory, _ in samples if at >= warm]
    third = max(len(after) // 3, 1)
    first, last = statistics.median(after[:third]), statistics.median(after[-third:])
    # Whether it grows all the time, or was on another level for a while.
    all_of_it = [memory for _, memory, _ in samples]
    parts = [all_of_it[len(all_of_it) * i // 10:len(all_of_it) * (i + 1) // 10] for i in range(10)]
    return {
        "tenths_with_warm_up_MiB": [round(statistics.median(part) / 1024, 1) for part in parts if part],
        "first_MiB": round(first / 1024, 1),
        "last_MiB": round(last / 1024, 1),
        "percent": round(100 * (last / first - 1), 2),
        "most_files": max(files for _, _, files in samples),
        "last_files": samples[-1][2],
    }


def end(soak):
    """SIGTERM while streams and a job run: each stream ends as if nothing had come, and the job goes on in the next server."""
    bodies = [greedy(question, model="base", max_tokens=120, ignore_eos=True) for question in QUESTIONS[:4]]
    whole = [content(soak.texts.post(CHAT, **body)) for body in bodies]
    job = soak.create_job(max_steps=40)
    until = time.monotonic() + 600
    while not (job["trained_tokens"] or job["status"] in ENDS) and time.monotonic() < until:
        time.sleep(0.05)
        job = soak.job(job)
    streams = [soak.texts.stream(CHAT, body) for body in bodies]
    texts = [""] * len(streams)
    firsts = [next(stream) for stream in streams]
    soak.check(soak.job(job)["status"] == "running", "no job runs", soak.job(job))
    soak.texts.terminate()
    for i, stream in enumerate(streams):
        events = [firsts[i], *stream]
        soak.check(events[-1] == "[DONE]", "SIGTERM cut a stream", events[-1:])
        deltas = (json.loads(event).get("choices") for event in events if event != "[DONE]")
        texts[i] = "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices)
    soak.check(texts == whole, "SIGTERM changed a stream", texts, whole)
    soak.vectors.terminate()
    for server in (soak.texts, soak.vectors):
        code = server.process.wait(60)
        soak.check(code == 0, "exit code", code)
    soak.texts = Server(*soak.command)
    job = soak.wait_for(soak.job(job), ENDS, time.monotonic() + 600)
    soak.check(job and job["status"] == "succeeded", "the job after SIGTERM", job)
    if job and job["status"] == "succeeded":
        soak.knows_robots(job["fine_tuned_model"])
        path = f"{JOBS}/{job['id']}/events?limit=1000"
        events = [event["data"] for event in soak.texts.request("GET", path)[1]["data"]]
        steps = sorted(event["step"] for event in events if "train_loss" in event)
        soak.check(steps == list(range(1, 41)), "steps of the job after SIGTERM", steps)
    kept = [file["id"] for file in soak.texts.request("GET", "/v1/files")[1]["data"]]
    soak.check(soak.file in kept, "the file after SIGTERM", kept)
    soak.texts.terminate()
    soak.check(soak.texts.process.wait(60) == 0, "exit code of the server that was started again")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--warm-up", type=float, default=0.25, help="part of the time that is not measured")
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--drift", type=float, default=2, help="most change of the memory in percent")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(args.server, pathlib.Path(folder).resolve())
        start = time.monotonic()
        until, warm = start + args.seconds, start + args.seconds * args.warm_up
        samples = {"texts": [], "vectors": []}
        threads = [threading.Thread(target=soak.work, args=(seed, until)) for seed in range(args.threads)]
        threads.append(threading.Thread(target=soak.teach, args=(until,)))
        threads += [threading.Thread(target=measure, args=(getattr(soak, name), until, some)) for name, some in samples.items()]
        threads.append(threading.Thread(target=tell, args=(soak, start, until)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(2)
        for name, some in samples.items():
            server = getattr(soak, name)
            some.append((time.monotonic(), server.memory(), server.files()))
        print("SIGTERM", file=sys.stderr, flush=True)
        end(soak)
    memory = {name: drift(some, warm) for name, some in samples.items()}
    for name, found in memory.items():
        soak.check(abs(found["percent"]) <= args.drift, "memory", name, found)
    report = {"seconds": args.seconds, "requests": sum(soak.counts.values()), "actions": dict(soak.counts), "memory": memory,
              "num_wrong": len(soak.wrong), "wrong": soak.wrong[:20]}
    print(json.dumps(report, indent=2, ensure_ascii=False))
    sys.exit(bool(soak.wrong))


if __name__ == "__main__":
    main()
