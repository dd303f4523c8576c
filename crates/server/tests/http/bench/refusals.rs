//! Command lines of `bench` that cannot work.

use super::*;

#[test]
fn what_cannot_work_is_refused_by_name() {
    for (words, expected) in [
        (
            "serve --dataset-name random --dataset-path x",
            "--dataset-path: this data set has no file",
        ),
        (
            "serve --dataset-name custom",
            "--dataset-path: this data set needs a file",
        ),
        (
            "serve --dataset-name sonne",
            "[possible values: random, sharegpt, custom, prefix_repetition, sonnet, burstgpt]",
        ),
        (
            "serve --dataset-name hf --dataset-path x",
            "--dataset-name: data sets of the Hub, and those with media",
        ),
        (
            "serve --dataset-name sonnet",
            "--dataset-path: this data set needs a file",
        ),
        (
            "serve --dataset-name prefix_repetition --num-prompts 3",
            "--num-prompts: expected 10 or more, found 3",
        ),
        (
            "serve --prefix-repetition-suffix-len 5",
            "--prefix-repetition-suffix-len: this flag is of --dataset-name prefix_repetition",
        ),
        (
            "serve --dataset-name burstgpt --dataset-path x --output-len 5",
            "--output-len: this flag is of --dataset-name random, sharegpt, custom, sonnet and prefix_repetition",
        ),
        (
            "serve --hf-output-len 5",
            "--hf-output-len: no data set comes from the Hub",
        ),
        (
            "serve --no-stream",
            "--no-stream: no data set comes from the Hub",
        ),
        ("serve --self-timed", "--self-timed: see --request-rate"),
        (
            "serve --chat-template-kwargs {}",
            "--chat-template-kwargs: only --backend openai-chat sends chats",
        ),
        ("serve --lora-assignment round-robin", "--lora-modules"),
        (
            "serve --request-rate 0",
            "--request-rate: expected 0.000001 to 1000000000, or inf; found 0",
        ),
        (
            "serve --request-rate 1e-300",
            "--request-rate: expected 0.000001",
        ),
        (
            "serve --temperature nan",
            "--temperature: expected a finite number, found NaN",
        ),
        (
            "serve --random-input-len 99999999999",
            "--random-input-len: expected at most 1048576",
        ),
        (
            "serve --num-warmups 99999999999",
            "--num-warmups: expected at most 65536",
        ),
        (
            "serve --custom-output-len 5",
            "--custom-output-len: this flag is of --dataset-name custom",
        ),
        (
            "serve --save-detailed",
            "--save-detailed: no result is written without --save-result",
        ),
        (
            "serve --base-url http://a:b@x --model m",
            "--base-url: expected http://HOST:PORT, found a user name",
        ),
        (
            "serve --base-url http://x --model m --save-result --result-filename /no/such/folder/x",
            "--result-filename: cannot write /no/such/folder/x",
        ),
        (
            "serve --use-beam-search",
            "--use-beam-search: this server has no beam search",
        ),
        (
            "serve --base-url https://x --model m",
            "--base-url: this client has no TLS",
        ),
        (
            "serve --endpoint /v1/chat/completions",
            "--endpoint: expected /…completions for --backend openai",
        ),
        (
            "serve --metric-percentiles 101",
            "--metric-percentiles: expected 0 to 100, found 101",
        ),
        (
            "serve --goodput itl:5",
            "expected ttft, tpot or e2el, found itl",
        ),
        ("serve --num-prompt 5", "--num-prompts"),
        (
            "serve --tokenizer-mode mistral",
            "expected auto, hf or fast: tokenizers are read from tokenizer.json",
        ),
        (
            "serve --random-batch-size 2",
            "expected 1: each request has one prompt",
        ),
        (
            "serve --probe-request-rate 0.5",
            "expected 0: no probes are sent beside the requests",
        ),
        (
            "throughput --port 5",
            "--port: `bench throughput` listens nowhere",
        ),
        (
            "throughput --lora-path x",
            "--lora-path: measure adapters with",
        ),
        (
            "latency --batch-size 0",
            "--batch-size: expected 1 or more, found 0",
        ),
        (
            "latency --batch-size 65536 --n 65536",
            "--n: expected at most 65536 answers to all prompts, found 4294967296",
        ),
        (
            "latency --batch-size 65536 --input-len 1000000",
            "--batch-size: expected at most 1073741824 tokens in all prompts, found 65536000000",
        ),
        (
            "throughput --num-prompts 1000000 --n 1000",
            "--n: expected at most 1048576 answers to all prompts, found 1000000000",
        ),
        (
            "throughput --max-logprobs 5",
            "--max-logprobs: this has no effect on `bench throughput`",
        ),
        (
            "latency --served-model-name a",
            "--served-model-name: this has no effect on `bench latency`",
        ),
        (
            "throughput --input-len 0",
            "--input-len: expected 1 or more, found 0",
        ),
        (
            "throughput --input-len 5 --random-input-len 6",
            "'--input-len <TOKENS>' cannot be used with '--random-input-len <TOKENS>'",
        ),
        (
            "serve --output-len 5 --sharegpt-output-len 6",
            "'--output-len <TOKENS>' cannot be used with '--sharegpt-output-len <TOKENS>'",
        ),
        (
            "serve --dataset-path x --random-input-len 1024",
            "--random-input-len: this flag is of --dataset-name random",
        ),
        (
            "serve --base-url http://x:80000 --model m",
            "--base-url: expected a port from 0 to 65535, found http://x:80000",
        ),
        ("serve --host a/b:c --model m", "--host: "),
        ("serve --header a(b=c", "`a(b` is no name of a header"),
        (
            "serve --label x",
            "--label: no result is written without --save-result",
        ),
        (
            "serve --metadata a=b",
            "--metadata: no result is written without --save-result",
        ),
        (
            "serve --percentile-metrics client_queue_time",
            "client_queue_time: no request waits for others without --max-concurrency",
        ),
        (
            "serve --percentile-metrics e2el_including_client_queue --max-concurrency 2",
            "e2el_including_client_queue needs --max-concurrency, and --request-rate",
        ),
        (
            "serve --burstiness 2",
            "--burstiness: all requests come at once without --request-rate",
        ),
        (
            "serve --burstiness 1e-6 --request-rate 2",
            "--burstiness: expected 0.001 to 1000000000, or inf; found 0.000001",
        ),
        (
            "serve --endpoint-type openai-chat --dataset-name custom --dataset-path x --skip-chat-template",
            "--skip-chat-template: with --backend openai-chat the server makes a chat",
        ),
        (
            "serve --extra-body {\"stream\":false}",
            "--extra-body: `stream`: ",
        ),
        (
            "serve --request-id-prefix a\u{7f}",
            "expected a text without control characters",
        ),
        (
            "sweep",
            "expected serve, throughput or latency, found `sweep`",
        ),
    ] {
        let error = run(&words.split(' ').collect::<Vec<_>>()).unwrap_err();
        assert!(error.contains(expected), "{words}: {error}");
    }
}
