//! What constrained sequences may say next, found out on threads of its own while layers compute.
//!
//! A sequence's walk through its grammar goes on as its tokens become known; behind each of them it is
//! asked what may follow, whether or not a sample is due there, so that a walk begun anew after a
//! failure has the same history as the first one.
//! Must never make a step wait longer than its asker allows, nor let one sequence's grammar hold the
//! threads for more than one token at a time.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use caravan_constraint::{Allowed, Compiled, Compiler, ConstraintError, Walk};
use caravan_core::error::Fault;
use caravan_core::gguf::{Gguf, Vocabulary};
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::request::{Constraint, SampleFault};

use crate::engine::panic_text;

/// The vocabulary of one model, read from its header when a constraint first needs it.
pub struct Words {
    digest: Digest,
    /// The header in the blob cache, verified when it was fetched.
    header: PathBuf,
    /// For the ends that were asked for last; a model has one set of them.
    compiler: Mutex<Option<Arc<Compiler>>>,
}

/// Handle to the threads; they end when the last one is gone.
#[derive(Clone)]
pub struct Masks {
    inner: Arc<Inner>,
}

/// The masks of one stage's model.
#[derive(Clone)]
pub struct Grammars {
    pub masks: Masks,
    pub words: Arc<Words>,
}

struct Inner {
    queue: Arc<Queue>,
    words: Mutex<BTreeMap<Digest, Weak<Words>>>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    work: Condvar,
    /// Compiled grammars, those used last at the back.
    kept: Mutex<VecDeque<(Digest, Arc<Entry>)>>,
}

#[derive(Default)]
struct Jobs {
    seats: VecDeque<Arc<Seat>>,
    stop: bool,
}

struct Entry {
    constraint: Constraint,
    made: OnceLock<Result<Mutex<Compiled>, ConstraintError>>,
}

/// A constrained sequence as threads and stage share it.
struct Seat {
    words: Arc<Words>,
    constraint: Constraint,
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    /// Not here before the grammar is compiled, and while a thread has it.
    walk: Option<Walk>,
    /// Known tokens of the answer that were not walked over yet.
    tokens: VecDeque<u32>,
    /// Tokens walked over.
    walked: u32,
    /// What may follow behind them.
    allowed: Option<Arc<Allowed>>,
    fault: Option<SampleFault>,
    /// In the queue, or with a thread.
    busy: bool,
    closed: bool,
}

/// What is known of the next token.
pub enum Next {
    Allowed(Arc<Allowed>),
    /// Not known yet.
    Later,
    Fault(SampleFault),
}

/// A stage's end of a constrained sequence. Dropping it ends the walk.
pub struct Constrained {
    seat: Arc<Seat>,
    queue: Arc<Queue>,
    prompt_tokens: u32,
    /// Positions below it are known.
    next: u32,
}

/// A panic elsewhere must not spread: every critical section here leaves the value whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Masks {
    /// Starts the threads.
    pub fn start() -> std::io::Result<Masks> {
        let queue = Arc::new(Queue::default());
        for _ in 0..limits::MASK_THREADS {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name("masks".into())
                .stack_size(limits::CONSTRAINT_STACK_BYTES)
                .spawn(move || queue.run())?;
        }
        Ok(Masks { inner: Arc::new(Inner { queue, words: Mutex::default() }) })
    }

    /// The vocabulary whose header has this digest and lies in this file.
    pub fn words(&self, digest: Digest, header: PathBuf) -> Arc<Words> {
        let mut all = lock(&self.inner.words);
        all.retain(|_, words| words.strong_count() > 0);
        if let Some(words) = all.get(&digest).and_then(Weak::upgrade) {
            return words;
        }
        let words = Arc::new(Words { digest, header, compiler: Mutex::default() });
        all.insert(digest, Arc::downgrade(&words));
        words
    }
}

impl Grammars {
    /// Begins to compile for a sequence whose answer begins at position `prompt_tokens`.
    pub fn open(&self, constraint: Constraint, prompt_tokens: u32) -> Constrained {
        let seat =
            Seat { words: self.words.clone(), constraint, state: Mutex::default(), ready: Condvar::new() };
        let queue = self.masks.inner.queue.clone();
        let constrained = Constrained { seat: Arc::new(seat), queue, prompt_tokens, next: 0 };
        constrained.wake(&mut lock(&constrained.seat.state));
        constrained
    }
}

impl Constrained {
    /// The token at `position` is known; positions come in order, and again is as good as once.
    pub fn see(&mut self, position: u32, token: u32) {
        if position < self.next {
            return;
        }
        self.next = position.saturating_add(1);
        if position < self.prompt_tokens {
            return;
        }
        let mut state = lock(&self.seat.state);
        state.allowed = None;
        state.tokens.push_back(token);
        self.wake(&mut state);
    }

    /// What may stand at `position`, every token before which was seen; waits for it `until` then.
    pub fn next(&self, position: u32, until: Instant) -> Next {
        let answered = position.saturating_sub(self.prompt_tokens);
        let mut state = lock(&self.seat.state);
        loop {
            if let Some(fault) = &state.fault {
                return Next::Fault(fault.clone());
            }
            if let Some(allowed) = state.allowed.as_ref().filter(|_| state.walked == answered) {
                return Next::Allowed(allowed.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Later;
            }
            let waited = self.seat.ready.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wake(&self, state: &mut State) {
        if !std::mem::replace(&mut state.busy, true) {
            self.queue.push(self.seat.clone());
        }
    }
}

impl Drop for Constrained {
    fn drop(&mut self) {
        let mut state = lock(&self.seat.state);
        state.closed = true;
        // Its memory is for the threads to give back: the engine has no time for that.
        self.wake(&mut state);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        lock(&self.queue.jobs).stop = true;
        self.queue.work.notify_all();
    }
}

impl Queue {
    fn push(&self, seat: Arc<Seat>) {
        // Each open sequence is here at most once, and those are bounded.
        lock(&self.jobs).seats.push_back(seat);
        self.work.notify_one();
    }

    fn run(&self) {
        loop {
            let seat = {
                let mut jobs = lock(&self.jobs);
                loop {
                    if jobs.stop {
                        return;
                    }
                    match jobs.seats.pop_front() {
                        Some(seat) => break seat,
                        None => jobs = self.work.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            self.serve(seat);
        }
    }

    /// One token of one sequence; if it has more, it queues again behind the others.
    fn serve(&self, seat: Arc<Seat>) {
        let (walk, token) = {
            let mut state = lock(&seat.state);
            let walk = state.walk.take();
            if state.closed || state.fault.is_some() {
                drop(state);
                return;
            }
            let token = if walk.is_some() { state.tokens.pop_front() } else { None };
            (walk, token)
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| match walk {
            None => self.begin(&seat),
            Some(walk) => step(walk, token),
        }));
        let outcome = outcome.unwrap_or_else(|panic| {
            Err(ConstraintError::Internal(format!("it panicked: {}", panic_text(&*panic))))
        });
        let again = {
            let mut state = lock(&seat.state);
            match outcome {
                Ok((walk, allowed)) => {
                    state.walked += u32::from(token.is_some());
                    state.allowed = allowed.filter(|_| state.tokens.is_empty()).map(Arc::new);
                    state.walk = Some(walk).filter(|_| !state.closed);
                }
                Err(error) => {
                    state.fault = Some(SampleFault { fault: error.fault(), why: error.to_string() });
                }
            }
            state.busy = !state.tokens.is_empty() && state.fault.is_none() && !state.closed;
            seat.ready.notify_all();
            state.busy
        };
        if again {
            self.push(seat);
        }
    }

    /// Compiles, or finds what was compiled for another sequence.
    fn begin(&self, seat: &Seat) -> Result<(Walk, Option<Allowed>), ConstraintError> {
        let entry = self.entry(&seat.words, &seat.constraint);
        let made = entry.made.get_or_init(|| {
            let compiled = seat.words.compiler(&seat.constraint.ends)?.compile(&seat.constraint)?;
            Ok(Mutex::new(compiled))
        });
        let mut walk = match made {
            Ok(compiled) => lock(compiled).begin(),
            Err(error) => {
                let why = format!("the last stage does not take what the gateway took: {error}");
                return Err(ConstraintError::Internal(why));
            }
        };
        let allowed = walk.allowed()?;
        Ok((walk, Some(allowed)))
    }

    fn entry(&self, words: &Words, constraint: &Constraint) -> Arc<Entry> {
        let mut kept = lock(&self.kept);
        let here = |(digest, entry): &(Digest, Arc<Entry>)| {
            *digest == words.digest && entry.constraint == *constraint
        };
        let entry = match kept.iter().position(here).and_then(|at| kept.remove(at)) {
            Some((_, entry)) => entry,
            None => Arc::new(Entry { constraint: constraint.clone(), made: OnceLock::new() }),
        };
        kept.push_back((words.digest, entry.clone()));
        if kept.len() > limits::CONSTRAINTS_KEPT {
            kept.pop_front();
        }
        entry
    }
}

fn step(mut walk: Walk, token: Option<u32>) -> Result<(Walk, Option<Allowed>), ConstraintError> {
    if let Some(token) = token {
        walk.advance(token)?;
    }
    let allowed = match walk.ended() {
        true => None,
        false => Some(walk.allowed()?),
    };
    Ok((walk, allowed))
}

impl Words {
    fn compiler(&self, ends: &[u32]) -> Result<Arc<Compiler>, ConstraintError> {
        let mut kept = lock(&self.compiler);
        if let Some(compiler) = kept.as_ref().filter(|compiler| compiler.ends() == ends) {
            return Ok(compiler.clone());
        }
        let compiler = Arc::new(Compiler::new(&self.read()?, ends)?);
        *kept = Some(compiler.clone());
        Ok(compiler)
    }

    fn read(&self) -> Result<Vocabulary, ConstraintError> {
        let wrong = |why: String| {
            ConstraintError::Internal(format!("the model's vocabulary can't be read here: {why}"))
        };
        let bytes = std::fs::read(&self.header).map_err(|error| wrong(error.to_string()))?;
        // The tensors' places were checked when the file was added; here only the vocabulary counts.
        let gguf = Gguf::parse(&bytes, u64::MAX).map_err(|error| wrong(error.to_string()))?;
        gguf.vocabulary().map_err(|error| wrong(error.to_string()))
    }
}

/// The stage has no vocabulary to walk with.
pub fn without_words() -> SampleFault {
    let why = "this stage was assigned without the model's vocabulary, a fault of the server".into();
    SampleFault { fault: Fault::Operator, why }
}

#[cfg(test)]
#[path = "masks_tests.rs"]
mod tests;
