"""What embedding.py and published.py share: the cards of Qwen3-Embedding and Qwen3-Reranker, and random weights. It writes nothing."""
import torch

TASK = "Given a web search query, retrieve relevant passages that answer the query"
PAIRS = [
    ["Who lives in the harbour?", "An old fisherman lives in the harbour."],
    ["Who lives in the harbour?", "A duck swims on the pond."],
    ["Where is the duck?", "A duck swims on the pond, and then it flies away."],
]
PREFIX = ('<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. '
          'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n')
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def prompts(encode):
    """Token ids of the pairs, as the card of Qwen3-Reranker puts them together; `encode` gives those of a text."""
    texts = [f"<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {document}" for query, document in PAIRS]
    return [encode(PREFIX) + encode(text) + encode(SUFFIX) for text in texts]


def score(logits, yes, no):
    """What the card makes of the logits of a prompt's last token."""
    return torch.stack([logits[no], logits[yes]]).softmax(0)[1]


def randomized(model, seed, dtype=torch.float32):
    """Every parameter away from its trivial initial value, biases and norms too, and a value that `dtype` has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            value = 1 + 0.2 * noise if "norm" in name else 0.2 * noise
            p.copy_(value.to(dtype))
    return model.float().eval()


def rounded(values):
    """The numbers of a vector or of rows, with 7 digits."""
    return [[round(x, 7) for x in row] if isinstance(row, list) else round(row, 7) for row in values.tolist()]
