//! Folders of safetensors files: held, cached, changed, and served to other nodes blob by blob.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;

use caravan_core::folder::synthetic::SyntheticFolder;
use caravan_core::model::{Experts, Family, ModelConfig, RopePairing, TensorType};
use tonic::Code;

use super::tests::{Setup, get, hash};
use super::*;

fn synthetic() -> SyntheticFolder {
    let config = ModelConfig {
        family: Family::Qwen3Moe,
        layers: 2,
        vocab: 280,
        rope_pairing: RopePairing::Halves,
        experts: Some(Experts { count: 3, used: 2, normalised: true }),
        ..ModelConfig::default()
    };
    let kinds = vec![TensorType::Bf16, TensorType::F16];
    SyntheticFolder { config, kinds, shards: 3, extra: Vec::new(), seed: 2 }
}

fn write(setup: &Setup) -> PathBuf {
    let path = setup.folder.path().join("model");
    std::fs::create_dir_all(&path).unwrap();
    for (name, bytes) in synthetic().files() {
        std::fs::write(path.join(name), bytes).unwrap();
    }
    path
}

/// The bytes of a tensor of ours.
fn wanted(name: &str) -> Vec<u8> {
    let tensors = synthetic().tensors();
    let of = |name: &str| tensors.iter().find(|tensor| tensor.0 == name).unwrap().3.clone();
    match name {
        "token_embd.weight" => of("model.embed_tokens.weight"),
        "blk.1.attn_k.weight" => of("model.layers.1.self_attn.k_proj.weight"),
        _ => (0..3).flat_map(|e| of(&format!("model.layers.0.mlp.experts.{e}.down_proj.weight"))).collect(),
    }
}

#[tokio::test]
async fn every_blob_is_served_from_every_offset_across_files() {
    let setup = Setup::new();
    let spec = setup.files.add("folder", &write(&setup), &|_| {}).unwrap();
    let address = setup.serve().await;
    let header = get(&address, &spec.header.0, 0).await.unwrap();
    assert_eq!((hash(&header), header.len() as u64), (spec.header, spec.header_bytes));
    for name in ["token_embd.weight", "blk.1.attn_k.weight", "blk.0.ffn_down_exps.weight"] {
        let tensor = spec.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let bytes = wanted(name);
        assert_eq!((tensor.digest, tensor.bytes), (hash(&bytes), bytes.len() as u64), "{name}");
        for offset in [0, 1, tensor.bytes / 3, tensor.bytes / 3 + 1, tensor.bytes - 1, tensor.bytes] {
            let got = get(&address, &tensor.digest.0, offset).await.unwrap();
            assert!(got == bytes[offset as usize..], "{name} from {offset}");
        }
        let beyond = get(&address, &tensor.digest.0, tensor.bytes + 1).await.unwrap_err();
        assert_eq!(beyond.code(), Code::OutOfRange);
    }
    // Another node gets the header, and so the text part.
    let other = Setup::new();
    let text = other.files.text_model(&spec, &[address]).await.unwrap();
    assert_eq!(
        text.encode("hello", false),
        setup.files.text_model(&spec, &[]).await.unwrap().encode("hello", false)
    );
}

#[test]
fn a_folder_is_hashed_once_until_one_of_its_files_changes() {
    let setup = Setup::new();
    let path = write(&setup);
    let spec = setup.files.add("folder", &path, &|_| {}).unwrap();
    let again = ModelFiles::open(setup.folder.path().join("cache")).unwrap();
    let calls = Cell::new(0);
    let cached = again.add("folder", &path, &|_| calls.set(calls.get() + 1)).unwrap();
    assert_eq!((calls.get(), &cached), (1, &spec));
    let shard = path.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let changed = again.add("folder", &path, &|_| {}).unwrap();
    assert_eq!(changed.header, spec.header);
    assert_ne!(changed.digest, spec.digest);
    let differing = changed.tensors.iter().zip(&spec.tensors).filter(|(new, old)| new.digest != old.digest);
    assert_eq!(differing.count(), 1);
}

#[tokio::test]
async fn a_tensor_is_not_served_when_one_of_its_files_changed() {
    let setup = Setup::new();
    let path = write(&setup);
    let spec = setup.files.add("folder", &path, &|_| {}).unwrap();
    let address = setup.serve().await;
    let stack = spec.tensors.iter().find(|tensor| tensor.name == "blk.0.ffn_down_exps.weight").unwrap();
    let shard = path.join("model-00003-of-00003.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, [&bytes[..], b"more"].concat()).unwrap();
    assert_eq!(get(&address, &stack.digest.0, 0).await.unwrap_err().code(), Code::NotFound);
    assert!(get(&address, &spec.header.0, 0).await.is_ok());
}

#[test]
fn folders_that_can_not_be_used_are_named() {
    let setup = Setup::new();
    let path = write(&setup);
    let why = || format!("{:#}", setup.files.add("folder", &path, &|_| {}).unwrap_err());
    let tokenizer = path.join("tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    let other =
        text.replace("\"Digits\",\"individual_digits\":true", "\"Digits\",\"individual_digits\":false");
    assert_ne!(other, text);
    std::fs::write(&tokenizer, other).unwrap();
    let error = why();
    let place = path.display().to_string();
    assert!(error.contains(&place) && error.contains("digit-runs"), "{error}");
    std::fs::remove_file(path.join("config.json")).unwrap();
    assert!(why().contains("lacks config.json"));
    assert!(setup.files.holds().is_empty());
}
