//! candle-transformers' models on a folder that candle reads itself: `config.json` into candle's own types,
//! tensors by candle's reader, under the names that the files have.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma3, llama, mistral, phi3, qwen2, qwen3, qwen3_moe};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Forward, Outside, POSITIONS};

impl Outside {
    /// `magnitude`: what cosine and sine are multiplied by.
    pub fn of_folder(folder: &Path, magnitude: f64) -> Outside {
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "safetensors") {
                for (name, tensor) in candle_core::safetensors::load(path, &Device::Cpu).unwrap() {
                    tensors.insert(name, tensor.to_dtype(DType::F32).unwrap());
                }
            }
        }
        // Tables as long as the test needs them.
        config["max_position_embeddings"] = POSITIONS.into();
        let class = config["architectures"][0].as_str().unwrap().to_owned();
        if class == "Phi3ForCausalLM" {
            phi3_made_up_for(&mut config, &mut tensors, magnitude);
        }
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let forward = match &*class {
            "LlamaForCausalLM" => of_llama(config, vars),
            "MistralForCausalLM" => of_mistral(config, vars),
            "Qwen2ForCausalLM" => of_qwen2(config, vars),
            "Qwen3ForCausalLM" => of_qwen3(config, vars),
            "Qwen3MoeForCausalLM" => of_qwen3_moe(config, vars),
            "Gemma3ForCausalLM" => of_gemma3(config, vars),
            "Phi3ForCausalLM" => of_phi3(config, vars),
            other => panic!("{other}"),
        };
        Outside { forward: forward.unwrap(), whole: class == "MistralForCausalLM" }
    }
}

/// The file's keys, and those that candle wants besides.
fn read<T: DeserializeOwned>(mut config: Value, more: Value) -> T {
    for (key, value) in more.as_object().unwrap() {
        if config[key].is_null() {
            config[key] = value.clone();
        }
    }
    serde_json::from_value(config).unwrap()
}

fn no_window() -> Value {
    json!({"sliding_window": POSITIONS, "max_window_layers": 0, "use_sliding_window": false})
}

fn of_llama(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let config = read::<llama::LlamaConfig>(config, json!({})).into_config(false);
    let model = llama::Llama::load(vars, &config)?;
    let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position, &mut cache)))
}

/// candle counts the positions before a token's own.
fn of_mistral(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let mut config: mistral::Config = read(config, json!({"use_flash_attn": false}));
    config.sliding_window = config.sliding_window.map(|window| window - 1);
    let mut model = mistral::Model::new(&config, vars)?;
    Ok(Box::new(move |tokens, position| {
        model.clear_kv_cache();
        model.forward(tokens, position)
    }))
}

fn of_qwen2(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let mut model = qwen2::ModelForCausalLM::new(&read(config, no_window()), vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

fn of_qwen3(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let mut model = qwen3::ModelForCausalLM::new(&read(config, no_window()), vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

fn of_qwen3_moe(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let mut model = qwen3_moe::ModelForCausalLM::new(&read(config, no_window()), vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

fn of_gemma3(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let mut model = gemma3::Model::new(false, &read(config, json!({})), vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

fn of_phi3(config: Value, vars: VarBuilder<'_>) -> Result<Forward> {
    let mut model = phi3::Model::new(&read(config, json!({})), vars)?;
    Ok(Box::new(move |tokens, position| model.forward(tokens, position)))
}

/// candle multiplies by the factors that the model's definition divides by, and knows no magnitude: the rows
/// of query and key carry it. Its table takes the short factors.
fn phi3_made_up_for(config: &mut Value, tensors: &mut HashMap<String, Tensor>, magnitude: f64) {
    let long = config["rope_scaling"]["long_factor"].as_array().unwrap();
    let inverse: Vec<f64> = long.iter().map(|factor| 1.0 / factor.as_f64().unwrap()).collect();
    config["rope_scaling"] = json!({"short_factor": inverse, "long_factor": inverse, "type": "longrope"});
    let config_keys = config.as_object_mut().unwrap();
    config_keys.remove("original_max_position_embeddings");
    // candle knows one token at most.
    config_keys.remove("eos_token_id");
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let turned = (number("num_attention_heads") + number("num_key_value_heads")) * number("head_dim");
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("qkv_proj")) {
        let rows = tensor.dim(0).unwrap();
        let scaled = (tensor.narrow(0, 0, turned).unwrap() * magnitude).unwrap();
        let rest = tensor.narrow(0, turned, rows - turned).unwrap();
        *tensor = Tensor::cat(&[scaled, rest], 0).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
