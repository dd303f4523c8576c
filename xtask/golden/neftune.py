"""Golden file of NEFTune: data/golden/neftune/, the noise that transformers' own hook adds to embeddings.

hook.safetensors   f32 [2, 6, 8], two documents of one length: `draws`, uniform in ±1; `embeddings`; `noisy`, what the hook makes of them
meta.json          versions, alpha and tolerance

Needs torch, transformers and safetensors.
"""

import json
import pathlib
from importlib.metadata import version

import torch
from safetensors.torch import save_file
from transformers.integrations.neftune import neftune_post_forward_hook

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/golden/neftune"
SHAPE, ALPHA, SEED = (2, 6, 8), 5.0, 11


def main():
    module = torch.nn.Identity()
    module.neftune_noise_alpha = ALPHA
    module.train()
    module.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(2)
    embeddings = torch.randn(SHAPE)
    # The same state of the generator gives the same draws, within ±1 here and within the hook's bound there.
    torch.manual_seed(SEED)
    draws = torch.zeros(SHAPE).uniform_(-1, 1)
    torch.manual_seed(SEED)
    noisy = module(embeddings)
    module.eval()
    assert torch.equal(module(embeddings), embeddings)
    OUT.mkdir(parents=True, exist_ok=True)
    save_file({"draws": draws, "embeddings": embeddings, "noisy": noisy}, OUT / "hook.safetensors")
    (OUT / "hook.safetensors").chmod(0o644)
    meta = {name: version(name) for name in ("torch", "transformers")}
    meta |= {"made_by": "xtask/golden/neftune.py", "alpha": ALPHA, "tolerance": 1e-6}
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


if __name__ == "__main__":
    main()
