//! What the operating system says of this machine and process.
//!
//! Must never fail: a number that can't be read is 0 and the operator's flags decide.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of memory this process may use: the machine's, or its container's if that is less.
pub fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_of(&text, "MemTotal:"));
    let machine = machine.unwrap_or(0);
    let container = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .min();
    match container {
        Some(limit) if machine == 0 || limit < machine => limit,
        _ => machine,
    }
}

/// Bytes of memory resident in this process.
pub fn memory_used_bytes() -> u64 {
    // `status` gives kibibytes, `statm` pages of a size that only libc tells.
    fs::read_to_string("/proc/self/status").ok().and_then(|text| kib_of(&text, "VmRSS:")).unwrap_or(0)
}

fn kib_of(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A number that another process, or another life of this one, practically never has. Not secret.
pub fn process_number() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_nanos()).unwrap_or_default();
    // `RandomState` is keyed by the operating system's randomness.
    RandomState::new().hash_one((now, std::process::id()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(kib_of("Name: x\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(kib_of("VmRSS:\t12\n", "VmRSS:"), None);
        assert!(memory_bytes() > 1 << 20);
        assert!(memory_used_bytes() > 1 << 16);
    }

    #[test]
    fn process_numbers_differ() {
        assert_ne!(process_number(), process_number());
    }
}
