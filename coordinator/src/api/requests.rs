//! The requests that this coordinator serves now, for `/admin/v1/requests`. Bounded, in memory.
//!
//! Must never hold prompts or answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Value, json};

struct Entry {
    id: String,
    model: String,
    prompt_tokens: u64,
    choices: usize,
    stream: bool,
    started: Instant,
    emitted: Arc<AtomicU64>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

/// All requests that are being answered.
#[derive(Clone, Default)]
pub struct Requests {
    inner: Arc<Mutex<Inner>>,
}

/// One request's place; dropping it takes the request off the list.
pub struct Ticket {
    requests: Requests,
    key: u64,
    emitted: Arc<AtomicU64>,
}

impl Requests {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refused when this coordinator serves as many as it may.
    pub fn open(&self, job: &super::job::Job) -> Result<Ticket, Refusal> {
        let emitted = Arc::new(AtomicU64::new(0));
        let entry = Entry {
            id: job.envelope.id.clone(),
            model: job.envelope.model.clone(),
            prompt_tokens: job.prompt_tokens,
            choices: job.records.len(),
            stream: job.common.stream,
            started: Instant::now(),
            emitted: emitted.clone(),
        };
        let mut inner = self.lock();
        if inner.entries.len() >= limits::REQUESTS_SERVED {
            let message =
                format!("this coordinator serves {} requests already; try again", inner.entries.len());
            return Err(Refusal::cluster("overloaded", limits::RETRY_AFTER_MS, message));
        }
        let key = inner.next;
        inner.next += 1;
        inner.entries.insert(key, entry);
        Ok(Ticket { requests: self.clone(), key, emitted })
    }

    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Oldest first.
    pub fn json(&self) -> Value {
        let inner = self.lock();
        let entries = inner.entries.values().map(|entry| {
            let emitted = entry.emitted.load(Ordering::Relaxed);
            json!({
                "id": entry.id,
                "model": entry.model,
                "state": if emitted == 0 { "waiting" } else { "generating" },
                "stream": entry.stream,
                "choices": entry.choices,
                "prompt_tokens": entry.prompt_tokens,
                "emitted_tokens": emitted,
                "age_ms": u64::try_from(entry.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
        });
        entries.collect()
    }
}

impl Ticket {
    pub fn emitted(&self) {
        self.emitted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.requests.lock().entries.remove(&self.key);
    }
}
