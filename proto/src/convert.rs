//! Conversions that can fail say which field is wrong; the peer is at fault and a retry is useless.
//!
//! Must never panic on any input: these bytes come from the network.

use bytes::Bytes;
use caravan_core::error::Fault;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::request::{SampleFault, SampleOutcome, Sampled, TokenLogprob};
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
            ..wire::SampledToken::default()
        }
    }
}

/// What the last stage has for a sequence. The caller sets `sequence`.
pub fn sampled_token(outcome: SampleOutcome) -> wire::SampledToken {
    match outcome {
        SampleOutcome::Token(sampled) => sampled.into(),
        SampleOutcome::Later => wire::SampledToken { later: true, ..wire::SampledToken::default() },
        SampleOutcome::Failed(SampleFault { fault, mut why }) => {
            why.truncate(why.floor_char_boundary(limits::SAMPLE_ERROR_BYTES));
            let client_fault = fault == Fault::Client;
            wire::SampledToken { failed: why, client_fault, ..wire::SampledToken::default() }
        }
    }
}

/// The reverse of `sampled_token`.
pub fn sample_outcome(token: wire::SampledToken) -> SampleOutcome {
    if token.later {
        return SampleOutcome::Later;
    }
    if !token.failed.is_empty() {
        let fault = if token.client_fault { Fault::Client } else { Fault::Operator };
        let mut why = token.failed;
        why.truncate(why.floor_char_boundary(limits::SAMPLE_ERROR_BYTES));
        return SampleOutcome::Failed(SampleFault { fault, why });
    }
    let top = token.top.into_iter();
    SampleOutcome::Token(Sampled {
        token: token.token,
        logprob: token.logprob,
        top: top.map(|top| TokenLogprob { token: top.token, logprob: top.logprob }).collect(),
    })
}
