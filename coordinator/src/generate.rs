//! The one seam that every mode uses: a request record in, tokens out, over any failure.

use caravan_core::ids::CoordinatorId;
use caravan_core::request::{GenerateEvent, RequestRecord};

use crate::consensus::Consensus;
use crate::driver::Drivers;

/// Finds the driver of a record's pipeline, here or on another coordinator, and submits the record
/// again with the tokens emitted so far whenever driver or pipeline go away.
#[derive(Clone)]
pub struct Generator {}

/// Tokens of one sequence. Dropping it cancels the sequence.
pub struct GenerateStream {}

impl Generator {
    pub fn new(_me: CoordinatorId, _consensus: Consensus, _drivers: Drivers) -> Generator {
        todo!()
    }

    pub fn generate(&self, _record: RequestRecord) -> GenerateStream {
        todo!()
    }
}

impl GenerateStream {
    /// The next event: `Token`s, then one `Finished` or `Refused`, then `None`. Never `Interrupted`.
    pub async fn next(&mut self) -> Option<GenerateEvent> {
        todo!()
    }
}
