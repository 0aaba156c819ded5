//! The safetensors files of a folder: one, or several that an index names.
//!
//! Must never follow a name of the index out of the folder, nor use a tensor that another file has as well.

use std::collections::{BTreeMap, BTreeSet};

use super::json::{self, Object};
use super::safetensors::{self, Entry};
use super::{Files, FolderError, INDEX, Shard, WEIGHTS, bad, shown};
use crate::limits;

/// A tensor with the index of its file.
pub(super) type Found = (usize, Entry);

/// The files, and every tensor.
pub(super) fn read(files: &mut Files) -> Result<(Vec<Shard>, Vec<Found>), FolderError> {
    let index = match files.bytes(WEIGHTS)? {
        Some(_) => None,
        None => match files.optional(INDEX, limits::FOLDER_TABLE_BYTES)? {
            Some(bytes) => Some(index(&bytes)?),
            None => return bad(format!("the folder has neither {WEIGHTS} nor {INDEX}")),
        },
    };
    let names: BTreeSet<&str> = match &index {
        None => BTreeSet::from([WEIGHTS]),
        Some(index) => index.values().map(String::as_str).collect(),
    };
    if names.len() > limits::FOLDER_SHARDS {
        return bad(format!("{INDEX} names {} files, more than {}", names.len(), limits::FOLDER_SHARDS));
    }
    let (mut shards, mut entries) = (Vec::new(), Vec::new());
    for (number, name) in names.into_iter().enumerate() {
        let (bytes, found) = shard(files, name)?;
        shards.push(Shard { name: name.to_owned(), bytes });
        entries.extend(found.into_iter().map(|entry| (number, entry)));
        if entries.len() > limits::FOLDER_TENSORS {
            return bad(format!("the files have more than {} tensors", limits::FOLDER_TENSORS));
        }
    }
    if let Some(index) = &index {
        check(index, &shards, &entries)?;
    }
    Ok((shards, entries))
}

/// Length and tensors of one file.
fn shard(files: &mut Files, name: &str) -> Result<(u64, Vec<Entry>), FolderError> {
    let Some(bytes) = files.bytes(name)? else {
        return bad(format!("the folder lacks {name}, which {INDEX} names"));
    };
    let first = files.part(name, 0, safetensors::LENGTH_BYTES.min(bytes))?;
    let within = |error: FolderError| error.within(name);
    let length = safetensors::json_bytes(&first, bytes).map_err(within)?;
    let json = files.part(name, safetensors::LENGTH_BYTES, length)?;
    Ok((bytes, safetensors::parse(&json, bytes).map_err(within)?))
}

/// The file of each tensor.
fn index(bytes: &[u8]) -> Result<BTreeMap<String, String>, FolderError> {
    let map = json::parse(INDEX, bytes)?;
    let index = Object::new(INDEX, &map);
    let Some(serde_json::Value::Object(weights)) = index.get("weight_map") else {
        return index.wrong("weight_map", "an object");
    };
    if weights.is_empty() {
        return bad(format!("{INDEX} names no tensor"));
    }
    let mut found = BTreeMap::new();
    for (tensor, file) in weights {
        let plain = |name: &&str| name.ends_with(".safetensors") && !name.contains(['/', '\\', '\0']);
        let Some(file) = file.as_str().filter(plain) else {
            return bad(format!(
                "{INDEX}: the file of tensor {} must be the name of a safetensors file of the folder, not {}",
                shown(tensor),
                json::brief(file)
            ));
        };
        found.insert(tensor.clone(), file.to_owned());
    }
    Ok(found)
}

/// Index and files name the same tensors, each in one file.
fn check(
    index: &BTreeMap<String, String>,
    shards: &[Shard],
    entries: &[(usize, Entry)],
) -> Result<(), FolderError> {
    let mut found = BTreeSet::new();
    for (shard, entry) in entries {
        let file = &shards[*shard].name;
        match index.get(&entry.name) {
            None => {
                return bad(format!(
                    "{file} has the tensor {}, which {INDEX} does not name",
                    shown(&entry.name)
                ));
            }
            Some(named) if named != file => {
                return bad(format!(
                    "{file} has the tensor {}, which {INDEX} says {named} has",
                    shown(&entry.name)
                ));
            }
            Some(_) => found.insert(&entry.name),
        };
    }
    match index.iter().find(|(tensor, _)| !found.contains(tensor)) {
        None => Ok(()),
        Some((tensor, file)) => {
            bad(format!("{file} lacks the tensor {}, which {INDEX} names", shown(tensor)))
        }
    }
}
