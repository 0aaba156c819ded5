//! The ordered rows that the objects are kept in, and how their keys are made.
//!
//! Must never know what holds the rows: a transaction of a file, or a map in a test.

/// The tables. A number is part of the snapshot format: never give one a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// tenant, response id → `Response`.
    Responses,
    /// tenant, conversation id → `Conversation`.
    Conversations,
    /// tenant, object id, part, chunk → bytes.
    Bodies,
    /// tenant, object id, list, number → `Item`.
    Items,
    /// tenant, object id, list, item id → number.
    ItemNumbers,
    /// tenant, kind, time, object id → nothing: one order for each list call.
    Lists,
    /// time, tenant, response id → nothing: runs that are not over.
    Unfinished,
    /// time, kind, tenant, id → nothing: what is to be removed when.
    Expiry,
    /// tenant, key → `OnceRow`.
    Once,
    /// key id → `ApiKey`.
    Keys,
    /// tenant, key id → `Usage`.
    Usage,
    /// name → number.
    Totals,
}

impl Table {
    pub const ALL: [Table; 12] = [
        Table::Responses,
        Table::Conversations,
        Table::Bodies,
        Table::Items,
        Table::ItemNumbers,
        Table::Lists,
        Table::Unfinished,
        Table::Expiry,
        Table::Once,
        Table::Keys,
        Table::Usage,
        Table::Totals,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Table::Responses => "responses",
            Table::Conversations => "conversations",
            Table::Bodies => "bodies",
            Table::Items => "items",
            Table::ItemNumbers => "item_numbers",
            Table::Lists => "lists",
            Table::Unfinished => "unfinished",
            Table::Expiry => "expiry",
            Table::Once => "once",
            Table::Keys => "keys",
            Table::Usage => "usage",
            Table::Totals => "totals",
        }
    }

    /// For the snapshot format; `from_number` is the reverse.
    pub fn number(self) -> u8 {
        Table::ALL.iter().position(|table| *table == self).unwrap_or_default() as u8
    }

    pub fn from_number(number: u8) -> Option<Table> {
        Table::ALL.get(usize::from(number)).copied()
    }
}

/// A row that can't be read: written by another version, or damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of table {table} can't be read: {why}")]
pub struct Damaged {
    pub table: &'static str,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Which rows a scan gives: those whose key begins with `prefix`, in order, beyond a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    pub prefix: Key,
    /// The scan starts after this key (before it, descending), which need not exist.
    pub beyond: Option<Key>,
    pub order: Order,
    pub limit: usize,
}

impl Scan {
    pub fn of(prefix: Key, limit: usize) -> Scan {
        Scan { prefix, beyond: None, order: Order::Ascending, limit }
    }
}

pub type Row = (Key, Vec<u8>);

/// Reading rows.
pub trait Look {
    type Error: From<Damaged>;

    fn get(&self, table: Table, key: &Key) -> Result<Option<Vec<u8>>, Self::Error>;

    fn scan(&self, table: Table, scan: &Scan) -> Result<Vec<Row>, Self::Error>;
}

/// Changing rows; a read sees what was changed before it.
pub trait Rows: Look {
    fn put(&mut self, table: Table, key: &Key, value: &[u8]) -> Result<(), Self::Error>;

    fn remove(&mut self, table: Table, key: &Key) -> Result<(), Self::Error>;
}

/// A key made of parts, ordered as the parts are. Text parts hold no NUL, which ends them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub Vec<u8>);

impl Key {
    pub fn new() -> Key {
        Key::default()
    }

    #[must_use]
    pub fn text(mut self, text: &str) -> Key {
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self
    }

    #[must_use]
    pub fn number(mut self, number: u64) -> Key {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    #[must_use]
    pub fn byte(mut self, byte: u8) -> Key {
        self.0.push(byte);
        self
    }

    /// The smallest key greater than all that begin with this one; `None` if there is none.
    pub fn after_prefix(&self) -> Option<Key> {
        let mut end = self.0.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Some(Key(end));
            }
        }
        None
    }

    /// Takes the key apart again.
    pub fn parts(&self) -> Parts<'_> {
        Parts(&self.0)
    }
}

/// Reads the parts of a key in order; `None` where the key does not hold such a part.
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    pub fn text(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = std::str::from_utf8(&self.0[..end]).ok()?;
        self.0 = &self.0[end + 1..];
        Some(text)
    }

    pub fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    pub fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }
}
