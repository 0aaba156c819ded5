//! Read-only files in memory without a copy.
//!
//! Must never map a file that something still writes: a truncation under a map ends the process.

use std::fs::File;
use std::io;
use std::path::Path;

/// A whole file, mapped read-only. Pages come in when touched and may be dropped by the system.
#[derive(Debug)]
pub struct FileMap {
    map: memmap2::Mmap,
}

impl FileMap {
    /// Maps `path`. The caller must make sure that the file is complete and is never changed in
    /// place while mapped (write elsewhere, then rename). Errors are the system's.
    pub fn open(path: &Path) -> io::Result<FileMap> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value; files that are mapped are made
        // complete before they get their name and are never written again (see above).
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(FileMap { map })
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
