//! The store's rows in redb tables: read in a frozen transaction, changed in a write transaction.
//!
//! Must never open a transaction itself: whoever does decides what belongs together.

use std::collections::BTreeSet;
use std::ops::Bound;

use caravan_core::store::{Damaged, Key, Look, Order, Row, Rows, Scan, Table};
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

/// Why rows can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error("{0}")]
    File(Box<redb::Error>),
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// Every failure of the file is told in its own words.
macro_rules! from_file {
    ($($error:ty),*) => {
        $(impl From<$error> for RowsError {
            fn from(error: $error) -> RowsError {
                RowsError::File(Box::new(error.into()))
            }
        })*
    };
}

from_file!(
    redb::CommitError,
    redb::DatabaseError,
    redb::SetDurabilityError,
    redb::StorageError,
    redb::TransactionError,
    TableError
);

impl From<std::io::Error> for RowsError {
    fn from(error: std::io::Error) -> RowsError {
        RowsError::File(Box::new(redb::Error::Io(error)))
    }
}

/// A table of the file.
pub fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// Rows as they were at one log position.
pub struct View(ReadTransaction);

impl View {
    pub fn new(transaction: ReadTransaction) -> View {
        View(transaction)
    }

    /// `None` where nothing was ever written to the table.
    pub fn open(
        &self,
        table: Table,
    ) -> Result<Option<ReadOnlyTable<&'static [u8], &'static [u8]>>, RowsError> {
        match self.0.open_table(definition(table)) {
            Ok(found) => Ok(Some(found)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn transaction(&self) -> &ReadTransaction {
        &self.0
    }
}

impl Look for View {
    type Error = RowsError;

    fn get(&self, table: Table, key: &Key) -> Result<Option<Vec<u8>>, RowsError> {
        match self.open(table)? {
            Some(open) => get(&open, key),
            None => Ok(None),
        }
    }

    fn scan(&self, table: Table, asked: &Scan) -> Result<Vec<Row>, RowsError> {
        match self.open(table)? {
            Some(open) => scan(&open, asked),
            None => Ok(Vec::new()),
        }
    }
}

type OpenTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// Rows that a write transaction changes.
pub struct Change<'t> {
    open: Vec<OpenTable<'t>>,
    /// Keys of `Table::Responses` that were written or removed.
    pub responses: BTreeSet<Key>,
}

impl<'t> Change<'t> {
    pub fn new(transaction: &'t WriteTransaction) -> Result<Change<'t>, RowsError> {
        let open: Result<Vec<OpenTable<'t>>, TableError> =
            Table::ALL.iter().map(|table| transaction.open_table(definition(*table))).collect();
        Ok(Change { open: open?, responses: BTreeSet::new() })
    }

    fn table(&self, table: Table) -> Result<&OpenTable<'t>, RowsError> {
        self.open.get(usize::from(table.number())).ok_or_else(|| unknown(table))
    }

    fn table_mut(&mut self, table: Table) -> Result<&mut OpenTable<'t>, RowsError> {
        self.open.get_mut(usize::from(table.number())).ok_or_else(|| unknown(table))
    }

    /// Puts a row that nobody needs to hear of.
    pub fn put_quietly(&mut self, table: Table, key: &Key, value: &[u8]) -> Result<(), RowsError> {
        self.table_mut(table)?.insert(key.0.as_slice(), value)?;
        Ok(())
    }

    fn note(&mut self, table: Table, key: &Key) {
        if table == Table::Responses {
            self.responses.insert(key.clone());
        }
    }
}

fn unknown(table: Table) -> RowsError {
    RowsError::Damaged(Damaged { table: table.name(), why: "no such table".to_owned() })
}

impl Look for Change<'_> {
    type Error = RowsError;

    fn get(&self, table: Table, key: &Key) -> Result<Option<Vec<u8>>, RowsError> {
        get(self.table(table)?, key)
    }

    fn scan(&self, table: Table, asked: &Scan) -> Result<Vec<Row>, RowsError> {
        scan(self.table(table)?, asked)
    }
}

impl Rows for Change<'_> {
    fn put(&mut self, table: Table, key: &Key, value: &[u8]) -> Result<(), RowsError> {
        self.table_mut(table)?.insert(key.0.as_slice(), value)?;
        self.note(table, key);
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &Key) -> Result<(), RowsError> {
        self.table_mut(table)?.remove(key.0.as_slice())?;
        self.note(table, key);
        Ok(())
    }
}

fn get<T: ReadableTable<&'static [u8], &'static [u8]>>(
    table: &T,
    key: &Key,
) -> Result<Option<Vec<u8>>, RowsError> {
    Ok(table.get(key.0.as_slice())?.map(|value| value.value().to_vec()))
}

fn scan<T: ReadableTable<&'static [u8], &'static [u8]>>(
    table: &T,
    asked: &Scan,
) -> Result<Vec<Row>, RowsError> {
    let end = asked.prefix.after_prefix();
    let mut from = Bound::Included(asked.prefix.0.as_slice());
    let mut to = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.0.as_slice()));
    if let Some(beyond) = asked.beyond.as_ref().filter(|beyond| beyond.0.starts_with(&asked.prefix.0)) {
        match asked.order {
            Order::Ascending => from = Bound::Excluded(beyond.0.as_slice()),
            Order::Descending => to = Bound::Excluded(beyond.0.as_slice()),
        }
    }
    let mut range = table.range::<&[u8]>((from, to))?;
    let mut found = Vec::new();
    while found.len() < asked.limit {
        let row = match asked.order {
            Order::Ascending => range.next(),
            Order::Descending => range.next_back(),
        };
        let Some(row) = row else { break };
        let (key, value) = row?;
        found.push((Key(key.value().to_vec()), value.value().to_vec()));
    }
    Ok(found)
}
