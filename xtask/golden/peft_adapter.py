"""Golden files for LoRA: data/golden/peft/, a tiny random Qwen2 model with an adapter made by PEFT.

model/      the base model in bf16
adapter/    a LoRA adapter (rsLoRA, rank_pattern, alpha_pattern)
outputs.safetensors
    {module}.input, .base, .delta, .output   one linear: input [3, in], W x + b, s B(A x), their sum
    input_ids                                [1, 12]
    logits, logits_adapter                   [1, 12, vocab] of base and of base + adapter, f32 arithmetic
meta.json   versions, tolerances, and rank and scaling of each module as PEFT computed them
"""

import json
import math
import pathlib
import shutil

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/golden/peft"


def tiny_model():
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(torch.bfloat16)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    tiny_model().save_pretrained(OUT / "model")
    (OUT / "model/generation_config.json").unlink(missing_ok=True)

    def base():
        return Qwen2ForCausalLM.from_pretrained(OUT / "model", dtype=torch.float32, attn_implementation="eager").eval()

    lora = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
        alpha_pattern={"layers.0.mlp.up_proj": 3, r".*\.1\..*o_proj": 9},
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(8)
    model = get_peft_model(base(), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(OUT / "adapter")
    (OUT / "adapter/README.md").unlink(missing_ok=True)
    config = OUT / "adapter/adapter_config.json"
    fields = json.loads(config.read_text()) | {"base_model_name_or_path": "tiny-qwen2"}
    config.write_text(json.dumps(fields, indent=2, sort_keys=True))

    model = PeftModel.from_pretrained(base(), OUT / "adapter").eval()
    tensors, modules = {}, {}
    torch.manual_seed(9)
    with torch.no_grad():
        for name, module in model.base_model.model.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            x = torch.randn(3, module.in_features)
            output, plain = module(x), module.base_layer(x)
            delta = module.lora_B["default"](module.lora_A["default"](x)) * module.scaling["default"]
            assert torch.allclose(output, plain + delta, atol=1e-6)
            tensors |= {f"{name}.input": x, f"{name}.base": plain, f"{name}.delta": delta, f"{name}.output": output}
            modules[name] = {
                "r": module.r["default"],
                "scaling": module.scaling["default"],
                "in_features": module.in_features,
                "out_features": module.out_features,
            }
        ids = torch.randint(2, 256, (1, 12))
        tensors["input_ids"] = ids
        tensors["logits"] = base()(ids).logits
        tensors["logits_adapter"] = model(ids).logits
    assert (tensors["logits"] - tensors["logits_adapter"]).abs().max() > 0.1
    assert any(math.isclose(m["scaling"], 6 / math.sqrt(4)) for m in modules.values())
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "outputs.safetensors")
    meta = {
        "made_by": "xtask/golden/peft_adapter.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "tolerance": "delta and output of one linear 1e-5 absolute, logits 1e-4 absolute (f32 arithmetic on bf16 weights)",
        "modules": modules,
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
