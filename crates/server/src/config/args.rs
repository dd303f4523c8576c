//! The command line as clap sees it. [`super::Config`] is what the rest of the program uses.

use std::path::PathBuf;

use clap::{ArgAction, Parser};
use lora_4bit::ComputeDtype;
use model_qwen::flags::{some_of, whole};
use model_qwen::{Dtype, JsonStyle, LogprobsMode, Quantization};

use super::api_flags::{MAX_LOGPROBS, template_kwargs};
use super::job_priority::JobPriority;
use super::kv_events::{KvEventsFlag, kv_events};
use super::pooling::{Convert, HfOverrides, PoolerConfig, Runner, Task};
use super::speculative::{Speculation, speculation};
use super::structured_outputs::json_style;
use super::{
    ApiKey, LoraModule, MaxModelLen, ReasoningParser, ToolCallParser, stored_responses, units,
};

/// What `--help` says of other commands.
const COMMANDS: &str = "\
Commands, as the first word:
  serve             What this page describes; may be left out
  run-batch         Answers a file of requests in OpenAI's batch format
  bench serve       Sends requests to a running server, and measures it
  bench throughput  Measures how many requests an engine answers in a second
  bench latency     Measures how long an engine takes for a batch
`server COMMAND -h` shows the flags of a command.";

/// OpenAI-compatible server for Qwen-architecture models. Flags have vLLM's names and meaning; underscores work too
/// (`--max_model_len`).
#[derive(Clone, Debug, Parser)]
#[command(
    name = "server",
    version,
    max_term_width = 110,
    allow_negative_numbers = true,
    after_help = COMMANDS
)]
pub struct Args {
    /// Model folder or Hugging Face id; without one the small bundled model is served
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub model_positional: Option<String>,

    /// Same as the positional MODEL
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Names that requests may give as `model`; the first one is used in answers [default: the model as given]
    #[arg(long, value_name = "NAME", num_args = 1.., action = ArgAction::Append)]
    pub served_model_name: Vec<String>,

    /// Address to listen on; 0.0.0.0 for all interfaces
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,

    /// TCP port; 0 lets the system choose one
    #[arg(long, default_value_t = 8000, value_parser = whole::<u16>)]
    pub port: u16,

    /// Listen on this Unix domain socket instead of TCP (Unix only)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    pub uds: Option<PathBuf>,

    /// Keys of which a client must send one as `Authorization: Bearer KEY` or `x-api-key: KEY`, on every route but
    /// /health, /ping, /metrics and the files of the page
    #[arg(long, value_name = "KEY", num_args = 1.., action = ArgAction::Append, env = "VLLM_API_KEY", hide_env_values = true)]
    pub api_key: Vec<ApiKey>,

    /// File or pipe with further keys, one a line: a command line can be read by every user of a machine
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Origins of web pages that may read the answers, as JSON (`'["https://example.org"]'`) or one after the other [default:
    /// all, but not for loading adapters]
    #[arg(long, value_name = "JSON|ORIGIN", num_args = 1.., action = ArgAction::Append, value_parser = units::texts)]
    pub allowed_origins: Vec<units::Texts>,

    /// Methods that web pages may use, as JSON or one after the other [default: all]
    #[arg(long, value_name = "JSON|METHOD", num_args = 1.., action = ArgAction::Append, value_parser = units::texts)]
    pub allowed_methods: Vec<units::Texts>,

    /// Headers that web pages may send, as JSON or one after the other [default: all]
    #[arg(long, value_name = "JSON|HEADER", num_args = 1.., action = ArgAction::Append, value_parser = units::texts)]
    pub allowed_headers: Vec<units::Texts>,

    /// Let web pages send cookies
    #[arg(long)]
    pub allow_credentials: bool,

    /// Where the model runs: auto, cpu, cuda, cuda:N, wgpu, vulkan, metal or rocm (those compiled in)
    #[arg(long, default_value = "auto")]
    pub device: String,

    /// Type of the weights in memory; auto = what the checkpoint says
    #[arg(long, default_value = "auto", value_parser = some_of::<Dtype>(&DTYPE))]
    pub dtype: Dtype,

    /// Fraction of the device's total memory for this process (weights, activations and KV cache). On a GPU the default is
    /// 0.9. On a CPU it is a fraction of the total RAM; without it the KV cache gets the smaller of 4 GiB and a quarter of
    /// the free memory
    #[arg(long, value_name = "FRACTION", value_parser = units::fraction)]
    pub gpu_memory_utilization: Option<f64>,

    /// Pretend that the device has this much memory (8GiB, 6000MB, bytes), to share it or to test a fit
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub device_memory: Option<u64>,

    /// Size of the KV cache (4GiB, 512MiB, bytes); overrides --gpu-memory-utilization
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Longest prompt plus output in tokens: 8192, 8k (= 8000), 8K (= 8192), or auto = the largest that fits, at most the
    /// model's own limit
    #[arg(long, value_name = "TOKENS", default_value = "auto", value_parser = units::max_model_len, allow_hyphen_values = true)]
    pub max_model_len: MaxModelLen,

    /// Most sequences in one step
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole::<usize>)]
    pub max_num_seqs: usize,

    /// Most tokens in one step; longer prompts are computed in several steps [default: 2048, and 8192 on a GPU with 70 GiB or
    /// more]
    #[arg(long, value_name = "N", value_parser = units::count)]
    pub max_num_batched_tokens: Option<usize>,

    /// Tokens per block of the KV cache
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = whole::<usize>)]
    pub block_size: usize,

    /// Reuse the KV cache of equal prompt beginnings [default: on]
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,

    /// Compute every prompt from its start
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,

    /// Quantize the weights while loading [default: none]; bitsandbytes 4-bit checkpoints are recognised without it. `bitsandbytes`
    /// is nf4
    #[arg(long, value_parser = some_of::<Quantization>(&QUANTIZATION))]
    pub quantization: Option<Quantization>,

    /// What the model is served for; auto = embeddings or scores if its folder says so (modules.json, `architectures`, no
    /// lm_head and none that is tied), otherwise text
    #[arg(long, default_value = "auto", value_enum)]
    pub runner: Runner,

    /// What --runner pooling computes; auto = scores if the model has a score of its own, otherwise embeddings
    #[arg(long, default_value = "auto", value_enum)]
    pub convert: Convert,

    /// Older form of --runner and --convert
    #[arg(long, value_enum)]
    pub task: Option<Task>,

    /// How hidden states become one vector, as JSON: `'{"pooling_type": "MEAN"}'` (LAST, MEAN, CLS), `use_activation` (or
    /// `normalize`), `dimensions`, `max_embed_len` [default: what the model's folder says, or else LAST and length 1]
    #[arg(long, alias = "override-pooler-config", value_name = "JSON", value_parser = PoolerConfig::parse)]
    pub pooler_config: Option<PoolerConfig>,

    /// What config.json should say of a classifier, as JSON; for Qwen3-Reranker
    /// `'{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"]}'`
    #[arg(long, value_name = "JSON", value_parser = HfOverrides::parse)]
    pub hf_overrides: Option<HfOverrides>,

    /// Type in which weights are multiplied where a step has many tokens, as in prompts; sums are f32
    #[arg(long, default_value = "auto", value_parser = some_of::<ComputeDtype>(&COMPUTE_DTYPE))]
    pub compute_dtype: ComputeDtype,

    /// Type of the KV cache; auto = float32 on the CPU, bfloat16 on GPUs that have it
    #[arg(long, default_value = "auto", value_parser = some_of::<Dtype>(&KV_CACHE_DTYPE))]
    pub kv_cache_dtype: Dtype,

    /// Allow LoRA adapters, from --lora-modules or over POST /v1/load_lora_adapter
    #[arg(long)]
    pub enable_lora: bool,

    /// Adapters to load at start: NAME=PATH or {"name": "NAME", "path": "PATH"}; needs --enable-lora
    #[arg(long, value_name = "NAME=PATH", num_args = 1.., action = ArgAction::Append, value_parser = units::lora_module)]
    pub lora_modules: Vec<LoraModule>,

    /// Folders from which clients may load adapters, whose path they give in POST /v1/load_lora_adapter; links must not lead out
    /// of them. VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is `--lora-roots /` [default: the folders of --lora-modules only]
    #[arg(long, value_name = "DIR", num_args = 1.., action = ArgAction::Append)]
    pub lora_roots: Vec<PathBuf>,

    /// Most adapters in one step; requests for further adapters wait until one of these is not in use
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole::<usize>)]
    pub max_loras: usize,

    /// Adapters that are kept in the host's memory while further adapters are in use, so that they aren't read again [default: none]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub max_cpu_loras: Option<usize>,

    /// Largest rank of an adapter; each takes only the memory of its own rank
    #[arg(long, value_name = "R", default_value_t = 256, value_parser = whole::<usize>)]
    pub max_lora_rank: usize,

    /// Train adapters on request: POST /v1/files and /v1/fine_tuning/jobs, as at OpenAI. Serving the result needs --enable-lora
    #[arg(long)]
    pub enable_finetuning: bool,

    /// Folder for uploaded files, jobs and trained adapters [default: qwen-burn/finetuning in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "PATH")]
    pub finetuning_dir: Option<PathBuf>,

    /// What a job gets of the processor while requests run [default: normal]
    #[arg(long, value_name = "PRIORITY", value_enum)]
    pub finetuning_priority: Option<JobPriority>,

    /// Run each job in a process of its own on this device (cpu, cuda:1, …), which loads the model a second time; a job on the
    /// server's device then fails alone [default: in the server's process, on its device and its weights]
    #[arg(long, value_name = "DEVICE")]
    pub finetuning_device: Option<String>,

    /// Memory that a job may take (2GiB, 500MB, bytes), besides weights that it shares with the server. A job that would take
    /// more is refused with the hyperparameter that would fit
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub finetuning_memory: Option<u64>,

    /// Largest file that may be uploaded (512MiB, 2GB, bytes) [default: 512MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    pub max_file_size: Option<u64>,

    /// Jinja chat template, as a file or as the template itself [default: the model's]
    #[arg(long, value_name = "FILE|TEMPLATE")]
    pub chat_template: Option<String>,

    /// Take `chat_template` from requests; a template is a program, which gets half a second and 192 MiB
    #[arg(long)]
    pub trust_request_chat_template: bool,

    /// Variables of the chat template, as JSON: `'{"enable_thinking": false}'`; those of a request win
    #[arg(long, value_name = "JSON", value_parser = template_kwargs)]
    pub default_chat_template_kwargs: Option<units::Object>,

    /// Which text of a chat answer is its reasoning
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub reasoning_parser: ReasoningParser,

    /// What calls of tools look like in a chat answer
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub tool_call_parser: ToolCallParser,

    /// Look for calls where a request has `tools` and leaves the choice to the model [default: on]
    #[arg(long, overrides_with = "no_enable_auto_tool_choice")]
    pub enable_auto_tool_choice: bool,

    /// Leave such calls in the text
    #[arg(long, overrides_with = "enable_auto_tool_choice")]
    pub no_enable_auto_tool_choice: bool,

    /// Show the model no tools where a request has `tool_choice` `none`
    #[arg(long)]
    pub exclude_tools_when_tool_choice_none: bool,

    /// Settings of structured output, as JSON: `'{"disable_any_whitespace": true}'` writes JSON without white space,
    /// `{"disable_additional_properties": false}` lets objects have properties that their schema does not list; those of a request win
    #[arg(long, value_name = "JSON", value_parser = json_style)]
    pub structured_outputs_config: Option<JsonStyle>,

    /// Where requests have their sampling defaults from: auto = the model's generation_config.json, vllm = none of it
    #[arg(long, value_name = "SOURCE", default_value = "auto", value_parser = ["auto", "vllm"])]
    pub generation_config: String,

    /// Most alternatives per token that a request may ask for, -1 = no limit
    #[arg(long, value_name = "N", default_value_t = MAX_LOGPROBS, value_parser = units::limit, allow_negative_numbers = true)]
    pub max_logprobs: usize,

    /// Which numbers answers have as log-probabilities: raw_logprobs = of the model's own logits, raw_logits = these logits,
    /// processed_logprobs = those that a token is drawn with, after masks, biases, penalties, temperature, top-k, top-p and min-p,
    /// processed_logits = the logits of these. A prompt's tokens are not drawn, and have raw ones
    #[arg(long, value_name = "MODE", default_value_t)]
    pub logprobs_mode: LogprobsMode,

    /// Show tokens in log-probabilities as `token_id:N` unless the request says otherwise
    #[arg(long)]
    pub return_tokens_as_token_ids: bool,

    /// End every stream with its usage
    #[arg(long)]
    pub enable_force_include_usage: bool,

    /// Answer GET /load with the number of requests that are not answered yet
    #[arg(long)]
    pub enable_server_load_tracking: bool,

    /// Answer GET /tokenizer_info with the tokenizer's configuration and the chat template
    #[arg(long)]
    pub enable_tokenizer_info_endpoint: bool,

    /// Show browsers no page at / (chat, comparing models, status of the server). The page loads nothing from elsewhere, and its
    /// files need no key; what it asks the server for does
    #[arg(long)]
    pub no_page: bool,

    /// Answers of /v1/responses that are kept for `previous_response_id`, the oldest forgotten first; 0 keeps none
    #[arg(long, value_name = "N", default_value_t = stored_responses::MAX_NUM, value_parser = whole::<usize>)]
    pub max_stored_responses: usize,

    /// Most memory for these (64MiB, bytes); the oldest are forgotten first
    #[arg(long, value_name = "SIZE", default_value = stored_responses::MAX_BYTES, value_parser = units::bytes)]
    pub max_stored_responses_bytes: u64,

    /// Most requests that wait for their first step; one more is answered 503 with Retry-After
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = whole::<usize>)]
    pub max_num_queued_reqs: usize,

    /// Seconds that running requests get after SIGTERM or Ctrl-C before the process exits
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = whole::<u64>)]
    pub shutdown_timeout: u64,

    /// Seed for requests that bring none [default: random]
    #[arg(long, value_parser = whole::<u64>)]
    pub seed: Option<u64>,

    /// Speculative decoding by prompt lookup: guess that the text goes on as it did after the same words before, and check
    /// several tokens in one step. JSON as vLLM's: `'{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4,
    /// "prompt_lookup_min": 2}'`; off = never; auto = with these numbers on a CPU, off on a GPU
    #[arg(long, value_name = "JSON|auto|off", default_value = "auto", value_parser = speculation)]
    pub speculative_config: Speculation,

    /// Publish over ZeroMQ which blocks the prefix cache has, for routers that look for prefixes. JSON as vLLM's:
    /// `'{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557", "topic": "", "replay_endpoint": null}'`, also `publisher`,
    /// `buffer_steps`, `hwm`, `max_queue_size`; `"event_format": "array"` for readers of vLLM's older format
    #[arg(long, value_name = "JSON", value_parser = kv_events)]
    pub kv_events_config: Option<KvEventsFlag>,

    /// Send a span of each request to a collector of OpenTelemetry, as JSON over HTTP; OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
    /// OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG and OTEL_EXPORTER_OTLP_HEADERS are read
    #[arg(long, value_name = "URL")]
    pub otlp_traces_endpoint: Option<String>,

    /// Launch every kernel by itself instead of replaying CUDA graphs; for finding errors. A CPU has none
    #[arg(long)]
    pub enforce_eager: bool,

    /// Serve before kernels are compiled and CUDA graphs are captured: the first requests wait for them. A CPU has none
    #[arg(long)]
    pub no_warm_up: bool,

    /// Don't start where the environment has a variable `VLLM_…` that has no effect here (otherwise the log names it)
    #[arg(long)]
    pub fail_on_environ_validation: bool,

    /// TOML file with the same settings (`max-model-len = "8k"`); flags win over it, it wins over the environment
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `--quantization`.
const QUANTIZATION: [(&str, &str); 2] = [
    (
        "nf4",
        "4-bit NormalFloat with double quantization, as in QLoRA",
    ),
    ("none", "As they are in the checkpoint"),
];

/// `--dtype`.
const DTYPE: [(&str, &str); 4] = [
    ("auto", "What the checkpoint says"),
    ("float32", "32-bit floats"),
    ("bfloat16", "16-bit floats with 8 bits of exponent"),
    ("float16", "16-bit IEEE floats"),
];

/// `--compute-dtype`.
const COMPUTE_DTYPE: [(&str, &str); 3] = [
    (
        "auto",
        "On a CPU what is as good as float32: NF4 weights are multiplied in 16-bit integers (off by 1e-4), other weights exactly. \
         bfloat16 on a GPU",
    ),
    (
        "float32",
        "No operand is rounded: what else is computed beside an answer changes no more than the last bits of its sums",
    ),
    (
        "bfloat16",
        "Rounded to bfloat16, as most engines do: prompts are computed faster on CPUs with AVX-512-BF16 or AMX",
    ),
];

/// `--kv-cache-dtype`.
const KV_CACHE_DTYPE: [(&str, &str); 3] = [
    ("auto", "The engine's choice"),
    ("float32", "32-bit floats"),
    ("bfloat16", "16-bit floats with 8 bits of exponent"),
];
