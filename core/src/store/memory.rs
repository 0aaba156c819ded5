//! Rows in ordered maps: what the file's tables must be equal to.
//!
//! Must never be what a coordinator keeps its objects in.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::rows::{Damaged, Key, Look, Order, Row, Rows, Scan, Table};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRows(pub BTreeMap<(Table, Key), Vec<u8>>);

impl Look for MemoryRows {
    type Error = Damaged;

    fn get(&self, table: Table, key: &Key) -> Result<Option<Vec<u8>>, Damaged> {
        Ok(self.0.get(&(table, key.clone())).cloned())
    }

    fn scan(&self, table: Table, scan: &Scan) -> Result<Vec<Row>, Damaged> {
        let prefixed = |key: &Key| key.0.starts_with(&scan.prefix.0);
        let from = Bound::Included((table, scan.prefix.clone()));
        let all =
            self.0.range((from, Bound::Unbounded)).take_while(|((at, key), _)| *at == table && prefixed(key));
        let row = |((_, key), value): (&(Table, Key), &Vec<u8>)| (key.clone(), value.clone());
        let beyond = |key: &Key| match (&scan.beyond, scan.order) {
            (None, _) => true,
            (Some(beyond), Order::Ascending) => key > beyond,
            (Some(beyond), Order::Descending) => key < beyond,
        };
        let mut found: Vec<Row> = all.map(row).filter(|(key, _)| beyond(key)).collect();
        if scan.order == Order::Descending {
            found.reverse();
        }
        found.truncate(scan.limit);
        Ok(found)
    }
}

impl Rows for MemoryRows {
    fn put(&mut self, table: Table, key: &Key, value: &[u8]) -> Result<(), Damaged> {
        self.0.insert((table, key.clone()), value.to_vec());
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &Key) -> Result<(), Damaged> {
        self.0.remove(&(table, key.clone()));
        Ok(())
    }
}
