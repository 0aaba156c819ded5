//! What `caravan bench` measures with: a load of requests against any OpenAI-compatible server, and figures
//! over many runs.
//!
//! Must never know which server it measures: all of them get the same requests.

pub mod ask;
pub mod load;
pub mod prompts;
pub mod spread;
pub mod sse;
