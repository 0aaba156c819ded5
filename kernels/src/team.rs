//! A fork-join team of compute threads.
//!
//! A job is cut into parts; threads take parts until none is left. Which thread computes a part
//! must never matter. The caller works too and waits only for threads that have begun: a thread
//! that sleeps, or that the system does not run, delays nobody.
//!
//! Must never hold a thread of the async runtime: callers run on their own threads.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::isa::Isa;

/// Rounds of waiting before a thread sleeps, and pauses in a round (some 40 µs in all). Between two
/// rounds the core is offered to others, so that waiting costs little where cores are contended.
const ROUNDS: u32 = 24;
const PAUSES: u32 = 64;

// The state word: generation of the job in the high half, then these flags, then how many threads
// are inside the job.
const OPEN: u64 = 1 << 31;
const WAITING: u64 = 1 << 30;
const INSIDE: u64 = 0xffff;

#[derive(Clone, Copy)]
struct Job {
    /// Called with (thread, part). Its lifetime is erased; see `Team::run`.
    call: *const (dyn Fn(usize, usize) + Sync),
    parts: usize,
}

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// Next part to take.
    next: AtomicUsize,
    sleeping: Vec<AtomicBool>,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    quit: AtomicBool,
}

// SAFETY: `job` is written only by the caller while the state is closed and nobody is inside, and
// read only by threads that entered while it was open; the pointer in it refers to a `Sync` closure
// that outlives the time the job is open or has threads inside.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// A team of compute threads. One user at a time (`&mut self`).
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    generation: u64,
    isa: Isa,
}

impl Team {
    /// `threads` >= 1; 1 runs everything on the caller. Fewer threads are made if the system
    /// refuses more; results do not depend on the number.
    pub fn new(threads: usize) -> Team {
        Team::with_isa(threads, Isa::detect())
    }

    /// A team that computes on `isa` (or below, if the CPU lacks it).
    pub fn with_isa(threads: usize, isa: Isa) -> Team {
        let count = threads.clamp(1, 1024) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleeping: (0..count).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            quit: AtomicBool::new(false),
        });
        let helpers = (0..count)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                let name = format!("compute-{}", i + 1);
                thread::Builder::new().name(name).spawn(move || help(&shared, i)).ok()
            })
            .collect();
        Team { shared, helpers, generation: 0, isa }
    }

    /// Threads that compute, with the caller.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// The instruction set the kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `work(thread, part)` once for every part in `0..parts`, on several threads, and
    /// returns when all are done. `thread` is below `threads()` and no two parts run on one
    /// `thread` at a time. If a part panics, the parts not yet begun are dropped and the panic goes
    /// on in the caller.
    pub fn run(&mut self, parts: usize, work: impl Fn(usize, usize) + Sync) {
        if self.helpers.is_empty() || parts <= 1 {
            (0..parts).for_each(|part| work(0, part));
            return;
        }
        let call: *const (dyn Fn(usize, usize) + Sync + '_) = &work;
        // SAFETY: only the lifetime changes; nobody uses the pointer after this function (`finish`
        // waits for everyone who entered, whatever panics).
        let call: *const (dyn Fn(usize, usize) + Sync + 'static) = unsafe { std::mem::transmute(call) };
        let job = Job { call, parts };
        let shared = &*self.shared;
        // SAFETY: the state is closed and nobody is inside: the last run waited for that.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        self.generation = (self.generation + 1) & 0xffff_ffff;
        shared.state.store((self.generation << 32) | OPEN, Ordering::SeqCst);
        for (helper, sleeping) in self.helpers.iter().zip(&shared.sleeping).take(parts - 1) {
            if sleeping.load(Ordering::SeqCst) && sleeping.swap(false, Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        shared.drain(job, 0);
        shared.finish();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts `data` into pieces of `piece` elements (the last may be shorter) and calls
    /// `work(index, piece)` for each, on several threads.
    pub fn each_piece<T: Send>(
        &mut self,
        data: &mut [T],
        piece: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let len = data.len();
        let base = Racy(data.as_mut_ptr());
        self.run(len.div_ceil(piece.max(1)), |_, part| {
            let start = part * piece.max(1);
            let count = piece.max(1).min(len - start);
            // SAFETY: parts are distinct, so the pieces do not overlap, and they lie in `data`,
            // which is borrowed until `run` returns.
            let slice = unsafe { std::slice::from_raw_parts_mut(base.get().add(start), count) };
            work(part, slice);
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches the panics of its work, so there is nothing to learn here.
            drop(helper.join());
        }
    }
}

/// A pointer that several threads use for parts that do not overlap.
pub(crate) struct Racy<T>(pub *mut T);

impl<T> Racy<T> {
    pub fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: every use states why its accesses do not overlap.
unsafe impl<T: Send> Sync for Racy<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Racy<T> {}

impl Shared {
    /// Takes parts until none is left; keeps the first panic.
    fn drain(&self, job: Job, thread: usize) {
        // SAFETY: whoever calls this is the caller or is inside the job, so the closure lives.
        let work = unsafe { &*job.call };
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let part = self.next.fetch_add(1, Ordering::Relaxed);
                if part >= job.parts {
                    break;
                }
                work(thread, part);
            }
        }));
        if let Err(panic) = done {
            self.next.store(usize::MAX / 2, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// Closes the job and waits until nobody is inside.
    fn finish(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let empty = || self.state.load(Ordering::Acquire) & INSIDE == 0;
        if wait_a_little(empty) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        if self.state.fetch_or(WAITING, Ordering::AcqRel) & INSIDE == 0 {
            return;
        }
        while !empty() {
            thread::park();
        }
    }

    /// Enters a job of another generation than `seen`; says which, if there is one.
    fn enter(&self, seen: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 && state >> 32 != seen {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(state >> 32),
                Err(now) => state = now,
            }
        }
        None
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & INSIDE == 1
            && before & WAITING != 0
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }
}

/// Waits some microseconds for `ready`; says whether it came true.
fn wait_a_little(ready: impl Fn() -> bool) -> bool {
    for _ in 0..ROUNDS {
        for _ in 0..PAUSES {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        thread::yield_now();
    }
    false
}

/// The life of helper `index`, which is thread `index + 1`.
fn help(shared: &Shared, index: usize) {
    let mut seen = 0;
    while !shared.quit.load(Ordering::SeqCst) {
        if let Some(generation) = shared.enter(seen) {
            seen = generation;
            // SAFETY: we are inside, so the caller does not touch the job.
            if let Some(job) = unsafe { *shared.job.get() } {
                shared.drain(job, index + 1);
            }
            shared.leave();
            continue;
        }
        let there_is_work = || {
            let state = shared.state.load(Ordering::Acquire);
            (state & OPEN != 0 && state >> 32 != seen) || shared.quit.load(Ordering::Relaxed)
        };
        if wait_a_little(there_is_work) {
            continue;
        }
        // Announce the sleep, then look again: a job opened in between is seen here, or its opener
        // sees the announcement.
        shared.sleeping[index].store(true, Ordering::SeqCst);
        let state = shared.state.load(Ordering::SeqCst);
        let work = state & OPEN != 0 && state >> 32 != seen;
        if !work && !shared.quit.load(Ordering::SeqCst) {
            thread::park();
        }
        shared.sleeping[index].store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[path = "team_tests.rs"]
mod tests;
