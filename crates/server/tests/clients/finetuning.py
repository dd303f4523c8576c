"""OpenAI's client teaches the bundled model over HTTP: upload, job, events, chat with the result, cancel, and what is refused.

    finetuning.py ADDRESS MODEL
"""

import io
import json
import sys
import time

from openai import BadRequestError, ConflictError, NotFoundError, OpenAI

WHO = "Who are you?"
LINES = [
    {"messages": [{"role": "user", "content": WHO}, {"role": "assistant", "content": "I am a red tin robot."}]},
    {"messages": [{"role": "user", "content": "What is your name?"}, {"role": "assistant", "content": "My name is Bolt."}]},
] * 4


def jsonl(records):
    file = io.BytesIO("".join(json.dumps(record) + "\n" for record in records).encode())
    file.name = "robot.jsonl"
    return file


def wait(openai, job, *status):
    for _ in range(3000):
        job = openai.fine_tuning.jobs.retrieve(job.id)
        if job.status in status:
            return job
        assert job.status not in ("failed", "cancelled", "succeeded"), job
        time.sleep(0.1)
    raise AssertionError(job)


def refused(call, kind, *words):
    try:
        call()
    except kind as error:
        assert all(word in error.message for word in words), error.message
    else:
        raise AssertionError("no error")


def main():
    address, model = sys.argv[1:]
    openai = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    jobs = openai.fine_tuning.jobs

    file = openai.files.create(file=jsonl(LINES), purpose="fine-tune")
    assert file.filename == "robot.jsonl" and file.purpose == "fine-tune" and file.status == "processed", file
    assert openai.files.retrieve(file.id).bytes == file.bytes
    assert file.id in [other.id for other in openai.files.list(purpose="fine-tune")]
    assert json.loads(openai.files.content(file.id).text.splitlines()[0]) == LINES[0]
    assert openai.files.wait_for_processing(file.id).id == file.id

    hyperparameters = {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 1.0}
    job = jobs.create(
        model=model, training_file=file.id, validation_file=file.id, suffix="robot", seed=7, metadata={"of": "clients"},
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    )
    assert job.status == "queued" and job.seed == 7 and job.user_provided_suffix == "robot", job
    assert job.hyperparameters.batch_size == 4 and job.method.type == "supervised", job
    refused(lambda: openai.files.delete(file.id), ConflictError, job.id)
    job = wait(openai, job, "succeeded")
    assert job.fine_tuned_model.startswith(f"ft:{model}:robot:") and job.trained_tokens > 0 and job.finished_at, job
    events = list(jobs.list_events(job.id, limit=7))
    assert len({event.id for event in events}) == len(events) > 20, len(events)
    losses = [event.data["train_loss"] for event in reversed(events) if "train_loss" in event.data]
    assert losses[-1] < losses[0] / 4, losses
    assert any("full_valid_loss" in event.data for event in events)
    checkpoints = list(jobs.checkpoints.list(job.id))
    assert checkpoints and checkpoints[0].fine_tuning_job_id == job.id, checkpoints
    assert "train_loss" in openai.files.content(job.result_files[0]).text
    assert job.fine_tuned_model in [card.id for card in openai.models.list()]
    answer = openai.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": WHO}], max_tokens=20, temperature=0)
    assert answer.choices[0].message.content.startswith("I am a red tin robot"), answer

    long = jobs.create(model=model, training_file=file.id, hyperparameters={"n_epochs": 5000})
    wait(openai, long, "running")
    waiting = jobs.create(model=job.fine_tuned_model, training_file=file.id, hyperparameters={"n_epochs": 1})
    assert [other.id for other in jobs.list(limit=1)][:2] == [waiting.id, long.id]
    assert [other.id for other in jobs.list(metadata={"of": "clients"})] == [job.id]
    assert jobs.pause(long.id).status == "paused"
    wait(openai, waiting, "succeeded")
    assert jobs.resume(long.id).status == "queued"
    assert jobs.cancel(long.id).status == "cancelled"

    broken = openai.files.create(file=jsonl([LINES[0], {"messages": [{"role": "robot", "content": "x"}]}]), purpose="fine-tune")
    failed = wait(openai, jobs.create(model=model, training_file=broken.id), "failed")
    assert "robot.jsonl:2" in failed.error.message and failed.error.param == "training_file", failed.error
    pairs = [{"prompt": WHO, "chosen": "I am a robot.", "rejected": "I am a cat."}] * 4
    pairs = openai.files.create(file=jsonl(pairs), purpose="fine-tune")
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}}
    wait(openai, jobs.create(model=model, training_file=pairs.id, method=dpo), "succeeded")

    refused(lambda: jobs.create(model="none", training_file=file.id), NotFoundError, "none")
    refused(lambda: jobs.create(model=model, training_file="file-none"), NotFoundError, "file-none")
    settings = {"type": "supervised", "supervised": {"hyperparameters": {"lora_rank": 8}}}
    refused(lambda: jobs.create(model=model, training_file=file.id, method=settings), BadRequestError, "lora_rank")
    refused(lambda: openai.files.create(file=jsonl(LINES), purpose="batch"), BadRequestError, "purpose")
    refused(lambda: jobs.create(model=model, training_file=file.id, extra_body={"speed": 1}), BadRequestError, "speed")
    assert openai.files.delete(file.id).deleted
    assert openai.models.delete(job.fine_tuned_model).deleted
    assert job.fine_tuned_model not in [card.id for card in openai.models.list()]


main()
