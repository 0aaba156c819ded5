//! A snapshot on its way: rows of one log position, as a frozen transaction or as bytes in a file.
//!
//! Must never stay on disk: the file has no name, and is gone with its last handle.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use caravan_core::limits;
use caravan_core::store::Table;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::rows::{RowsError, View};

/// What the consensus library hands around as a snapshot.
pub enum Body {
    /// Rows that have not been written to a file yet; most snapshots are never sent.
    Frozen(Box<View>),
    File(tokio::fs::File),
}

/// Ends the rows; behind it stands the digest of everything before.
const END: u8 = u8::MAX;
const DIGEST_BYTES: usize = 32;
/// The cluster state, as a row like the others.
const CLUSTER: u8 = u8::MAX - 1;

impl Body {
    /// An empty file to receive into.
    pub fn receiving(folder: &Path) -> io::Result<Body> {
        Ok(Body::File(tokio::fs::File::from_std(tempfile::tempfile_in(folder)?)))
    }

    /// The snapshot as a file, at its beginning. May block.
    pub fn write(view: &View, folder: &Path) -> Result<File, RowsError> {
        let mut file = tempfile::tempfile_in(folder).map_err(failed)?;
        let mut out = Hashing { inner: BufWriter::new(&mut file), hasher: blake3::Hasher::new() };
        if let Some(cluster) = super::cluster_bytes(view)? {
            put(&mut out, CLUSTER, &[], &cluster).map_err(failed)?;
        }
        for table in Table::ALL {
            let Some(open) = view.open(table)? else { continue };
            for row in open.range::<&[u8]>(..)? {
                let (key, value) = row?;
                put(&mut out, table.number(), key.value(), value.value()).map_err(failed)?;
            }
        }
        out.write_all(&[END]).map_err(failed)?;
        let digest = out.hasher.finalize();
        out.inner.write_all(digest.as_bytes()).map_err(failed)?;
        out.inner.flush().map_err(failed)?;
        drop(out);
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(file)
    }
}

fn failed(error: io::Error) -> RowsError {
    RowsError::File(Box::new(redb::Error::Io(error)))
}

/// A row of a snapshot.
pub enum Part {
    Cluster(Vec<u8>),
    Row(Table, Vec<u8>, Vec<u8>),
}

/// Gives every row of a snapshot's file to `each`. The caller must undo all of it on an error: the
/// digest, which stands at the end, may be wrong.
pub fn read(file: &mut File, mut each: impl FnMut(Part) -> Result<(), RowsError>) -> Result<(), RowsError> {
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut input = Hashing { inner: BufReader::new(file), hasher: blake3::Hasher::new() };
    loop {
        let mut tag = [0];
        input.read_exact(&mut tag).map_err(failed)?;
        if tag[0] == END {
            break;
        }
        let key = field(&mut input).map_err(failed)?;
        let value = field(&mut input).map_err(failed)?;
        match (tag[0], Table::from_number(tag[0])) {
            (CLUSTER, _) => each(Part::Cluster(value))?,
            (_, Some(table)) => each(Part::Row(table, key, value))?,
            (_, None) => return Err(failed(bad("a table that this build does not know"))),
        }
    }
    let found = input.hasher.finalize();
    let mut digest = [0; DIGEST_BYTES];
    input.inner.read_exact(&mut digest).map_err(failed)?;
    if blake3::Hash::from(digest) != found {
        return Err(failed(bad("a snapshot does not have the digest at its end")));
    }
    Ok(())
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn put(out: &mut impl Write, tag: u8, key: &[u8], value: &[u8]) -> io::Result<()> {
    out.write_all(&[tag])?;
    for part in [key, value] {
        out.write_all(&(part.len() as u64).to_le_bytes())?;
        out.write_all(part)?;
    }
    Ok(())
}

fn field(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    input.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > limits::ROW_BYTES {
        return Err(bad("a row is larger than one may be"));
    }
    let mut bytes = Vec::new();
    if input.take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Hashes what passes through.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}

fn frozen() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this snapshot was not written to a file")
}

impl AsyncRead for Body {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Body::File(file) => Pin::new(file).poll_read(cx, out),
            Body::Frozen(_) => Poll::Ready(Err(frozen())),
        }
    }
}

impl AsyncSeek for Body {
    fn start_seek(self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        match self.get_mut() {
            Body::File(file) => Pin::new(file).start_seek(position),
            Body::Frozen(_) => Err(frozen()),
        }
    }

    fn poll_complete(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        match self.get_mut() {
            Body::File(file) => Pin::new(file).poll_complete(cx),
            Body::Frozen(_) => Poll::Ready(Err(frozen())),
        }
    }
}

impl AsyncWrite for Body {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Body::File(file) => Pin::new(file).poll_write(cx, bytes),
            Body::Frozen(_) => Poll::Ready(Err(frozen())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Body::File(file) => Pin::new(file).poll_flush(cx),
            Body::Frozen(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Body::File(file) => Pin::new(file).poll_shutdown(cx),
            Body::Frozen(_) => Poll::Ready(Ok(())),
        }
    }
}
