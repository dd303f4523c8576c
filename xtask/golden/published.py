"""Folders in the layouts that Qwen publishes its embedding models and rerankers in, and what transformers computes with them.

Writes data/golden/published/CASE/ with the folder and expected.json, and meta.json. The weights are random, tiny and bfloat16; keys of
config.json are those of transformers 4.51, which wrote the published files.

`embedding` is Qwen3-Embedding-0.6B: a Qwen3ForCausalLM whose tensors have no `model.` before their names and no lm_head beside them
(`tie_word_embeddings`), modules.json with the classes of older sentence-transformers, 1_Pooling/config.json with one switch for each
mode, no folder 2_Normalize, and a tokenizer that writes <|endoftext|> behind each text. `sharded` is the same as Qwen3-Embedding-8B has
it: two files with an index, not tied. `reranker` is Qwen3-Reranker-0.6B: tied, no lm_head. `reranker_head` is the same with lm_head in
the file. `classifier` is a reranker as a Qwen3ForSequenceClassification with one label, as converted copies are.
Vectors and scores are computed as the models' cards say.
"""
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model

from qwen3_cards import PAIRS, PREFIX, SUFFIX, TASK, prompts, randomized, rounded, score

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "data/golden") / "published"
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>"]
TEXTS = [
    f"Instruct: {TASK}\nQuery:Who lives in the harbour?",
    "An old fisherman lives in the harbour. He mends nets and tells the gulls about the weather of the day. " * 2,
    "A duck swims on the pond.",
    "你好，世界 naïve café",
]
TEMPLATE = ("{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
            "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n")
MODULES = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
MODES = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


def tokenizer(folder, ends):
    """Writes the tokenizer's files; with `ends`, <|endoftext|> comes after each text."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    words = TEXTS + [PREFIX, SUFFIX, "yes\nno\n" * 99]
    bpe.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    bpe.add_special_tokens(SPECIAL)
    bpe.add_tokens(PLAIN)
    end = bpe.token_to_id("<|endoftext|>")
    of_bytes = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if ends:
        of_end = processors.TemplateProcessing(
            single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", end)])
        bpe.post_processor = processors.Sequence([of_bytes, of_end])
    else:
        bpe.post_processor = of_bytes
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    bpe.model.save(str(folder))
    added = {str(bpe.token_to_id(text)): {
        "content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": text in SPECIAL,
    } for text in SPECIAL + PLAIN}
    write(folder / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "additional_special_tokens": SPECIAL[1:],
        "bos_token": None, "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    })
    return bpe


def config(folder, bpe, **more):
    """Writes config.json as transformers 4.51 did, and gives it as this transformers reads it."""
    end = bpe.token_to_id("<|endoftext|>")
    write(folder / "config.json", {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": end,
        "eos_token_id": end, "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 64, "max_position_embeddings": 512, "max_window_layers": 2, "model_type": "qwen3",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.3", "use_cache": True, "use_sliding_window": False, "vocab_size": bpe.get_vocab_size(), **more,
    })
    generation = {"bos_token_id": end, "eos_token_id": end, "max_new_tokens": 2048, "transformers_version": "4.51.3"}
    write(folder / "generation_config.json", generation)
    return Qwen3Config.from_pretrained(folder)


def save(folder, tensors, num_files=1):
    """Writes weights in bfloat16: one file, or several and their index."""
    tensors = {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    places = {name: f"model-{i % num_files + 1:05}-of-{num_files:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
    size = sum(tensor.numel() * 2 for tensor in tensors.values())
    write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def embedding(name, seed, num_files, tied):
    folder = OUT / name
    bpe = tokenizer(folder, ends=True)
    model = randomized(Qwen3Model(config(folder, bpe, tie_word_embeddings=tied)), seed, torch.bfloat16)
    # `embed_tokens.weight`, `layers.0…`: the names of a model without its head.
    save(folder, model.state_dict(), num_files)
    kind = "sentence_transformers.models."
    write(folder / "modules.json", [
        {"idx": i, "name": number, "path": path, "type": kind + module} for i, (number, path, module) in enumerate(MODULES)])
    pooling = {"word_embedding_dimension": 32, **{f"pooling_mode_{mode}": mode == "lasttoken" for mode in MODES}, "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling/config.json", pooling)
    write(folder / "config_sentence_transformers.json", {
        "prompts": {"query": f"Instruct: {TASK}\nQuery:", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    ids = [bpe.encode(text).ids for text in TEXTS]
    last = [model(torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
    vectors = torch.nn.functional.normalize(torch.stack(last), dim=-1)
    expected(folder, {"texts": TEXTS, "tokens": ids, "embeddings": rounded(vectors)})


def encoder(bpe):
    return lambda text: bpe.encode(text, add_special_tokens=False).ids


def reranker(name, seed, with_head):
    folder = OUT / name
    bpe = tokenizer(folder, ends=False)
    model = randomized(Qwen3ForCausalLM(config(folder, bpe)), seed, torch.bfloat16)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if with_head:
        tensors["lm_head.weight"] = model.lm_head.weight.clone()
    save(folder, tensors)
    yes, no = bpe.token_to_id("yes"), bpe.token_to_id("no")
    assert None not in (yes, no)
    scores = torch.stack([score(model(torch.tensor([ids])).logits[0, -1], yes, no) for ids in prompts(encoder(bpe))])
    expected(folder, {"pairs": PAIRS, "scores": rounded(scores)})


def classifier(seed):
    folder = OUT / "classifier"
    bpe = tokenizer(folder, ends=False)
    more = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
            "pad_token_id": bpe.token_to_id("<|endoftext|>")}
    model = randomized(Qwen3ForSequenceClassification(config(folder, bpe, **more)), seed, torch.bfloat16)
    save(folder, model.state_dict())
    texts = [bpe.decode(ids, skip_special_tokens=False) for ids in prompts(encoder(bpe))]
    scores = torch.stack([model(torch.tensor([ids])).logits[0, 0].sigmoid() for ids in prompts(encoder(bpe))])
    expected(folder, {"texts": texts, "scores": rounded(scores)})


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def expected(folder, value):
    (folder / "expected.json").write_text(json.dumps(value, ensure_ascii=False).replace("], [", "],\n [") + "\n")


@torch.inference_mode()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    embedding("embedding", 1, num_files=1, tied=True)
    embedding("sharded", 2, num_files=2, tied=False)
    reranker("reranker", 3, with_head=False)
    reranker("reranker_head", 4, with_head=True)
    classifier(5)
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "script": "xtask/golden/published.py",
            "tolerance": "1e-4, f32"}
    write(OUT / "meta.json", meta)


main()
