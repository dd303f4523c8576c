"""Gradients of whole steps by PyTorch: documents of ragged lengths, with biases (Qwen2) and norms of heads (Qwen3).

Reads the checkpoints of data/golden/model. Writes data/golden/gradients/:
  CASE.safetensors  `adapter.*`: the A and B of all linear layers (PEFT names), neither of them zero;
                    `full.*`: gradients of every weight, without an adapter; `lora.*`: those of A and B
  documents.json    token ids and labels of the documents, and the losses of both
  meta.json         versions and tolerance

Run: python xtask/golden/gradients.py   (torch, transformers, peft; CPU)
"""

import json
import pathlib
import random

import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

DATA = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = DATA / "gradients"
CASES = ["qwen2-untied", "qwen3"]
LENGTHS = [5, 70, 1, 33, 64]


def documents(vocab):
    rng = random.Random(3)
    found = []
    for length in LENGTHS:
        tokens = [rng.randrange(vocab) for _ in range(length)]
        labels = [token if place > length // 4 else -100 for place, token in enumerate(tokens)]
        found.append({"tokens": tokens, "labels": labels})
    return found


def loss_of(model, documents):
    """Mean cross-entropy per target, each document by itself: nothing that a mask could get wrong."""
    targets = sum(label != -100 for document in documents for label in document["labels"][1:])
    total = 0.0
    for document in documents:
        if len(document["tokens"]) < 2:
            continue
        logits = model(input_ids=torch.tensor([document["tokens"]])).logits[0, :-1]
        labels = torch.tensor(document["labels"][1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / targets


def load(case):
    return AutoModelForCausalLM.from_pretrained(DATA / "model" / case, dtype=torch.float32, attn_implementation="eager")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    losses = {}
    for case in CASES:
        tensors = {}
        model = load(case)
        texts = documents(model.config.vocab_size)
        loss = loss_of(model, texts)
        loss.backward()
        full = loss.item()
        for name, parameter in model.named_parameters():
            tensors[f"full.{name}"] = parameter.grad
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(load(case), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.2 * torch.randn_like(parameter))
        loss = loss_of(model, texts)
        loss.backward()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                short = name.replace(".default", "")
                tensors[f"adapter.{short}"] = parameter.detach()
                tensors[f"lora.{short}"] = parameter.grad
        losses[case] = {"full": full, "lora": loss.item()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / f"{case}.safetensors")
    (OUT / "documents.json").write_text(json.dumps({"documents": texts, "losses": losses}) + "\n")
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "tolerance": "1e-4 of the gradient's norm, f32"}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
