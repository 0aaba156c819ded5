//! candle-transformers' models of the families, on the weights of a GGUF file that candle reads and
//! dequantises to f32 itself.
//!
//! Where candle differs from the models' own definition, the weights or parameters it gets make up
//! for it; each place says so.

#![allow(dead_code)]

use std::collections::HashMap;
use std::io::Cursor;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, llama, mistral, phi3, qwen2, qwen3, qwen3_moe};
use caravan_core::model::{Family, ModelConfig, RopeScaling};

/// Positions that the tables of candle's models have.
const POSITIONS: usize = 256;

type Forward = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor>>;

pub struct Outside {
    /// Logits of the last of some tokens from a position on.
    forward: Forward,
    /// It must be given all tokens from the first on at once.
    whole: bool,
}

/// Factors by the formula of Llama 3.1 and later, for the 3.2 models: long waves are turned 32 times
/// slower, short ones as before, those between by interpolation.
pub fn llama_3_2_factors(config: &ModelConfig) -> Vec<f32> {
    let (factor, low, high, first) = (32.0, 1.0, 4.0, 8_192.0);
    let pairs = config.rope_dim / 2;
    let of = |i: u32| {
        let step = f64::from(config.rope_base).powf(-f64::from(i) / f64::from(pairs));
        let wave = 2.0 * std::f64::consts::PI / step;
        let smooth: f64 = ((first / wave - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..pairs).map(of).collect()
}

impl Outside {
    pub fn new(bytes: &[u8], config: &ModelConfig) -> Outside {
        let tensors = tensors(bytes, config).unwrap();
        let factors = tensors.get("factors").map(|factors| factors.to_vec1::<f32>().unwrap());
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let forward = match config.family {
            // With a window it is Mistral's model, else Llama's.
            Family::Llama if config.window.is_some() => mistral_model(config, vars),
            Family::Llama => llama_model(config, vars),
            Family::Qwen2 => qwen2_model(config, vars),
            Family::Qwen3 => qwen3_model(config, vars),
            Family::Qwen3Moe => qwen3_moe_model(config, vars),
            Family::Gemma3 => gemma3_model(config, vars),
            Family::Phi3 => phi3_model(config, vars, factors),
        };
        let whole = config.family == Family::Llama && config.window.is_some();
        Outside { forward: forward.unwrap(), whole }
    }

    /// Positions with their logits: all of them, or some where each costs the whole text before it.
    pub fn logits(&mut self, tokens: &[u32]) -> Vec<(usize, Vec<f32>)> {
        let mut out = Vec::new();
        for position in 0..tokens.len() {
            let first = match self.whole {
                true if position % 7 != 6 => continue,
                true => 0,
                false => position,
            };
            let input = &tokens[first..=position];
            let input = Tensor::from_vec(input.to_vec(), (1, input.len()), &Device::Cpu).unwrap();
            let logits = (self.forward)(&input, first).unwrap();
            out.push((position, logits.flatten_all().unwrap().to_vec1().unwrap()));
        }
        out
    }
}

impl Outside {
    /// Logits behind `tokens`, the next one of each sequence, all at `position`.
    pub fn column(&mut self, tokens: &[u32], position: usize) -> Vec<Vec<f32>> {
        let input = Tensor::from_vec(tokens.to_vec(), (tokens.len(), 1), &Device::Cpu).unwrap();
        let logits = (self.forward)(&input, position).unwrap();
        logits.reshape((tokens.len(), ())).unwrap().to_vec2().unwrap()
    }
}

/// The file's tensors by candle's names.
fn tensors(bytes: &[u8], config: &ModelConfig) -> Result<HashMap<String, Tensor>> {
    let mut reader = Cursor::new(bytes);
    let content = gguf_file::Content::read(&mut reader)?;
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut reader, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["token_embd", _] => drop(tensors.insert("model.embed_tokens.weight".to_owned(), tensor)),
            ["output_norm", _] => {
                drop(tensors.insert("model.norm.weight".to_owned(), norm(config, tensor)?));
            }
            ["output", _] => drop(tensors.insert("lm_head.weight".to_owned(), tensor)),
            ["rope_factors_long", _] => drop(tensors.insert("factors".to_owned(), tensor)),
            ["rope_factors_short" | "rope_freqs", _] => {}
            ["blk", layer, part, what] => {
                for (part, tensor) in layer_tensors(config, part, tensor)? {
                    tensors.insert(format!("model.layers.{layer}.{part}.{what}"), tensor);
                }
            }
            _ => panic!("unknown tensor {name}"),
        }
    }
    Ok(tensors)
}

fn layer_tensors(config: &ModelConfig, part: &str, tensor: Tensor) -> Result<Vec<(String, Tensor)>> {
    let gemma = config.family == Family::Gemma3;
    let name = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_norm" => "input_layernorm",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" if config.family == Family::Phi3 => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.gate",
        "ffn_gate_exps" | "ffn_up_exps" | "ffn_down_exps" => {
            let name = part.trim_start_matches("ffn_").trim_end_matches("_exps");
            let experts = (0..tensor.dim(0)?).map(|expert| {
                Ok((format!("mlp.experts.{expert}.{name}_proj"), tensor.get(expert)?.contiguous()?))
            });
            return experts.collect();
        }
        other => panic!("unknown tensor {other}"),
    };
    let tensor = match part {
        "attn_q" if config.family == Family::Llama => unpair(&tensor, config.heads as usize)?,
        "attn_k" if config.family == Family::Llama => unpair(&tensor, config.kv_heads as usize)?,
        "attn_qkv" => magnified(config, &tensor)?,
        // candle knows no scale but 1 / sqrt(head_dim): the norm of the query carries the rest.
        "attn_q_norm" if config.attention_scale.is_some() => {
            let scale = f64::from(config.attention_scale.unwrap()) * f64::from(config.head_dim).sqrt();
            norm(config, (tensor * scale)?)?
        }
        _ if part.contains("norm") => norm(config, tensor)?,
        _ => tensor,
    };
    Ok(vec![(name.to_owned(), tensor)])
}

/// candle's Gemma adds 1 to the weights of norms; the file's already hold it.
fn norm(config: &ModelConfig, tensor: Tensor) -> Result<Tensor> {
    if config.family == Family::Gemma3 { tensor - 1.0 } else { Ok(tensor) }
}

/// The file's query and key rows stand for neighbouring pairs (head, pair, side); candle rotates
/// halves (head, side, pair).
fn unpair(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = tensor.dims2()?;
    let pairs = tensor.reshape((heads, rows / heads / 2, 2, width))?;
    pairs.transpose(1, 2)?.contiguous()?.reshape((rows, width))
}

/// candle knows no magnitude of the rotation: the rows of query and key carry it.
fn magnified(config: &ModelConfig, qkv: &Tensor) -> Result<Tensor> {
    let RopeScaling::Factors { magnitude, .. } = config.rope_scaling else { return Ok(qkv.clone()) };
    let turned = ((config.heads + config.kv_heads) * config.head_dim) as usize;
    let rows = qkv.dim(0)?;
    Tensor::cat(
        &[(qkv.narrow(0, 0, turned)? * f64::from(magnitude))?, qkv.narrow(0, turned, rows - turned)?],
        0,
    )
}

fn llama_model(config: &ModelConfig, vars: VarBuilder<'_>) -> Result<Forward> {
    let scaling = |factor, low, high, first| llama::Llama3RopeConfig {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: first,
        rope_type: llama::Llama3RopeType::Llama3,
    };
    let config = llama::Config {
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        vocab_size: config.vocab as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        num_key_value_heads: config.kv_heads as usize,
        use_flash_attn: false,
        rms_norm_eps: f64::from(config.norm_eps),
        rope_theta: config.rope_base,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: match config.rope_scaling {
            RopeScaling::None => None,
            // With a first context of one position every wave counts as long.
            RopeScaling::Linear { factor } => Some(scaling(factor, 1.0, 4.0, 1)),
            RopeScaling::Factors { .. } => Some(scaling(32.0, 1.0, 4.0, 8_192)),
        },
        max_position_embeddings: POSITIONS,
        tie_word_embeddings: config.tied,
    };
    let model = llama::Llama::load(vars, &config)?;
    let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position, &mut cache)))
}

fn mistral_model(config: &ModelConfig, vars: VarBuilder<'_>) -> Result<Forward> {
    let config = mistral::Config {
        vocab_size: config.vocab as usize,
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        head_dim: Some(config.head_dim as usize),
        num_key_value_heads: config.kv_heads as usize,
        hidden_act: Activation::Silu,
        max_position_embeddings: POSITIONS,
        rms_norm_eps: f64::from(config.norm_eps),
        rope_theta: f64::from(config.rope_base),
        // candle counts the positions before a token's own, and looks at the window only where it
        // is given several tokens at once.
        sliding_window: config.window.map(|window| window.tokens as usize - 1),
        use_flash_attn: false,
    };
    let mut model = mistral::Model::new(&config, vars)?;
    Ok(Box::new(move |tokens, position| {
        model.clear_kv_cache();
        model.forward(tokens, position)
    }))
}

fn qwen2_model(config: &ModelConfig, vars: VarBuilder<'_>) -> Result<Forward> {
    let config = qwen2::Config {
        vocab_size: config.vocab as usize,
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        num_key_value_heads: config.kv_heads as usize,
        max_position_embeddings: POSITIONS,
        sliding_window: POSITIONS,
        max_window_layers: 0,
        tie_word_embeddings: config.tied,
        rope_theta: f64::from(config.rope_base),
        rms_norm_eps: f64::from(config.norm_eps),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut model = qwen2::ModelForCausalLM::new(&config, vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

fn qwen3_model(config: &ModelConfig, vars: VarBuilder<'_>) -> Result<Forward> {
    let config = qwen3::Config {
        vocab_size: config.vocab as usize,
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        head_dim: config.head_dim as usize,
        attention_bias: false,
        num_key_value_heads: config.kv_heads as usize,
        max_position_embeddings: POSITIONS,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: config.tied,
        rope_theta: f64::from(config.rope_base),
        rms_norm_eps: f64::from(config.norm_eps),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut model = qwen3::ModelForCausalLM::new(&config, vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

fn qwen3_moe_model(config: &ModelConfig, vars: VarBuilder<'_>) -> Result<Forward> {
    let experts = config.experts.unwrap();
    let config = qwen3_moe::Config {
        vocab_size: config.vocab as usize,
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        head_dim: config.head_dim as usize,
        attention_bias: false,
        num_key_value_heads: config.kv_heads as usize,
        max_position_embeddings: POSITIONS,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: config.tied,
        rope_theta: f64::from(config.rope_base),
        rms_norm_eps: f64::from(config.norm_eps),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
        decoder_sparse_step: 1,
        moe_intermediate_size: config.ffn as usize,
        num_experts_per_tok: experts.used as usize,
        num_experts: experts.count as usize,
        norm_topk_prob: experts.normalised,
    };
    let mut model = qwen3_moe::ModelForCausalLM::new(&config, vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

/// One token at a time, its cache of local layers holds exactly the window.
fn gemma3_model(config: &ModelConfig, vars: VarBuilder<'_>) -> Result<Forward> {
    let window = config.window.unwrap();
    let config = gemma3::Config {
        attention_bias: false,
        head_dim: config.head_dim as usize,
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        num_attention_heads: config.heads as usize,
        num_hidden_layers: config.layers as usize,
        num_key_value_heads: config.kv_heads as usize,
        rms_norm_eps: f64::from(config.norm_eps),
        rope_theta: f64::from(config.rope_base),
        rope_local_base_freq: f64::from(window.rope_base.unwrap()),
        vocab_size: config.vocab as usize,
        final_logit_softcapping: config.logit_cap.map(f64::from),
        attn_logit_softcapping: config.attention_cap.map(f64::from),
        query_pre_attn_scalar: config.head_dim as usize,
        sliding_window: window.tokens as usize,
        sliding_window_pattern: window.global_every as usize,
        max_position_embeddings: POSITIONS,
    };
    let mut model = gemma3::Model::new(false, &config, vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

/// candle multiplies by the factors that the model's definition divides by.
fn phi3_model(config: &ModelConfig, vars: VarBuilder<'_>, factors: Option<Vec<f32>>) -> Result<Forward> {
    let inverse = |factors: Vec<f32>| -> Vec<f32> { factors.iter().map(|factor| 1.0 / factor).collect() };
    let config = phi3::Config {
        vocab_size: config.vocab as usize,
        hidden_act: Activation::Silu,
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        num_key_value_heads: config.kv_heads as usize,
        rms_norm_eps: f64::from(config.norm_eps),
        rope_theta: f64::from(config.rope_base),
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: factors.map(inverse).map(|factors| phi3::RopeScaling {
            short_factor: factors.clone(),
            long_factor: factors,
            type_: phi3::RopeScalingType::LongRope,
        }),
        max_position_embeddings: POSITIONS,
        original_max_position_embeddings: None,
        partial_rotary_factor: None,
        tie_word_embeddings: config.tied,
    };
    let mut model = phi3::Model::new(&config, vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}
