//! Makes small GGUF files for tests, good ones and bad ones. For tests of every crate; nothing else.
//!
//! Must never be used by the product itself.

mod families;

use crate::model::TensorType;

pub use families::SyntheticModel;
pub(crate) use families::spread;

/// Writes a GGUF file piece by piece, without checking anything.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    pub version: u32,
    /// Alignment used for the layout; set the key `general.alignment` too if it is not 32.
    pub alignment: usize,
    /// Key, type number, bytes.
    pub entries: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<SyntheticTensor>,
}

#[derive(Clone, Debug)]
pub struct SyntheticTensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// Written instead of the right offset.
    pub offset: Option<u64>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter { version: 3, alignment: 32, entries: Vec::new(), tensors: Vec::new() }
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl GgufWriter {
    /// A value given as its type number and bytes. Replaces the key if it is there.
    pub fn raw(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.entries.retain(|(name, ..)| name != key);
        self.raw_again(key, kind, bytes)
    }

    /// As `raw`, but a key may come twice.
    pub fn raw_again(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.entries.push((key.to_owned(), kind, bytes.to_owned()));
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(name, ..)| name != key);
        self
    }

    pub fn u32(self, key: &str, number: u32) -> Self {
        self.raw(key, 4, &number.to_le_bytes())
    }

    pub fn f32(self, key: &str, number: f32) -> Self {
        self.raw(key, 6, &number.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn text(self, key: &str, text: &str) -> Self {
        let mut bytes = Vec::new();
        put_text(&mut bytes, text.as_bytes());
        self.raw(key, 8, &bytes)
    }

    pub fn texts<T: AsRef<str>>(self, key: &str, texts: &[T]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((texts.len() as u64).to_le_bytes());
        texts.iter().for_each(|text| put_text(&mut bytes, text.as_ref().as_bytes()));
        self.raw(key, 9, &bytes)
    }

    pub fn i32s(self, key: &str, numbers: &[i32]) -> Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    pub fn f32s(self, key: &str, numbers: &[f32]) -> Self {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    /// Filled with the bytes of `weights`.
    pub fn tensor(self, name: &str, dims: &[u64], kind: TensorType, seed: u64) -> Self {
        let data = weights(name, dims, kind, seed);
        let kind = kind.gguf_number();
        self.raw_tensor(SyntheticTensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
            data,
            offset: None,
        })
    }

    pub fn raw_tensor(mut self, tensor: SyntheticTensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// Changes a tensor that is there.
    pub fn edit_tensor(mut self, name: &str, edit: impl FnOnce(&mut SyntheticTensor)) -> Self {
        if let Some(tensor) = self.tensors.iter_mut().find(|tensor| tensor.name == name) {
            edit(tensor);
        }
        self
    }

    pub fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// The whole file.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.entries {
            put_text(&mut out, key.as_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_text(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(self.alignment) as u64;
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

/// A fixed sequence of numbers: the finaliser of SplitMix64 over a counter.
pub fn mixed(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bytes of a tensor of plausible weights, the same for the same name and seed. Norms are near 1,
/// matrices near 0; scales of quantised blocks are small halves.
pub fn weights(name: &str, dims: &[u64], kind: TensorType, seed: u64) -> Vec<u8> {
    let start = name.bytes().fold(seed, |hash, byte| mixed(hash ^ u64::from(byte)));
    let elements: u64 = dims.iter().product();
    let centre = if name.contains("norm") { 1.0 } else { 0.0 };
    let (block, block_bytes) = kind.block();
    let mut out = Vec::new();
    for index in 0..elements / block {
        let noise = mixed(start.wrapping_add(index));
        if kind == TensorType::F32 {
            let weight = centre + ((noise >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.2;
            out.extend(weight.to_le_bytes());
            continue;
        }
        let at = out.len();
        while out.len() < at + block_bytes as usize {
            let next = mixed(noise.wrapping_add(out.len() as u64));
            out.extend(next.to_le_bytes());
        }
        out.truncate(at + block_bytes as usize);
        set_scales(&mut out[at..], kind, noise);
    }
    out
}

/// Halves around 0.002 where a block keeps its scale and minimum (or, for F16 and BF16, its element).
fn set_scales(block: &mut [u8], kind: TensorType, noise: u64) {
    let half = (0x1800u16 + (noise & 0x3ff) as u16).to_le_bytes();
    let negative = (0x9c00u16 + (noise >> 10 & 0x1ff) as u16).to_le_bytes();
    let places: &[(usize, [u8; 2])] = match kind {
        TensorType::F32 => &[],
        TensorType::F16 => &[(0, half)],
        TensorType::Bf16 => &[(0, (0x3c00u16 + (noise & 0xff) as u16).to_le_bytes())],
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[(0, half)],
        TensorType::Q4_1 | TensorType::Q5_1 => &[(0, half), (2, negative)],
        TensorType::Q4K | TensorType::Q5K => &[(0, half), (2, half)],
        TensorType::Q6K => &[(208, half)],
    };
    for (at, bytes) in places {
        block[*at..*at + 2].copy_from_slice(bytes);
    }
}

/// A whole tiny model of the Llama family, with a tokenizer that knows every byte.
#[derive(Clone, Debug)]
pub struct TinyLlama {
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub ffn: u32,
    pub context: u32,
    /// Of all matrices; norms are F32.
    pub kind: TensorType,
    pub tied: bool,
    pub seed: u64,
}

impl Default for TinyLlama {
    fn default() -> Self {
        TinyLlama {
            layers: 3,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            ffn: 96,
            context: 512,
            kind: TensorType::Q8_0,
            tied: true,
            seed: 1,
        }
    }
}

/// Control tokens of `TinyLlama`, ids 0 to 2.
pub const TINY_CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Merges of `TinyLlama`, in order of rank.
pub const TINY_MERGES: [&str; 8] = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "i n"];
pub const TINY_TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's table).
pub fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Tokens of `TinyLlama`: control tokens, the 256 bytes, one for each merge.
pub fn tiny_tokens() -> Vec<String> {
    let mut tokens: Vec<String> = TINY_CONTROL.iter().map(|token| (*token).to_owned()).collect();
    tokens.extend((0..=255).map(|byte| byte_character(byte).to_string()));
    tokens.extend(TINY_MERGES.iter().map(|merge| merge.replace(' ', "")));
    tokens
}

impl TinyLlama {
    /// The file as a writer, so that a test can spoil it.
    pub fn writer(&self) -> GgufWriter {
        let (hidden, ffn) = (u64::from(self.hidden), u64::from(self.ffn));
        let kv = u64::from(self.kv_heads) * hidden / u64::from(self.heads);
        let vocab = tiny_tokens().len() as u64;
        let matrix =
            |writer: GgufWriter, name: &str, dims: &[u64]| writer.tensor(name, dims, self.kind, self.seed);
        let norm =
            |writer: GgufWriter, name: &str| writer.tensor(name, &[hidden], TensorType::F32, self.seed);
        let mut out = matrix(self.metadata(), "token_embd.weight", &[hidden, vocab]);
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            out = norm(out, &name("attn_norm"));
            out = matrix(out, &name("ffn_down"), &[ffn, hidden]);
            out = matrix(out, &name("ffn_gate"), &[hidden, ffn]);
            out = matrix(out, &name("ffn_up"), &[hidden, ffn]);
            out = norm(out, &name("ffn_norm"));
            out = matrix(out, &name("attn_k"), &[hidden, kv]);
            out = matrix(out, &name("attn_output"), &[hidden, hidden]);
            out = matrix(out, &name("attn_q"), &[hidden, hidden]);
            out = matrix(out, &name("attn_v"), &[hidden, kv]);
        }
        out = norm(out, "output_norm.weight");
        match self.tied {
            true => out,
            false => matrix(out, "output.weight", &[hidden, vocab]),
        }
    }

    fn metadata(&self) -> GgufWriter {
        let tokens = tiny_tokens();
        let types: Vec<i32> =
            (0..tokens.len()).map(|token| if token < TINY_CONTROL.len() { 3 } else { 1 }).collect();
        GgufWriter::default()
            .text("general.architecture", "llama")
            .u32("llama.block_count", self.layers)
            .u32("llama.context_length", self.context)
            .u32("llama.embedding_length", self.hidden)
            .u32("llama.feed_forward_length", self.ffn)
            .u32("llama.attention.head_count", self.heads)
            .u32("llama.attention.head_count_kv", self.kv_heads)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .f32("llama.rope.freq_base", 10_000.0)
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "smollm")
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &types)
            .texts("tokenizer.ggml.merges", &TINY_MERGES)
            .u32("tokenizer.ggml.bos_token_id", 0)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .bool("tokenizer.ggml.add_bos_token", false)
            .text("tokenizer.chat_template", TINY_TEMPLATE)
    }
}
