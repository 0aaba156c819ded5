//! The free KV pages of one pipeline. Pages have the same numbers at every stage.
//!
//! Must never hand out a page twice; who holds a page is the sequence's to know.

use std::collections::BTreeSet;

pub(super) struct Pages {
    free: BTreeSet<u32>,
    total: u32,
}

impl Pages {
    pub(super) fn new(total: u32) -> Pages {
        Pages { free: (0..total).collect(), total }
    }

    pub(super) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// The lowest free page: low numbers stay warm in caches, and the choice is the same every time.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop_first()
    }

    /// Takes `count` pages or none.
    pub(super) fn take_many(&mut self, count: u32) -> Option<Vec<u32>> {
        if self.free() < count {
            return None;
        }
        Some((0..count).filter_map(|_| self.take()).collect())
    }

    pub(super) fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
        debug_assert!(self.free.len() <= self.total as usize, "a page came back twice");
    }
}
