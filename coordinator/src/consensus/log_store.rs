//! The consensus library's view of the durable log.
//!
//! Must never wait for the disk where the library expects a callback, nor call back before it.

use std::fmt::Debug;
use std::ops::RangeBounds;

use caravan_core::limits;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{ErrorSubject, LogState, OptionalSend, RaftLogReader};

use super::store::{Store, Write, encode_rows};
use super::types::{Entry, Failure, LogId, TypeConfig, Vote};

impl RaftLogReader<TypeConfig> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, Failure> {
        self.entries(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, Failure> {
        self.entries(start..end, limits::RAFT_APPEND_BYTES).await
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Failure> {
        let memory = self.shared.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), Failure> {
        let vote = *vote;
        self.write(ErrorSubject::Vote, |done| Write::Vote { vote, done }).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, Failure> {
        Ok(self.shared.memory().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), Failure> {
        let first = {
            let mut memory = self.shared.memory();
            memory.committed = committed;
            !std::mem::replace(&mut memory.committed_dirty, true)
        };
        if first { self.send(Write::Committed) } else { Ok(()) }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, Failure> {
        Ok(self.shared.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, done: LogFlushed<TypeConfig>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (rows, last) = encode_rows(entries.into_iter())?;
        {
            let mut memory = self.shared.memory();
            memory.pending.extend(rows.iter().cloned());
            memory.last = last.or(memory.last);
        }
        self.send(Write::Append { rows, done })
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), Failure> {
        self.write(ErrorSubject::Log(from), |done| Write::Truncate { from: from.index, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), Failure> {
        self.write(ErrorSubject::Log(upto), |done| Write::Purge { upto, done }).await
    }
}
