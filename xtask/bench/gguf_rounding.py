"""Whether the rounding of activations explains where llama.cpp answers a GGUF file otherwise than our server.

usage: gguf_rounding.py [--trainer PROGRAM] [--node FOLDER] [--type q8_0|q4_0] [--tokens N] [--draws N] [--prompts FILE] [-- EXPORT FLAGS]

llama.cpp multiplies matrices in 8 or 4 bits with activations that it rounds to 8 bits in blocks of 32 (Q8_0: a scale in f16, the
largest value of a block is 127). This script computes the likeliest tokens of the weights of the file three times: by PyTorch in f32,
by PyTorch with that rounding before each product, and by llama.cpp. It says which answers are equal, and at which token the others part.

Rounding is a matter of luck: a sum in another order gives a value on the other side of a boundary, and after some layers many values. Where
llama.cpp parts from f32, the script therefore computes the step again, --draws times, with rounding and with embeddings that are changed by one
part in 100,000. It prints by how much the logit of f32's token is above that of llama.cpp's.

Needs what gguf_greedy.py needs, torch and transformers.
"""

import argparse
import pathlib
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_greedy import PROMPTS, export, llama

BLOCK = 32


def rounded(x):
    """x as Q8_0 has it."""
    blocks = x.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return ((blocks * inverse).round() * scale.half().float()).reshape(x.shape)


class Rounding:
    """A model whose activations are rounded, and whose embeddings are changed a little, where that is switched on."""

    def __init__(self, model):
        self.is_on, self.noise = False, 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),) if self.is_on else None)
        change = lambda out: out * (1 + self.noise * torch.randn_like(out))
        model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: change(out) if self.noise else None)


def lead(model, tokens, first, second):
    """By how much the logit of one next token is above that of another."""
    logits = model(torch.tensor([tokens])).logits[0, -1]
    return float(logits[first] - logits[second])


def greedy(model, prompt, num_tokens, stop):
    """The likeliest tokens, and the gap between the two largest logits of each."""
    tokens, gaps = list(prompt), []
    cache, new = None, torch.tensor([tokens])
    while len(gaps) < num_tokens:
        out = model(new, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1]
        top = logits.topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        tokens.append(int(top.indices[0]))
        if tokens[-1] in stop:
            break
        new = torch.tensor([tokens[-1:]])
    return tokens[len(prompt):], gaps


def parting(one, other, stop):
    """The place of the first token that differs; where an answer ends, any end is alike."""
    own = lambda tokens: [None if token in stop else token for token in tokens]
    one, other = own(one), own(other)
    places = range(max(len(one), len(other)))
    at = lambda tokens, i: tokens[i] if i < len(tokens) else None
    return next((i for i in places if at(one, i) != at(other, i)), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="target/debug/trainer-sft")
    parser.add_argument("--node", default=".", help="folder with node_modules")
    parser.add_argument("--type", default="q8_0", choices=("q8_0", "q4_0"))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--prompts", help="file with a prompt per line, in the place of the four of gguf_greedy.py")
    parser.add_argument("flags", nargs="*", help="of trainer-sft export")
    args = parser.parse_args()
    prompts = pathlib.Path(args.prompts).read_text().splitlines() if args.prompts else PROMPTS
    with tempfile.TemporaryDirectory() as work:
        file, folder, stop = export(args, args.type, pathlib.Path(work))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        chat = lambda prompt: [{"role": "user", "content": prompt}]
        texts = [tokenizer.apply_chat_template(chat(p), tokenize=False, add_generation_prompt=True) for p in prompts]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        with torch.inference_mode():
            rounding = Rounding(model)
            plain = [greedy(model, tokens, args.tokens, stop) for tokens in ids]
            rounding.is_on = True
            coarse = [greedy(model, tokens, args.tokens, stop) for tokens in ids]
        request = {"prompts": ids, "texts": texts, "max_tokens": args.tokens, "stop": stop}
        theirs = [answer["tokens"] for answer in llama(args, file, request)]
    for name, ours, others in (
        ("f32 and rounded", [t for t, _ in plain], [t for t, _ in coarse]),
        ("f32 and llama.cpp", [t for t, _ in plain], theirs),
        ("rounded and llama.cpp", [t for t, _ in coarse], theirs),
    ):
        places = [parting(one, other, stop) for one, other in zip(ours, others)]
        print(f"{name}: {places.count(None)} of {len(places)} answers have the same tokens")
        for number, place in enumerate(places):
            if place is not None:
                gaps = [gaps[place] if place < len(gaps) else float("nan") for _, gaps in (plain[number], coarse[number])]
                print(f"  prompt {number + 1}, token {place + 1}: gap {gaps[0]:.4f} in f32, {gaps[1]:.4f} rounded")
    torch.manual_seed(1)
    with torch.inference_mode():
        for number, (ours, others) in enumerate(zip([t for t, _ in plain], theirs)):
            place = parting(ours, others, stop)
            if place is None or place >= min(len(ours), len(others)):
                continue
            asked = [*ids[number], *ours[:place]], ours[place], others[place]
            rounding.is_on, rounding.noise = False, 0.0
            exact = lead(model, *asked)
            rounding.is_on, rounding.noise = True, 1e-5
            drawn = torch.tensor([lead(model, *asked) for _ in range(args.draws)])
            print(
                f"prompt {number + 1}, token {place + 1}: {exact:+.4f} in f32; rounded {drawn.mean():+.4f} ± {drawn.std():.4f}, from "
                f"{drawn.min():+.4f} to {drawn.max():+.4f}, {int((drawn < 0).sum())} of {args.draws} below 0",
                flush=True,
            )


if __name__ == "__main__":
    main()
