//! The forward pass of a dense Qwen model, read from top to bottom, in the names of the checkpoint.
//!
//! Source of the architecture: `modeling_qwen2.py` and `modeling_qwen3.py` of Hugging Face
//! transformers. Activations are f32, except that on a GPU an operation whose reader would round them
//! writes that type; weights keep the dtype they were loaded in.

mod int8_lm_head;
mod largest_logits;

use burn::tensor::{DType, Device, Tensor};
use kv_paging::{Attention, Rotary};
use lora_4bit::{
    AdapterSelection, ComputeDtype, Linear, Norm, Weight, linear_residual, norm_qkv, rms_norm,
};
use tracing::trace_span;

use crate::config::QwenConfig;
use crate::device::is_gpu;
use crate::kernels::{on_worker, select_rows, token_tensor};
pub use crate::mlp::Mlp;
use crate::rotary::RotaryFrequencies;
pub(crate) use int8_lm_head::Int8LmHead;

/// A whole model: embedding, decoder layers, final norm, head.
#[derive(Clone, Debug)]
pub struct QwenModel {
    /// The shape of everything below.
    pub config: QwenConfig,
    /// `[vocab, hidden]`.
    pub embed_tokens: Tensor<2>,
    /// One per `num_hidden_layers`.
    pub layers: Vec<DecoderLayer>,
    /// Weight of the final RMSNorm, `[hidden]`.
    pub norm: Tensor<1>,
    /// `[vocab, hidden]`; the embedding itself where `tie_word_embeddings` says so.
    pub lm_head: Linear,
    /// See [`QwenModel::copy_lm_head_int8`].
    pub(crate) int8_lm_head: Option<Int8LmHead>,
    pub(crate) frequencies: RotaryFrequencies,
}

/// The linear layers of a decoder layer by their names within it, in the order of the forward pass.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// In and out features of each of [`LINEARS`].
pub fn linear_features(config: &QwenConfig) -> [(&'static str, [usize; 2]); 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let [q, k, v, o, gate, up, down] = LINEARS;
    [
        (q, [hidden, queries]),
        (k, [hidden, keys]),
        (v, [hidden, keys]),
        (o, [queries, hidden]),
        (gate, [hidden, inner]),
        (up, [hidden, inner]),
        (down, [inner, hidden]),
    ]
}

/// [`LINEARS`] as adapters and messages name them: `q_proj`.
pub fn linear_names() -> [&'static str; 7] {
    LINEARS.map(|path| path.rsplit_once('.').map_or(path, |(_, name)| name))
}

/// One decoder layer: attention and MLP, each behind a norm and added to the residual stream.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    /// `[hidden]`.
    pub input_layernorm: Tensor<1>,
    /// Attention.
    pub self_attn: SelfAttention,
    /// `[hidden]`.
    pub post_attention_layernorm: Tensor<1>,
    /// MLP.
    pub mlp: Mlp,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
}

/// Grouped-query attention with rotary positions.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    /// `[heads * head_dim, hidden]`.
    pub q_proj: Linear,
    /// `[kv_heads * head_dim, hidden]`.
    pub k_proj: Linear,
    /// `[kv_heads * head_dim, hidden]`.
    pub v_proj: Linear,
    /// `[hidden, heads * head_dim]`.
    pub o_proj: Linear,
    /// Qwen3's norm of each query head, `[head_dim]`.
    pub q_norm: Option<Tensor<1>>,
    /// Qwen3's norm of each key head, `[head_dim]`.
    pub k_norm: Option<Tensor<1>>,
    /// Width of one head.
    pub head_dim: usize,
}

impl QwenModel {
    /// Puts a model together from its parts; gives every linear layer its own id.
    pub fn new(
        config: QwenConfig,
        embed_tokens: Tensor<2>,
        layers: Vec<DecoderLayer>,
        norm: Tensor<1>,
        lm_head: Option<Tensor<2>>,
    ) -> Self {
        let head = lm_head.unwrap_or_else(|| embed_tokens.clone());
        let mut model = Self {
            frequencies: RotaryFrequencies::new(&config),
            lm_head: Linear::new(Weight::Dense(head), None),
            int8_lm_head: None,
            config,
            embed_tokens,
            layers,
            norm,
        };
        for (id, linear) in model.linears_mut().enumerate() {
            linear.id = id as u32;
        }
        model
    }

    /// The device the weights are on.
    pub fn device(&self) -> Device {
        self.norm.device()
    }

    /// Hidden states of a packed step, after the final norm.
    ///
    /// `positions[i]` is the position of `tokens[i]` in its own sequence; which tokens form a
    /// sequence is known to `attention` alone.
    ///
    /// # Shapes
    /// tokens and positions `[tokens]`; result `[tokens, hidden]`.
    pub fn forward(
        &self,
        tokens: &[u32],
        positions: &[u32],
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        on_worker(&self.device(), || {
            let rotary = self.rotary(positions);
            self.final_norm(self.forward_layers(self.embed(tokens), &rotary, adapters, attention))
        })
    }

    /// Some rows of [`QwenModel::forward`]. The last layer computes its MLP for these alone, since a row needs only the keys and
    /// values of the others.
    ///
    /// # Shapes
    /// tokens and positions `[tokens]`; result `[rows, hidden]`.
    ///
    /// # Panics
    /// When a row is not below the number of tokens.
    pub fn forward_rows(
        &self,
        tokens: &[u32],
        positions: &[u32],
        rows: &[usize],
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        let num = tokens.len();
        assert!(
            rows.iter().all(|&row| row < num),
            "rows {rows:?} of {num} tokens"
        );
        if !adapters.is_uniform() {
            return select_rows(&self.forward(tokens, positions, adapters, attention), rows);
        }
        on_worker(&self.device(), || {
            let (x, rotary) = (self.embed(tokens), self.rotary(positions));
            self.final_norm(self.layers_of_rows(x, Some(rows), &rotary, adapters, attention))
        })
    }

    /// All layers; both `[tokens, hidden]`.
    pub(crate) fn forward_layers(
        &self,
        x: Tensor<2>,
        rotary: &Rotary,
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        self.layers_of_rows(x, None, rotary, adapters, attention)
    }

    /// [`QwenModel::forward_layers`], of some rows if they are named: `[rows, hidden]`.
    fn layers_of_rows(
        &self,
        mut x: Tensor<2>,
        rows: Option<&[usize]>,
        rotary: &Rotary,
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        let last = self.layers.len().saturating_sub(1);
        for (i, layer) in self.layers.iter().enumerate() {
            let rows = rows.filter(|_| i == last);
            x = layer.forward_rows(i, x, rows, rotary, adapters, attention); // [tokens or rows, hidden]
        }
        x
    }

    /// Rows of the embedding, `[tokens, hidden]`, f32.
    ///
    /// # Panics
    /// When a token is not below `vocab_size`.
    pub fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        let _span = trace_span!("embed").entered();
        let ids = token_tensor(tokens, &self.embed_tokens.device()); // [tokens]
        let rows = self.embed_tokens.clone().select(0, ids); // [tokens, hidden]
        let rows = match self.embed_tokens.device() == self.device() {
            true => rows,
            // See `LoadOptions::embeddings_on_cpu`.
            false => rows.to_device(&self.device()),
        };
        rows.cast(DType::F32)
    }

    /// The norm between the last layer and lm_head; both `[tokens, hidden]`.
    pub fn final_norm(&self, x: Tensor<2>) -> Tensor<2> {
        let norm = Norm {
            weight: &self.norm,
            eps: self.config.rms_norm_eps,
        };
        rms_norm(x, norm)
    }

    /// Scores of the next token: hidden `[rows, hidden]` to logits `[rows, vocab]`, f32.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let _span = trace_span!("lm_head").entered();
        on_worker(&self.device(), || {
            self.lm_head.forward(hidden, &AdapterSelection::Base)
        })
    }

    /// The rotary angles of a step, shared by all layers.
    pub fn rotary(&self, positions: &[u32]) -> Rotary {
        self.frequencies.at(positions, &self.device().inner())
    }

    /// Sets the type in which the weights of all linear layers and of lm_head are multiplied; `Auto` is what suits the device.
    pub fn set_compute_dtype(&mut self, compute: ComputeDtype) {
        let compute = compute.resolve(&self.device());
        self.lm_head.compute = compute;
        self.linears_mut()
            .for_each(|linear| linear.compute = compute);
    }

    /// Makes one tensor of the adapters of each layer, for [`AdapterSelection::Stacked`]. Call it whenever adapters have
    /// changed.
    ///
    /// # Panics
    /// As Burn does when it reads from a device that had no room for them.
    pub fn stack_adapters(&mut self) {
        // A CPU computes rows that agree as a group, and reads no stack.
        if !is_gpu(&self.device()) {
            return;
        }
        let sums = self.linears_mut().filter_map(Linear::stack_adapters);
        if let Some(sum) = sums.reduce(|a, b| a + b) {
            let _ = sum.into_data().iter::<f32>().next();
        }
    }

    /// The linear layers of all decoder layers, in the order of the forward pass.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers
            .iter_mut()
            .flat_map(DecoderLayer::linears_mut)
            .map(|(_, linear)| linear)
    }

    /// The linear layers of all decoder layers with their names (`model.layers.0.self_attn.q_proj`).
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(i, layer)| {
                let name = move |module: &str| format!("model.layers.{i}.{module}");
                layer
                    .linears()
                    .map(move |(module, linear)| (name(module), linear))
            })
            .collect()
    }

    /// A linear layer by its name (`model.layers.0.self_attn.q_proj`).
    pub fn linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        let (index, module) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = self.layers.get_mut(index.parse::<usize>().ok()?)?;
        layer
            .linears_mut()
            .into_iter()
            .find(|(m, _)| *m == module)
            .map(|(_, linear)| linear)
    }

    /// Bytes of all weights on their device, with the int8 copy of lm_head; a tied lm_head counts once.
    pub fn num_bytes(&self) -> usize {
        let linears: usize = self.linears().iter().map(|(_, l)| linear_bytes(l)).sum();
        let head = if self.config.tie_word_embeddings {
            0
        } else {
            linear_bytes(&self.lm_head)
        };
        let embedding = Weight::Dense(self.embed_tokens.clone()).num_bytes();
        let norms = 4 * self.config.hidden_size * (2 * self.layers.len() + 1);
        let int8 = self.int8_lm_head.as_ref().map_or(0, Int8LmHead::num_bytes);
        linears + head + embedding + norms + int8
    }
}

fn linear_bytes(linear: &Linear) -> usize {
    let bias = linear.bias.as_ref().map_or(0, |b| 4 * b.dims()[0]);
    linear.weight.num_bytes() + bias
}

impl DecoderLayer {
    /// One layer over a packed step; `layer` is its index, for `attention`.
    ///
    /// # Shapes
    /// x and result `[tokens, hidden]`.
    pub fn forward(
        &self,
        layer: usize,
        x: Tensor<2>,
        rotary: &Rotary,
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        self.forward_rows(layer, x, None, rotary, adapters, attention)
    }

    /// The same of some rows, if they are named: `[rows, hidden]`.
    fn forward_rows(
        &self,
        layer: usize,
        x: Tensor<2>,
        rows: Option<&[usize]>,
        rotary: &Rotary,
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        let norm = |weight| Norm {
            weight,
            eps: self.rms_norm_eps,
        };
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        let x = attn.forward_residual(
            layer,
            x,
            rows,
            norm(&self.input_layernorm),
            rotary,
            adapters,
            attention,
        ); // [rows, hidden]
        mlp.forward_residual(x, norm(&self.post_attention_layernorm), adapters) // [rows, hidden]
    }

    /// The layer's linear layers with their names within the layer.
    pub fn linears(&self) -> [(&'static str, &Linear); 7] {
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        let [q, k, v, o, gate, up, down] = LINEARS;
        [
            (q, &attn.q_proj),
            (k, &attn.k_proj),
            (v, &attn.v_proj),
            (o, &attn.o_proj),
            (gate, &mlp.gate_proj),
            (up, &mlp.up_proj),
            (down, &mlp.down_proj),
        ]
    }

    /// As [`DecoderLayer::linears`], to change them.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        let (attn, mlp) = (&mut self.self_attn, &mut self.mlp);
        let [q, k, v, o, gate, up, down] = LINEARS;
        [
            (q, &mut attn.q_proj),
            (k, &mut attn.k_proj),
            (v, &mut attn.v_proj),
            (o, &mut attn.o_proj),
            (gate, &mut mlp.gate_proj),
            (up, &mut mlp.up_proj),
            (down, &mut mlp.down_proj),
        ]
    }
}

impl SelfAttention {
    /// `x + attention(norm(x))`: `[tokens, hidden]`, or `[rows, hidden]`.
    #[allow(clippy::too_many_arguments)]
    fn forward_residual(
        &self,
        layer: usize,
        x: Tensor<2>,
        rows: Option<&[usize]>,
        norm: Norm<'_>,
        rotary: &Rotary,
        adapters: &AdapterSelection,
        attention: &mut dyn Attention,
    ) -> Tensor<2> {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = norm_qkv(&x, norm, projections, adapters).map(|y| self.heads(y)); // [tokens, heads, head_dim]
        let q = head_norm(q, self.q_norm.as_ref(), norm.eps);
        let k = head_norm(k, self.k_norm.as_ref(), norm.eps);
        let dtype = self.o_proj.input_dtype(&x, adapters);
        let out = attention.attend(layer, q, k, v, rotary, dtype); // [tokens, heads, head_dim]
        let [tokens, heads, head_dim] = out.dims();
        let out = out.reshape([tokens, heads * head_dim]);
        let (x, out) = match rows {
            Some(rows) => {
                let x = select_rows(&x, rows);
                // The kernel of fewer rows may read another type.
                let dtype = self.o_proj.input_dtype(&x, adapters);
                (x, select_rows(&out, rows).cast(dtype))
            }
            None => (x, out),
        };
        linear_residual(x, out, &self.o_proj, adapters)
    }

    fn heads(&self, x: Tensor<2>) -> Tensor<3> {
        let [tokens, width] = x.dims();
        x.reshape([tokens, width / self.head_dim, self.head_dim])
    }
}

/// Qwen3 normalises every head of q and k; Qwen2 has no such weight.
fn head_norm(x: Tensor<3>, weight: Option<&Tensor<1>>, eps: f64) -> Tensor<3> {
    let Some(weight) = weight else { return x };
    let [tokens, heads, head_dim] = x.dims();
    let x = rms_norm(x.reshape([tokens * heads, head_dim]), Norm { weight, eps });
    x.reshape([tokens, heads, head_dim])
}
