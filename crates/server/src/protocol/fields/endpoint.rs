//! Whose fields.

/// What has fields: a route, or an object in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/pooling`.
    Pooling,
    /// `/classify`.
    Classify,
    /// `/score`.
    Score,
    /// `/rerank`.
    Rerank,
    /// `/v1/messages`.
    Messages,
    /// `/v1/messages/count_tokens`.
    CountTokens,
    /// `/api/chat`.
    OllamaChat,
    /// `/api/generate`.
    OllamaGenerate,
    /// `/api/embed`.
    OllamaEmbed,
    /// `/api/embeddings`.
    OllamaEmbeddings,
    /// The object `options` of these four.
    OllamaOptions,
    /// `/api/show`.
    OllamaShow,
    /// `/v1/responses`.
    Responses,
    /// `/v1/fine_tuning/jobs`.
    FineTuningJob,
    /// The object `hyperparameters` of a job and of a preview.
    FineTuningSettings,
    /// `/v1/fine_tuning/preview`.
    FineTuningPreview,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Pooling,
        Self::Classify,
        Self::Score,
        Self::Rerank,
        Self::Messages,
        Self::CountTokens,
        Self::OllamaChat,
        Self::OllamaGenerate,
        Self::OllamaEmbed,
        Self::OllamaEmbeddings,
        Self::OllamaOptions,
        Self::OllamaShow,
        Self::Responses,
        Self::FineTuningJob,
        Self::FineTuningSettings,
        Self::FineTuningPreview,
    ];

    /// Its name in the lists of fields.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Pooling => "pooling",
            Self::Classify => "classify",
            Self::Score => "score",
            Self::Rerank => "rerank",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::OllamaChat => "ollama_chat",
            Self::OllamaGenerate => "ollama_generate",
            Self::OllamaEmbed => "ollama_embed",
            Self::OllamaEmbeddings => "ollama_embeddings",
            Self::OllamaOptions => "ollama_options",
            Self::OllamaShow => "ollama_show",
            Self::Responses => "responses",
            Self::FineTuningJob => "fine_tuning_job",
            Self::FineTuningSettings => "fine_tuning_settings",
            Self::FineTuningPreview => "fine_tuning_preview",
        }
    }

    /// Whether vLLM has it, which reads a switch as a number where it expects one.
    pub(super) fn is_of_vllm(self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::Completions
                | Self::Responses
                | Self::Embeddings
                | Self::Pooling
                | Self::Classify
                | Self::Score
                | Self::Rerank
        )
    }

    /// Whether a field that no list has is refused, as Anthropic does.
    pub(crate) fn is_closed(self) -> bool {
        matches!(
            self,
            Self::Messages
                | Self::CountTokens
                | Self::FineTuningJob
                | Self::FineTuningSettings
                | Self::FineTuningPreview
        )
    }
}
