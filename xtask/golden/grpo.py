"""Golden files of GRPO: TRL's trainer on the tiny model of data/golden/training, with given answers.

Writes to data/golden/grpo/:
  rollouts.json       prompts, answers and rewards of each generation
  cases.json          settings of each run, and what TRL found at each of its steps
  NAME.safetensors    the adapter after the last step of the run NAME (PEFT tensor names)
  meta.json           versions and tolerances

Run: python xtask/golden/grpo.py [CASE …]   (torch, transformers, peft, trl, datasets; CPU)
"""

import json
import os
import pathlib
import random
import sys
import tempfile

# TRL's kernel of the output head, on a machine without a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import peft
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

ROOT = pathlib.Path(__file__).resolve().parents[2] / "data/golden"
OUT = ROOT / "grpo"
STEPS, GROUPS, ANSWERS = 30, 2, 4
LR, MAX_NORM, MAX_LENGTH = 2e-3, 1.0, 12
CASES = {
    "dapo": {},
    "grpo": {"loss_type": "grpo", "beta": 0.04, "num_iterations": 2, "epsilon": 0.1, "epsilon_high": 0.15,
             "temperature": 0.9, "scale_rewards": "batch", "gradient_accumulation_steps": 2},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.1},
    # One micro-batch, of which TRL logs the means as they are, and a range so narrow that many tokens leave it.
    "clipped": {"loss_type": "grpo", "beta": 0.04, "num_iterations": 2, "epsilon": 0.01, "epsilon_high": 0.02},
}


def make_rollouts():
    rng = random.Random(4)
    generations = []
    for _ in range(STEPS):
        groups = []
        for _ in range(GROUPS):
            prompt = [rng.randrange(1, 256) for _ in range(rng.randrange(2, 9))]
            answers = []
            for _ in range(ANSWERS):
                answer = [rng.randrange(1, 256) for _ in range(rng.randrange(1, MAX_LENGTH))]
                answers.append(answer + [0] * rng.randrange(2))
            rewards = [round(rng.choice([0.0, 1.0, rng.random()]), 3) for _ in range(ANSWERS)]
            groups.append({"prompt": prompt, "answers": answers, "rewards": rewards})
        # One group that teaches nothing, now and then.
        if rng.random() < 0.2:
            groups[0]["rewards"] = [1.0] * ANSWERS
        generations.append(groups)
    return generations


def tokenizer():
    vocab = {f"t{i}": i for i in range(256)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t1"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0", pad_token="t0", unk_token="t1")


class Given(GRPOTrainer):
    """Notes the loss of each micro-batch before it is rounded for the log."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append((self.state.global_step, loss.item()))
        return loss


def run(name, settings, generations):
    calls = iter(generations)
    rewards = []

    def rollout(prompts, trainer):
        groups = next(calls)
        rewards[:] = [reward for group in groups for reward in group["rewards"]]
        return {
            "prompt_ids": [group["prompt"] for group in groups for _ in group["answers"]],
            "completion_ids": [answer for group in groups for answer in group["answers"]],
            "logprobs": None,
        }

    def reward(completions, **_):
        return list(rewards)

    accumulation = settings.get("gradient_accumulation_steps", 1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to="none", logging_steps=1, max_steps=STEPS,
            save_strategy="no", learning_rate=LR, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0,
            max_grad_norm=MAX_NORM, per_device_train_batch_size=GROUPS * ANSWERS // accumulation,
            num_generations=ANSWERS, max_completion_length=MAX_LENGTH, gradient_checkpointing=False, **settings)
        config = peft.LoraConfig(
            r=4, lora_alpha=8, task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
        trainer = Given(
            model=Qwen2ForCausalLM.from_pretrained(ROOT / "training/model", dtype=torch.float32),
            processing_class=tokenizer(), args=args, peft_config=config, reward_funcs=reward, rollout_func=rollout,
            train_dataset=Dataset.from_dict({"prompt": [f"t{i}" for i in range(64)]}))
        trainer.losses = []
        initial = load_file(ROOT / "training/initial.safetensors")
        with torch.no_grad():
            for key, parameter in trainer.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(initial[key.replace(".default", "")])
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    names = ["grad_norm", "entropy", "kl", "reward", "reward_std", "frac_reward_zero_std", "clip_ratio/low_mean",
             "clip_ratio/high_mean", "clip_ratio/region_mean", "completions/mean_length", "completions/clipped_ratio",
             "completions/mean_terminated_length"]
    steps = []
    for step, entry in enumerate(log):
        loss = sum(loss for at, loss in trainer.losses if at == step)
        steps.append({"loss": loss, **{key: entry[key] for key in names if key in entry}})
    state = {key: value.detach().clone().contiguous()
             for key, value in peft.get_peft_model_state_dict(trainer.model).items()}
    save_file(state, OUT / f"{name}.safetensors", metadata={"format": "pt"})
    print(name, steps[0], steps[-1])
    return {"settings": settings, "steps": steps}


def main():
    """Writes all cases, or those that the command line names: then the others and their versions stay as they are."""
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    generations = make_rollouts()
    named = sys.argv[1:]
    cases, versions = {}, {}
    if named:
        assert json.loads((OUT / "rollouts.json").read_text()) == generations
        cases = json.loads((OUT / "cases.json").read_text())
        versions = json.loads((OUT / "meta.json").read_text())["versions"]
    else:
        (OUT / "rollouts.json").write_text(json.dumps(generations) + "\n")
    for name in named or CASES:
        cases[name] = run(name, CASES[name], generations)
        versions[name] = {m.__name__: m.__version__ for m in (torch, transformers, peft, trl)}
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    meta = {
        "versions": versions,
        "script": "xtask/golden/grpo.py",
        "settings": {"lr": LR, "max_grad_norm": MAX_NORM, "max_completion_length": MAX_LENGTH, "groups": GROUPS,
                     "num_generations": ANSWERS, "r": 4, "lora_alpha": 8},
        "tolerances": {"loss": 1e-4, "adapter": 1e-3},
    }
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main()
