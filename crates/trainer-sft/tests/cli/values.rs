//! Values out of range.

use super::*;

#[test]
fn values_out_of_range_name_the_flag() {
    for (flags, expected) in [
        ("", "--data is missing"),
        (
            "--data d --lora-r 0",
            "--lora-r: expected a whole number from 1 to 16384, found 0",
        ),
        (
            "--data d --lora-dropout 1.5",
            "--lora-dropout: expected a number from 0 to 0.99, found 1.5",
        ),
        (
            "--data d --learning-rate nan",
            "--learning-rate: expected a number above 0, found NaN",
        ),
        (
            "--data d --epochs -1",
            "--epochs: expected a number above 0, found -1",
        ),
        (
            "--data d --seed -1",
            "'--seed <SEED>': expected a whole number, 0 or more, found `-1`",
        ),
        (
            "--data d --learning-rate fast",
            "'--learning-rate <LR>': expected a number such as 0.5 or 2e-4, found `fast`",
        ),
        (
            "--data d --epochs=-1",
            "--epochs: expected a number above 0, found -1",
        ),
        (
            "--data d --warmup-ratio 2",
            "--warmup-ratio: expected a number from 0 to 1, found 2",
        ),
        (
            "--data d --max-length 1",
            "--max-length: expected a whole number from 2 up",
        ),
        (
            "--data d --max-steps 0",
            "--max-steps: expected a whole number from 1 up",
        ),
        (
            "--data d --batch-size x",
            "'--batch-size <N>': expected a whole number, 1 or more, or `auto`, found `x`",
        ),
        (
            "--data d --devices cpu,cpu",
            "--devices: expected GPUs, found `cpu`",
        ),
        (
            "--data d --devices cuda:0,cuda",
            "--devices: expected each GPU once, found `cuda` twice",
        ),
        (
            "--data d --devices cuda:0,cuda:1 --device cuda:0",
            "'--devices <DEVICES>' cannot be used with '--device <DEVICE>'",
        ),
        (
            "--data d --devices cuda:0,cuda:1 --method grpo --reward json",
            "--devices: --method grpo draws and judges its answers on one device",
        ),
        (
            "--data d --all-reduce fast",
            "[possible values: auto, nccl, host]",
        ),
        (
            "--data d --quantization int8",
            "[possible values: nf4, none]",
        ),
        ("--data d --target-modules q_proj,qproj", "found `qproj`"),
        (
            "--data d --offload-activations --gradient-checkpointing false",
            "--offload-activations moves what gradient checkpointing keeps",
        ),
        (
            "--data d --full --quantization nf4",
            "--full trains every weight",
        ),
        ("--data d --init-config c.json --tokenizer t", "add --full"),
        ("--data d --full --init-config c.json", "needs --tokenizer"),
        ("--data d --eval-steps 5", "--eval-steps needs --eval-data"),
        (
            "--data d --lr-schedule cosine_with_min_lr",
            "--lr-schedule cosine_with_min_lr needs --min-lr or --min-lr-rate",
        ),
        (
            "--data d --lr-schedule wsd",
            "--lr-schedule warmup_stable_decay needs --lr-decay-steps",
        ),
        (
            "--data d --min-lr 1e-5",
            "--min-lr would have no effect: the --lr-schedule cosine has no such setting",
        ),
        (
            "--data d --lr-schedule polynomial --lr 1e-4 --min-lr 1e-4",
            "--min-lr: expected a number from 0 to below 0.0001, found 0.0001",
        ),
        (
            "--data d --lr-schedule cosine_with_min_lr --min-lr 1e-5 --min-lr-rate 0.1",
            "--min-lr and --min-lr-rate say the same",
        ),
        (
            "--data d --warmup-ratio 0.5 --warmup-steps 0",
            "--warmup-ratio and --warmup-steps say the same: leave one of them out",
        ),
        (
            "--data d --full --loraplus-lr-ratio 16",
            "--loraplus-lr-ratio would have no effect",
        ),
        (
            "--data d --loraplus-lr-ratio 0",
            "--loraplus-lr-ratio: expected a number above 0, found 0",
        ),
        (
            "--data d --modules-to-save lm_head,norm",
            "--modules-to-save: expected a list of embed_tokens, lm_head, found `norm`",
        ),
        (
            "--data d --init-lora-weights pissa_niter_4",
            "--init-lora-weights pissa_niter_4 takes a part out of the weights, and 4-bit weights",
        ),
        (
            "--data d --quantization none --use-dora --init-lora-weights olora",
            "--init-lora-weights olora and --use-dora exclude each other",
        ),
        (
            "--data d --init-lora-weights loftq",
            "expected true, gaussian, pissa, pissa_niter_N",
        ),
        (
            "--data d --optim lion",
            "[possible values: adamw, adamw_8bit]",
        ),
        (
            "--data d --neftune-noise-alpha -5",
            "--neftune-noise-alpha: expected a number above 0, found -5",
        ),
        (
            "--data d --report-to wandb",
            "--report-to: expected tensorboard or none, found `wandb`; `wandb sync FOLDER` uploads the event files",
        ),
        (
            "--data d --report-to none --logging-dir l",
            "--logging-dir would have no effect",
        ),
        (
            "--data d --eval-split 1",
            "--eval-split: expected a number between 0 and 1, found 1",
        ),
        (
            "--data d --eval-split 0.1 --eval-steps 0.2",
            "expected a whole number, 0 or more, found `0.2`: a part of the run is not understood",
        ),
        (
            "--data d --warmup-steps 0.03",
            "found `0.03`: --warmup-ratio takes a part of the run",
        ),
        (
            "--data d --eval-split 0.1 --eval-data e",
            "--eval-split takes the evaluation data from --data",
        ),
        (
            "--data d --eval-split 0.1 --streaming --max-steps 3",
            "--eval-split draws from all records",
        ),
        (
            "--data d --early-stopping-patience 2",
            "--early-stopping-patience needs --eval-steps",
        ),
        (
            "--data d --eval-split 0.1 --load-best",
            "--load-best needs --eval-steps",
        ),
        (
            "--data d --early-stopping-threshold 0.1",
            "needs --early-stopping-patience",
        ),
        (
            "--data d --save-total-limit 2",
            "--save-total-limit needs --save-steps or --load-best",
        ),
        (
            "--data d --save-steps 5 --save-total-limit 0",
            "--save-total-limit: expected a whole number from 1 up, found 0",
        ),
        (
            "--data d --full --lora-r 8",
            "--lora-r would have no effect",
        ),
        (
            "--data d --quantization none --no-double-quant",
            "--no-double-quant would have no effect",
        ),
        (
            "--data d --columns prompt",
            "--columns: expected PART=FIELD",
        ),
        (
            "--data d --columns prompt=q,completion=a,label=ok",
            "found `label=ok`, which would have no effect: leave it out, or give a --method that reads it (kto)",
        ),
        (
            "--data d --columns prompt=q,completion=a,rejected=b",
            "--columns: expected parts that --method sft reads (messages,",
        ),
        (
            "--data d --method dpo --columns prompt=q,chosen=a,rejected=b,completion=c",
            "found `completion=c`, which would have no effect: leave it out, or give a --method that reads it (sft, kto)",
        ),
        (
            "--data d --method grpo --reward json --columns prompt=q,label=ok",
            "--columns: expected parts that --method grpo reads",
        ),
        (
            "--data d --columns question=prompt",
            "--columns: expected one of messages,",
        ),
        ("--data d --streaming", "--streaming needs --max-steps"),
        ("--data d --resume-anyway", "--resume-anyway needs --resume"),
        (
            "--data d --resume no/run",
            "--resume: expected a checkpoint folder, or the folder of a run that has some, found no/run, which is no folder",
        ),
        (
            "--data d --double-quant --no-double-quant",
            "cannot be used with",
        ),
    ] {
        let message = error(flags);
        assert!(message.contains(expected), "{flags}: {message}");
    }
    for flags in [
        "--method kto --columns prompt=q,completion=a,label=ok,chosen=c,rejected=r",
        "--method orpo --columns query=q,chosen=a,rejected=b,system=s",
        // A reward may be about any field.
        "--method grpo --reward exact_match:label --columns prompt=q,label=gold",
        "--method grpo --reward-url http://localhost:1/ --columns prompt=q,label=gold",
    ] {
        let parsed = parse(&format!("--data d {flags}"));
        assert!(parsed.is_ok(), "{flags}: {parsed:?}");
    }
    assert_eq!(
        parse("--data d --full").unwrap().model.quantization,
        Some(Quantization::None)
    );
}
