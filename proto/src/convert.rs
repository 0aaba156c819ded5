//! Conversions that can fail say which field is wrong; the peer is at fault and a retry is useless.
//!
//! Must never panic on any input: these bytes come from the network.

use bytes::Bytes;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::request::{SampleOutcome, Sampled, TokenLogprob};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire;

/// A message of a peer that does not make sense.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the peer's message has a bad `{0}`: it may run another build; retrying won't help")]
    Bad(&'static str),
    #[error("the peer's message lacks `{0}`: it may run another build; retrying won't help")]
    Missing(&'static str),
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

/// Core values that travel as postcard bytes.
pub fn pack<T: Serialize>(value: &T) -> Result<Bytes, WireError> {
    postcard::to_stdvec(value).map(Bytes::from).map_err(|_| WireError::Bad("outgoing value"))
}

/// The reverse of `pack`; `field` names the message field for the error.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8], field: &'static str) -> Result<T, WireError> {
    postcard::from_bytes(bytes).map_err(|_| WireError::Bad(field))
}

/// A 32-byte digest field.
pub fn digest(bytes: &[u8]) -> Result<Digest, WireError> {
    bytes.try_into().map(Digest).map_err(|_| WireError::Bad("digest"))
}

impl From<Sampled> for wire::SampledToken {
    /// The caller sets `sequence`.
    fn from(sampled: Sampled) -> Self {
        wire::SampledToken {
            sequence: 0,
            token: sampled.token,
            logprob: sampled.logprob,
            top: sampled
                .top
                .into_iter()
                .map(|top| wire::TopLogprob { token: top.token, logprob: top.logprob })
                .collect(),
            failed: String::new(),
        }
    }
}

/// A sequence from which no token could be sampled, for the reason given. The caller sets `sequence`.
pub fn sample_failed(mut why: String) -> wire::SampledToken {
    why.truncate(why.floor_char_boundary(limits::SAMPLE_ERROR_BYTES));
    wire::SampledToken { failed: why, ..wire::SampledToken::default() }
}

/// What the last stage says of one sequence.
pub fn sample_outcome(token: wire::SampledToken) -> SampleOutcome {
    if !token.failed.is_empty() {
        return Err(sample_failed(token.failed).failed);
    }
    let top = token.top.into_iter();
    Ok(Sampled {
        token: token.token,
        logprob: token.logprob,
        top: top.map(|top| TokenLogprob { token: top.token, logprob: top.logprob }).collect(),
    })
}
