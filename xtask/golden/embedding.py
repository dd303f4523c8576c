"""Tiny random embedding models and a reranker, and what sentence-transformers and transformers compute with them.

Writes data/golden/embedding/CASE/ with the model's folder and expected.json, and meta.json. `last` and `mean` are folders that
sentence-transformers saves: `last` is in the layout of Qwen3-Embedding (names without `model.`, no lm_head, an end token after
each text), `mean` a Qwen2 model. `reranker` is a Qwen3ForCausalLM, whose scores are computed as the card of Qwen3-Reranker says.
"""
import json
import pathlib
import shutil
import sys

import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from qwen3_cards import PAIRS, PREFIX, SUFFIX, TASK, prompts, randomized, rounded, score

try:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
except ImportError:
    from sentence_transformers.models import Normalize, Pooling, Transformer

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "data/golden") / "embedding"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "yes", "no"]
SHAPE = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=1e6,
             bos_token_id=None, eos_token_id=0, pad_token_id=0)
TEXTS = [
    "A duck swims on the pond.",
    f"Instruct: {TASK}\nQuery: Who lives in the harbour?",
    "An old fisherman lives in the harbour. He mends nets and tells the gulls about the weather of the day. " * 3,
    "x",
    "你好，世界 naïve café",
]


def tokenizer(ends):
    """A small byte-level BPE; with `ends`, <|endoftext|> comes after each text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(TEXTS + [PREFIX, SUFFIX], trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], special_tokens=SPECIAL[:5], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    bpe.add_tokens(SPECIAL[5:])
    assert bpe.get_vocab_size() <= SHAPE["vocab_size"] + 2
    if ends:
        bpe.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", pair="$A <|endoftext|> $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def config(kind, num_tokens, **more):
    return kind(**{**SHAPE, "vocab_size": num_tokens, **more})


def embedding(name, model, pooling, seed):
    folder, bare = OUT / name, OUT / "bare"
    tokens = tokenizer(ends=name == "last")
    model = randomized(model(len(tokens)), seed)
    model.save_pretrained(bare)
    tokens.save_pretrained(bare)
    modules = [Transformer(str(bare)), Pooling(SHAPE["hidden_size"], pooling_mode=pooling), Normalize()]
    sentences = SentenceTransformer(modules=modules, device="cpu")
    sentences.save(str(folder), create_model_card=False)
    vectors = sentences.encode(TEXTS, batch_size=2)
    ids = [tokens(text).input_ids for text in TEXTS]
    plain = [model(torch.tensor([row])).last_hidden_state[0] for row in ids]
    plain = [h[-1] if pooling == "lasttoken" else h.mean(0) for h in plain]
    if name == "last":
        # As the published folder says.
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["Qwen3ForCausalLM"],
                                    "tie_word_embeddings": False}, indent=1) + "\n")
    write(folder, {"texts": TEXTS, "tokens": ids, "embeddings": rounded(vectors),
                   "without_activation": rounded(torch.stack(plain))})
    shutil.rmtree(bare)


def reranker(seed):
    folder, tokens = OUT / "reranker", tokenizer(ends=False)
    model = AutoModelForCausalLM.from_config(config(Qwen3Config, len(tokens), head_dim=16, tie_word_embeddings=True))
    model = randomized(model, seed)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    yes, no = tokens.convert_tokens_to_ids("yes"), tokens.convert_tokens_to_ids("no")
    scores, logits = [], []
    for ids in prompts(lambda part: tokens(part, add_special_tokens=False).input_ids):
        last = model(torch.tensor([ids])).logits[0, -1]
        scores.append(score(last, yes, no).item())
        logits.append((last[yes] - last[no]).item())
    write(folder, {"pairs": PAIRS, "scores": scores, "logits": logits})


def write(folder, expected):
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False).replace("], [", "],\n [") + "\n")
    for path in folder.glob("**/*"):
        if path.name in ("generation_config.json", "README.md", ".gitattributes"):
            path.unlink()


@torch.inference_mode()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    embedding("last", lambda num: Qwen3Model(config(Qwen3Config, num, head_dim=16)), "lasttoken", 1)
    embedding("mean", lambda num: Qwen2Model(config(Qwen2Config, num)), "mean", 2)
    reranker(3)
    meta = {"torch": torch.__version__, "transformers": transformers.__version__,
            "sentence_transformers": sentence_transformers.__version__, "tolerance": "1e-4, f32"}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
