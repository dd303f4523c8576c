"""Golden files of preference training: the tiny model of data/golden/training trained by TRL's own trainers.

Needs data/golden/training (training.py makes it). Writes to data/golden/preference/:
  pairs.json          prompt, chosen and rejected token ids, in the order in which they are learnt
  answers.json        prompt, completion and label of KTO, in that order
  runs.json           for each run: settings, and for each optimizer step what TRL logs
  dpo.safetensors     the adapter after the last step of the run `dpo`
  meta.json           versions and tolerances

Every run but `orpo_full`, which trains the model itself, begins with the adapter of data/golden/training/initial.safetensors, whose B is not zero, so that rewards are not
zero at the first step. The reference is the model without it; in the run `dpo_adapter` it is that adapter.

Run: python xtask/golden/preference.py   (torch, transformers, peft, trl 1.15; CPU)
"""

import json
import os
import pathlib
import random
import tempfile

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# TRL's kernel of the output head, on a machine without a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import datasets
import peft
import torch
import transformers
import trl
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = GOLDEN / "preference"
TRAINING = GOLDEN / "training"
VOCAB, END = 256, 0
LR, WEIGHT_DECAY, MAX_NORM, WARMUP = 1e-3, 0.01, 1.0, 2
LONG, SHORT = 30, 10
# Reported by TRL for each micro-batch; a step has their mean.
METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
           "logps/rejected", "kl", "nll_loss", "log_odds_ratio", "log_odds_chosen", "entropy", "mean_token_accuracy")


def word(token):
    return f"t{token:03}"


def tokenizer():
    """Words `t000` to `t255`, so that texts and token ids say the same. None is the beginning of another one, as special tokens
    are looked for first."""
    words = {word(i): i for i in range(VOCAB)}
    tokens = Tokenizer(models.WordLevel(words, unk_token=word(1)))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=word(END), pad_token=word(2))


def text(tokens):
    return " ".join(word(token) for token in tokens)


def make_records(seed, count):
    """A prompt, how it goes on, and how another one does: something to learn."""
    rng = random.Random(seed)
    phrases = [[rng.randrange(3, VOCAB) for _ in range(20)] for _ in range(6)]
    for _ in range(count):
        right, wrong = rng.sample(phrases, 2)
        cut = rng.randrange(2, 9)
        yield right[:cut], *(phrase[cut:cut + rng.randrange(1, 10)] + [END] for phrase in (right, wrong))


def make_pairs(count):
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for prompt, chosen, rejected in make_records(5, count)]


def make_answers(count):
    return [{"prompt": prompt, "completion": right if index % 3 != 1 else wrong, "label": index % 3 != 1}
            for index, (prompt, right, wrong) in enumerate(make_records(6, count))]


def lora():
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM")


def set_adapter(model):
    initial = load_file(TRAINING / "initial.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.copy_(initial[name.replace(".default", "")])


def as_rows(records):
    """Records as texts."""
    row = lambda record: {
        key: value if key == "label" else " " * (key != "prompt") + text(value) for key, value in record.items()}
    return datasets.Dataset.from_list([row(record) for record in records])


def run(trainer_class, config_class, records, steps, batch_size, accumulation=1, start="new", **settings):
    model = Qwen2ForCausalLM.from_pretrained(TRAINING / "model", dtype=torch.float32, attn_implementation="eager")
    extra = {"peft_config": lora()} if start == "new" else {}
    if start == "existing":
        model = peft.get_peft_model(model, lora())
        set_adapter(model)
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation, learning_rate=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_NORM,
            warmup_steps=WARMUP, lr_scheduler_type="cosine", train_sampling_strategy="sequential", logging_steps=1,
            use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, save_strategy="no", report_to=[],
            max_length=64, dataloader_num_workers=0, disable_tqdm=True, **settings)
        trainer = trainer_class(model=model, args=args, train_dataset=as_rows(records),
                                processing_class=tokenizer(), **extra)
        set_adapter(trainer.model)
        losses = []
        whole = trainer.compute_loss

        def compute_loss(*args, **kwargs):
            loss = whole(*args, **kwargs)
            losses.append(loss.item())
            return loss

        trainer.compute_loss = compute_loss
        trainer.train()
        log = []
        for entry in trainer.state.log_history:
            if "grad_norm" in entry:
                entry = {key: entry[key] for key in ("grad_norm", "learning_rate", *METRICS) if key in entry}
                micro = losses[len(log) * accumulation:(len(log) + 1) * accumulation]
                log.append({"loss": sum(micro) / len(micro), **entry})
        assert len(log) == steps, (len(log), steps)
        return trainer.model, {"steps": log, "batch_size": batch_size, "accumulation": accumulation, **settings}


def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    pairs, answers = make_pairs(LONG * 4), make_answers(SHORT * 4)
    write = lambda name, value: (OUT / name).write_text(json.dumps(value) + "\n")
    write("pairs.json", pairs)
    write("answers.json", answers)
    runs = {}
    dpo = (trl.DPOTrainer, trl.DPOConfig)
    model, runs["dpo"] = run(*dpo, pairs, LONG, 2, 2, beta=0.3)
    state = peft.get_peft_model_state_dict(model)
    state = {name: value.detach().clone().contiguous() for name, value in state.items()}
    save_file(state, OUT / "dpo.safetensors", metadata={"format": "pt"})
    for loss_type, beta, smoothing in [("ipo", 0.2, 0.0), ("hinge", 0.5, 0.0), ("robust", 0.3, 0.1)]:
        _, runs[loss_type] = run(*dpo, pairs, SHORT, 2, 2, beta=beta, loss_type=loss_type, label_smoothing=smoothing)
    _, runs["dpo_adapter"] = run(*dpo, pairs, SHORT, 4, start="existing", beta=0.3)
    _, runs["orpo"] = run(ORPOTrainer, ORPOConfig, pairs, SHORT, 4, beta=0.4)
    _, runs["orpo_full"] = run(ORPOTrainer, ORPOConfig, pairs, SHORT, 4, start="full", beta=0.4)
    _, runs["kto"] = run(trl.KTOTrainer, trl.KTOConfig, answers, SHORT, 4, beta=0.3, desirable_weight=1.2,
                         undesirable_weight=0.8)
    write("runs.json", runs)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, trl)}
    meta = {
        "versions": versions,
        "script": "xtask/golden/preference.py",
        "settings": {"lr": LR, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_NORM, "warmup": WARMUP, "r": 4,
                     "lora_alpha": 8},
        "tolerances": {"loss": "1e-4 relative", "adapter": 2e-5},
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for name, log in runs.items():
        print(name, log["steps"][0], log["steps"][-1])


if __name__ == "__main__":
    main()
