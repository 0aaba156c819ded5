//! Which tensors a layer of each family has, by GGUF's names, with their dimensions.
//!
//! Must never leave out a tensor that a worker computes with: headers are checked against this list.

use super::{Family, ModelConfig};

/// One tensor of a layer. The whole name is `blk.N.` and `part`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTensor {
    pub part: &'static str,
    /// GGUF order: the first dimension is contiguous.
    pub dims: Vec<u64>,
}

impl LayerTensor {
    pub fn name(&self, layer: u32) -> String {
        format!("blk.{layer}.{}", self.part)
    }
}

impl Family {
    /// Query, key and value are biased.
    pub fn has_qkv_bias(self) -> bool {
        self == Family::Qwen2
    }

    /// Query, key and value are one tensor, and so are gate and up, in this order.
    pub fn is_fused(self) -> bool {
        self == Family::Phi3
    }

    /// Each head of query and key has a norm.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3)
    }

    /// What attention and feed-forward give has a norm too, before it is added.
    pub fn has_post_norms(self) -> bool {
        self == Family::Gemma3
    }
}

impl ModelConfig {
    /// The tensors of one layer; all layers have the same.
    pub fn layer_tensors(&self) -> Vec<LayerTensor> {
        let mut tensors = Vec::new();
        let mut add = |part, dims: &[u64]| tensors.push(LayerTensor { part, dims: dims.to_vec() });
        let hidden = u64::from(self.hidden);
        let queries = u64::from(self.heads) * u64::from(self.head_dim);
        let keys = u64::from(self.kv_heads) * u64::from(self.head_dim);
        add("attn_norm.weight", &[hidden]);
        if self.family.is_fused() {
            add("attn_qkv.weight", &[hidden, queries + 2 * keys]);
        } else {
            add("attn_q.weight", &[hidden, queries]);
            add("attn_k.weight", &[hidden, keys]);
            add("attn_v.weight", &[hidden, keys]);
        }
        if self.family.has_qkv_bias() {
            add("attn_q.bias", &[queries]);
            add("attn_k.bias", &[keys]);
            add("attn_v.bias", &[keys]);
        }
        if self.family.has_head_norms() {
            add("attn_q_norm.weight", &[u64::from(self.head_dim)]);
            add("attn_k_norm.weight", &[u64::from(self.head_dim)]);
        }
        add("attn_output.weight", &[queries, hidden]);
        add("ffn_norm.weight", &[hidden]);
        if self.family.has_post_norms() {
            add("post_attention_norm.weight", &[hidden]);
            add("post_ffw_norm.weight", &[hidden]);
        }
        let ffn = u64::from(self.ffn);
        match self.experts {
            Some(experts) => {
                let count = u64::from(experts.count);
                add("ffn_gate_inp.weight", &[hidden, count]);
                add("ffn_gate_exps.weight", &[hidden, ffn, count]);
                add("ffn_up_exps.weight", &[hidden, ffn, count]);
                add("ffn_down_exps.weight", &[ffn, hidden, count]);
            }
            None if self.family.is_fused() => {
                add("ffn_up.weight", &[hidden, 2 * ffn]);
                add("ffn_down.weight", &[ffn, hidden]);
            }
            None => {
                add("ffn_gate.weight", &[hidden, ffn]);
                add("ffn_up.weight", &[hidden, ffn]);
                add("ffn_down.weight", &[ffn, hidden]);
            }
        }
        tensors
    }
}
