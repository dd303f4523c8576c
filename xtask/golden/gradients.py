"""Gradients of whole steps by PyTorch: documents of ragged lengths, with biases (Qwen2) and norms of heads (Qwen3).

Reads the checkpoints of data/golden/model, and writes two more, whose sizes a GPU's kernels take (heads of 64, widths that are
multiples of 64). Writes to data/golden/gradients/:
  model/CASE/       these two, in bf16
  CASE.safetensors  `adapter.*`: the A and B of all linear layers (PEFT names), neither of them zero;
                    `full.*`: gradients of every weight, without an adapter; `lora.*`: those of A and B;
                    `dropped.*`: the same with dropout, whose masks come from lora-4bit's counters;
                    `dora_dropped.*`: the same of a DoRA adapter of these A and B, and of its lengths, which `adapter.*` has, too;
                    `nf4.*` (of the two): those of A and B over a base in NF4 with double quantization, computed in f32
  documents.json    token ids and labels of the documents, the losses of all, and how far (part of the norm of `nf4.*`) the gradients of
                    bitsandbytes' layers are off that compute in bf16
  meta.json         versions, tolerance and dropout

Run: python xtask/golden/gradients.py   (torch, transformers, peft, bitsandbytes; CPU)
"""

import json
import pathlib
import random
from importlib.metadata import version

import numpy
import peft
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config, Qwen3Config

DATA = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = DATA / "gradients"
SHAPE = dict(vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, head_dim=64, max_position_embeddings=128, rms_norm_eps=1e-6)
OWN = {
    "qwen2-heads64": Qwen2Config(**SHAPE, tie_word_embeddings=False, rope_theta=1e4),
    "qwen3-heads64": Qwen3Config(**SHAPE, tie_word_embeddings=True, rope_theta=1e6),
}
CASES = {"qwen2-untied": 4, "qwen3": 4, "qwen2-heads64": 8, "qwen3-heads64": 8}  # ranks
LENGTHS = [5, 70, 1, 33, 64]
MICRO_BATCHES = [0, 0, 1, 1, 1]  # of each document
DROPOUT, SEED = 0.25, 40  # the seed of the first micro-batch


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def scramble(x):
    x = (x ^ (x >> 16)) * numpy.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * numpy.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Masks:
    """The masks of dropout that lora-4bit draws for the rows of a packed micro-batch."""

    def __init__(self, micro_batch, first_row):
        self.seed, self.first_row = SEED + micro_batch, first_row

    def of(self, layer, rows, columns):
        bits = mix(self.seed ^ mix((layer + 0x9E3779B97F4A7C15) % 2**64))
        first, second = numpy.uint32(bits % 2**32), numpy.uint32(bits >> 32)
        places = numpy.arange(rows * columns, dtype=numpy.uint32) + numpy.uint32(self.first_row * columns)
        drawn = scramble(scramble(places ^ first) + second)
        kept = drawn >= numpy.uint32(int(DROPOUT * (2**32 - 1)))
        return torch.from_numpy(kept.astype(numpy.float32) / (1 - DROPOUT)).reshape(rows, columns)


class Dropped(torch.nn.Module):
    """Stands in for PEFT's dropout of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.masks = layer, None

    def forward(self, x):
        return x if self.masks is None else x * self.masks.of(self.layer, *x.shape[-2:])


def write_own():
    """Models of random weights that bf16 holds, so that the files are small and nothing is rounded."""
    for seed, (case, config) in enumerate(OWN.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape)
                parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
        model.to(torch.bfloat16).save_pretrained(OUT / "model" / case)
        (OUT / "model" / case / "generation_config.json").unlink(missing_ok=True)


def documents(vocab):
    rng = random.Random(3)
    found = []
    for length in LENGTHS:
        tokens = [rng.randrange(vocab) for _ in range(length)]
        labels = [token if place > length // 4 else -100 for place, token in enumerate(tokens)]
        found.append({"tokens": tokens, "labels": labels})
    return found


def loss_of(model, documents, dropped=()):
    """Mean cross-entropy per target, each document by itself: nothing that a mask could get wrong."""
    targets = sum(label != -100 for document in documents for label in document["labels"][1:])
    total, rows = 0.0, [0, 0]
    for document, micro_batch in zip(documents, MICRO_BATCHES):
        masks = Masks(micro_batch, rows[micro_batch])
        rows[micro_batch] += len(document["tokens"])
        if len(document["tokens"]) < 2:
            continue
        for module in dropped:
            module.masks = masks
        logits = model(input_ids=torch.tensor([document["tokens"]])).logits[0, :-1]
        labels = torch.tensor(document["labels"][1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / targets


def load(case):
    folder = (OUT if case in OWN else DATA) / "model" / case
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def dropouts(model):
    """A mask for each adapted layer, by its number in the model."""
    found = []
    for name, module in model.named_modules():
        if not hasattr(module, "lora_dropout"):
            continue
        found.append(Dropped(len(found)))
        module.lora_dropout["default"] = found[-1]
    return found


def with_adapter(model, rank, **options):
    """The model with an adapter on all linear layers, and its parameters by the names of the file."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(model, config)
    return model, {name.replace(".default", ""): parameter for name, parameter in model.named_parameters() if "lora_" in name}


def adapted(model, rank, tensors, **options):
    """The same with the adapter of the file, as far as it is there."""
    model, found = with_adapter(model, rank, **options)
    with torch.no_grad():
        for name, parameter in found.items():
            # PEFT computes magnitudes from the weight.
            if "magnitude" not in name:
                parameter.copy_(tensors[f"adapter.{name}"])
    return model, found


def gradients_of_dora(case, rank, texts, tensors):
    """Loss and gradients of DoRA with dropout. The lengths are none that change nothing; they go to `tensors`."""
    model, parameters = adapted(load(case), rank, tensors, use_dora=True)
    random = torch.Generator().manual_seed(13)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=random))
                tensors[f"adapter.{name}"] = parameter.detach()
    # Only then does PEFT give the base product of DoRA what dropout leaves.
    model.train()
    loss = loss_of(model, texts, dropouts(model))
    return loss.item(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


def gradients_over_nf4(case, rank, texts, tensors):
    """Loss and gradients in f32, and the error of bitsandbytes' bf16."""
    model = load(case)
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            packed, state = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = dequantize_4bit(packed, state).to(torch.float32)
    model, parameters = adapted(model, rank, tensors)
    loss = loss_of(model, texts)
    exact = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(OUT / "model" / case, quantization_config=quantization, dtype=torch.bfloat16,
                                                 attn_implementation="eager", device_map="cpu")
    model, parameters = adapted(model, rank, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = torch.autograd.grad(loss_of(model, texts), list(parameters.values()))
    squares = lambda gradients: sum(gradient.float().square().sum().item() for gradient in gradients)
    off = squares(a.float() - b for a, b in zip(rounded, exact.values()))
    return loss.item(), exact, (off / squares(exact.values())) ** 0.5


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write_own()
    torch.manual_seed(11)
    losses, errors = {}, {}
    for case, rank in CASES.items():
        tensors = {}
        model = load(case)
        texts = documents(model.config.vocab_size)
        loss = loss_of(model, texts)
        loss.backward()
        losses[case] = {"full": loss.item()}
        for name, parameter in model.named_parameters():
            tensors[f"full.{name}"] = parameter.grad
        model, adapter = with_adapter(load(case), rank)
        with torch.no_grad():
            for name, parameter in adapter.items():
                parameter.copy_(0.2 * torch.randn_like(parameter))
                tensors[f"adapter.{name}"] = parameter.detach()
        for kind, dropped in (("lora", ()), ("dropped", dropouts(model))):
            loss = loss_of(model, texts, dropped)
            losses[case][kind] = loss.item()
            gradients = torch.autograd.grad(loss, list(adapter.values()))
            tensors.update({f"{kind}.{name}": gradient for name, gradient in zip(adapter, gradients)})
        with torch.random.fork_rng():
            losses[case]["dora_dropped"], found = gradients_of_dora(case, rank, texts, tensors)
        tensors.update({f"dora_dropped.{name}": gradient for name, gradient in found.items()})
        if case in OWN:
            losses[case]["nf4"], exact, errors[case] = gradients_over_nf4(case, rank, texts, tensors)
            tensors.update({f"nf4.{name}": gradient for name, gradient in exact.items()})
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / f"{case}.safetensors")
    (OUT / "documents.json").write_text(json.dumps({"documents": texts, "losses": losses, "bf16_errors": errors}) + "\n")
    meta = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    meta = {**meta,
            "tolerance": "1e-4 of the gradient's norm, f32", "dropout": DROPOUT, "seed": SEED}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
