//! Attention over a paged cache, with query heads grouped over key/value heads.
//!
//! The cache holds f32 or half-precision numbers (`Stored`): halves are rounded once, when a position is
//! put, and widened exactly when they are read. Everything else is f32 either way.
//!
//! Layout of a page: keys are kv_heads x dim x stride (the positions side by side, stride =
//! page_tokens rounded up to 16), values kv_heads x page_tokens x width (width = dim rounded up to
//! 16). The definition, for one query row and head at position p, with f = 0, or with a window of w
//! positions f = max(0, p + 1 - w):
//!   score[t] = scale * (fma over dim in order of q[d] * k[t][d], from 0), t = f..=p
//!   with a cap: score[t] = cap * tanh(score[t] / cap), as `math::soft_cap` has it
//!   weight[t] = exp(score[t] - max); total = sum in 16 lanes (t mod 16), then `Lanes::sum`'s tree
//!   out[d] = (fma over t in order of weight[t] * v[t][d], from 0) * (1 / total)
//! Positions are absolute, so neither chunks nor pages nor neighbours in the batch show.
//! Must never let a position outside f..=p show in a result.

// Counted loops with constant bounds are what the compiler keeps in registers.
#![allow(clippy::needless_range_loop)]

use crate::isa::Kernel;
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::stored;
pub use crate::stored::{Half, Stored};
use crate::team::{Racy, Team};

/// Shape of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub page_tokens: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

impl KvShape {
    fn stride(self) -> usize {
        self.page_tokens.next_multiple_of(LANES)
    }

    fn width(self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Numbers of the keys of one page.
    pub fn key_page(self) -> usize {
        self.kv_heads * self.dim * self.stride()
    }

    /// Numbers of the values of one page.
    pub fn value_page(self) -> usize {
        self.kv_heads * self.page_tokens * self.width()
    }

    /// Writes one position: `key` and `value` are kv_heads x dim, `page` and `slot` say where.
    /// Panics if the page or slot does not exist.
    pub fn put<E: Stored>(
        self,
        cache: (&mut [E], &mut [E]),
        (page, slot): (usize, usize),
        row: (&[f32], &[f32]),
    ) {
        assert!(slot < self.page_tokens, "slot");
        let keys = &mut cache.0[page * self.key_page()..(page + 1) * self.key_page()];
        let values = &mut cache.1[page * self.value_page()..(page + 1) * self.value_page()];
        for (line, x) in keys.chunks_exact_mut(self.stride()).zip(row.0) {
            line[slot] = E::store(*x);
        }
        let heads = values.chunks_exact_mut(self.page_tokens * self.width());
        for (head, x) in heads.zip(row.1.chunks_exact(self.dim)) {
            for (place, x) in head[slot * self.width()..].iter_mut().zip(x) {
                *place = E::store(*x);
            }
        }
    }
}

/// One layer's cache: pages x `key_page`, pages x `value_page`.
#[derive(Clone, Copy)]
pub struct Kv<'a, E: Stored> {
    pub shape: KvShape,
    pub keys: &'a [E],
    pub values: &'a [E],
}

/// Whose keys a query row sees: positions 0..=position of the sequence that owns `pages`.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub pages: &'a [u32],
    pub position: u32,
}

/// How scores are made of products, and how far back a row sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    pub scale: f32,
    pub cap: Option<f32>,
    /// Positions that a row sees, its own among them; at least 1. `None`: all up to its own.
    pub window: Option<u32>,
}

impl Scoring {
    /// The first position that a row at `position` sees.
    fn first(self, position: u32) -> usize {
        self.window.map_or(0, |window| (position as usize + 1).saturating_sub(window as usize))
    }
}

/// Query heads computed together, at most.
const GROUP: usize = 4;
/// Rows of a sequence that go through a page of keys or values one after the other, while it is in
/// the first cache.
const TOGETHER: usize = 8;

/// Attention of `rows` query rows: `query` and `out` are rows x heads x dim. `scratch` is reused.
/// Panics if a shape does not fit, a page does not exist or the window is 0.
pub fn attend<E: Stored>(
    team: &mut Team,
    (kv, scoring): (Kv<'_, E>, Scoring),
    rows: &[Sight<'_>],
    query: &[f32],
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let shape = kv.shape;
    if rows.is_empty() {
        return;
    }
    let width = query.len() / rows.len();
    let heads = width / shape.dim;
    assert!(query.len() == out.len() && heads * shape.dim * rows.len() == query.len(), "shape");
    assert!(heads.is_multiple_of(shape.kv_heads), "heads");
    assert!(scoring.window != Some(0), "window");
    // Room for whole vectors behind the last page.
    let reach = check_pages(kv, rows) * shape.page_tokens + shape.stride() + LANES;
    let (scores, sums) = (TOGETHER * GROUP * reach, TOGETHER * GROUP * shape.width());
    scratch.resize(team.threads() * (scores + sums), 0.0);
    let (isa, scratch, out) = (team.isa(), Racy(scratch.as_mut_ptr()), Racy(out.as_mut_ptr()));
    let group = heads / shape.kv_heads;
    let blocks = blocks(rows);
    team.run(blocks.len() * shape.kv_heads, |thread, part| {
        let ((first, end), kv_head) = (blocks[part / shape.kv_heads], part % shape.kv_heads);
        for done in (0..group).step_by(GROUP) {
            let at = first * width + (kv_head * group + done) * shape.dim;
            // SAFETY: `thread` has its own piece of the scratch, and these heads of these rows are
            // this part's alone; the pieces lie within their buffers.
            let (scores, out) = unsafe { (scratch.get().add(thread * (scores + sums)), out.get().add(at)) };
            let block = Block {
                kv,
                scoring,
                sights: &rows[first..end],
                kv_head,
                query: &query[at..],
                width,
                scores,
                reach,
                out,
            };
            isa.run(Heads { block, heads: GROUP.min(group - done) });
        }
    });
}

/// Pages of the row that needs most of them. Panics if one does not exist.
fn check_pages<E: Stored>(kv: Kv<'_, E>, rows: &[Sight<'_>]) -> usize {
    let shape = kv.shape;
    let pages = (kv.keys.len() / shape.key_page()).min(kv.values.len() / shape.value_page());
    let mut longest = 0;
    for row in rows {
        let needed = row.position as usize / shape.page_tokens + 1;
        assert!(needed <= row.pages.len(), "pages of a row");
        assert!(row.pages[..needed].iter().all(|page| (*page as usize) < pages), "page number");
        longest = longest.max(needed);
    }
    longest
}

/// Cuts the rows into blocks of neighbours that see the same pages.
fn blocks(rows: &[Sight<'_>]) -> Vec<(usize, usize)> {
    let mut blocks: Vec<(usize, usize)> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        match blocks.last_mut() {
            Some((first, end)) if *end - *first < TOGETHER && rows[*first].pages == row.pages => *end = i + 1,
            _ => blocks.push((i, i + 1)),
        }
    }
    blocks
}

/// Rows of one sequence, for query heads that share a key/value head.
#[derive(Clone, Copy)]
struct Block<'a, E: Stored> {
    kv: Kv<'a, E>,
    scoring: Scoring,
    /// At most TOGETHER, all with the same pages.
    sights: &'a [Sight<'a>],
    kv_head: usize,
    /// The heads of the first row begin here, those of the next `width` further on.
    query: &'a [f32],
    width: usize,
    /// TOGETHER x GROUP x reach scores, then TOGETHER x GROUP x width of values.
    scores: *mut f32,
    reach: usize,
    /// As `query`.
    out: *mut f32,
}

struct Heads<'a, E: Stored> {
    block: Block<'a, E>,
    heads: usize,
}

impl<E: Stored> Kernel for Heads<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // SAFETY: `attend` checked pages and shapes and gave exclusive pieces.
        unsafe {
            match self.heads {
                1 => self.block.heads::<V, 1>(),
                2 => self.block.heads::<V, 2>(),
                3 => self.block.heads::<V, 3>(),
                _ => self.block.heads::<V, 4>(),
            }
        }
    }
}

impl<E: Stored> Block<'_, E> {
    /// The positions that row `row` of the block sees.
    #[inline(always)]
    fn span(&self, row: usize) -> (usize, usize) {
        let position = self.sights[row].position;
        (self.scoring.first(position), position as usize + 1)
    }

    /// Calls `work(row, page, first, span)` for every page and every row that sees some of it; the
    /// page begins at position `first`.
    #[inline(always)]
    fn each_page(&self, mut work: impl FnMut(usize, usize, usize, (usize, usize))) {
        let page_tokens = self.kv.shape.page_tokens;
        for (i, page) in self.sights[0].pages.iter().enumerate() {
            let first = i * page_tokens;
            for row in 0..self.sights.len() {
                let span = self.span(row);
                if first < span.1 && span.0 < first + page_tokens {
                    work(row, *page as usize, first, span);
                }
            }
        }
    }

    /// # Safety
    /// As `attend` arranges it; G is the number of heads.
    #[inline(always)]
    unsafe fn heads<V: Lanes, const G: usize>(&self) {
        let shape = self.kv.shape;
        // SAFETY: pages exist; scores reach a whole vector beyond the last page.
        unsafe {
            self.each_page(|row, page, first, span| {
                let keys = self.kv.keys.as_ptr().add(page * shape.key_page());
                let keys = keys.add(self.kv_head * shape.dim * shape.stride());
                let used = shape.page_tokens.min(span.1 - first).next_multiple_of(LANES);
                let mut slot = 0;
                while (V::WIDE || G <= 2) && slot + 2 * LANES <= used {
                    self.scores::<V, G, 2>(keys.add(slot), row, first + slot);
                    slot += 2 * LANES;
                }
                while slot < used {
                    self.scores::<V, G, 1>(keys.add(slot), row, first + slot);
                    slot += LANES;
                }
            });
            let mut totals = [[0f32; G]; TOGETHER];
            for row in 0..self.sights.len() {
                for g in 0..G {
                    totals[row][g] = soften::<V>(self.score(row, g), self.span(row));
                    std::slice::from_raw_parts_mut(self.sum(row, g), shape.width()).fill(0.0);
                }
            }
            self.each_page(|row, page, first, span| {
                let values = self.kv.values.as_ptr().add(page * shape.value_page());
                let values = values.add(self.kv_head * shape.page_tokens * shape.width());
                let slots = (span.0.saturating_sub(first), shape.page_tokens.min(span.1 - first));
                let mut at = 0;
                // As many sums as the registers hold.
                if V::WIDE {
                    while at + 4 * LANES <= shape.width() {
                        self.values::<V, G, 4>(values.add(at), (row, at), first, slots);
                        at += 4 * LANES;
                    }
                } else if G <= 2 {
                    while at + 2 * LANES <= shape.width() {
                        self.values::<V, G, 2>(values.add(at), (row, at), first, slots);
                        at += 2 * LANES;
                    }
                }
                while at < shape.width() {
                    self.values::<V, G, 1>(values.add(at), (row, at), first, slots);
                    at += LANES;
                }
            });
            self.finish(&totals);
        }
    }

    /// Where the scores of a row's head begin.
    /// # Safety
    /// `row` and `head` must be of the block.
    #[inline(always)]
    unsafe fn score(&self, row: usize, head: usize) -> *mut f32 {
        // SAFETY: within the scratch.
        unsafe { self.scores.add((row * GROUP + head) * self.reach) }
    }

    /// Where the sums of a row's head begin.
    /// # Safety
    /// `row` and `head` must be of the block.
    #[inline(always)]
    unsafe fn sum(&self, row: usize, head: usize) -> *mut f32 {
        let at = TOGETHER * GROUP * self.reach + (row * GROUP + head) * self.kv.shape.width();
        // SAFETY: within the scratch.
        unsafe { self.scores.add(at) }
    }

    /// Scores of C x 16 positions from `first` on, whose keys begin at `keys`.
    /// # Safety
    /// As `heads`.
    #[inline(always)]
    unsafe fn scores<V: Lanes, const G: usize, const C: usize>(
        &self,
        keys: *const E,
        row: usize,
        first: usize,
    ) {
        let shape = self.kv.shape;
        let scale = V::splat(self.scoring.scale);
        let mut score = [[V::splat(0.0); C]; G];
        // SAFETY: vouched for by the caller.
        unsafe {
            let query = self.query.as_ptr().add(row * self.width);
            for d in 0..shape.dim {
                let mut key = [V::splat(0.0); C];
                for c in 0..C {
                    key[c] = stored::load::<V, E>(keys.add(d * shape.stride() + c * LANES));
                }
                for g in 0..G {
                    let q = V::splat(*query.add(g * shape.dim + d));
                    for c in 0..C {
                        score[g][c] = q.fma(key[c], score[g][c]);
                    }
                }
            }
            for g in 0..G {
                for c in 0..C {
                    let to = self.score(row, g).add(first + c * LANES);
                    let scaled = score[g][c].mul(scale);
                    match self.scoring.cap {
                        None => scaled.store(to),
                        Some(cap) => math::soft_cap(scaled, V::splat(cap)).store(to),
                    }
                }
            }
        }
    }

    /// Adds the weighted values of a page's `slots` to the sums of C x 16 dimensions; `values` are
    /// those of the page's first slot, at position `first`.
    /// # Safety
    /// As `heads`.
    #[inline(always)]
    unsafe fn values<V: Lanes, const G: usize, const C: usize>(
        &self,
        values: *const E,
        (row, at): (usize, usize),
        first: usize,
        slots: (usize, usize),
    ) {
        let width = self.kv.shape.width();
        let mut sum = [[V::splat(0.0); C]; G];
        // SAFETY: vouched for by the caller.
        unsafe {
            for g in 0..G {
                for c in 0..C {
                    sum[g][c] = V::load(self.sum(row, g).add(at + c * LANES));
                }
            }
            let weights = self.score(row, 0).add(first);
            for slot in slots.0..slots.1 {
                let mut value = [V::splat(0.0); C];
                for c in 0..C {
                    value[c] = stored::load::<V, E>(values.add(slot * width + c * LANES));
                }
                for g in 0..G {
                    let weight = V::splat(*weights.add(g * self.reach + slot));
                    for c in 0..C {
                        sum[g][c] = weight.fma(value[c], sum[g][c]);
                    }
                }
            }
            for g in 0..G {
                for c in 0..C {
                    sum[g][c].store(self.sum(row, g).add(at + c * LANES));
                }
            }
        }
    }

    /// Divides the sums by the totals.
    /// # Safety
    /// As `heads`.
    #[inline(always)]
    unsafe fn finish<const G: usize>(&self, totals: &[[f32; G]; TOGETHER]) {
        let dim = self.kv.shape.dim;
        // SAFETY: `dim` sums and outputs of each head and row exist and are ours.
        unsafe {
            for (row, totals) in totals.iter().enumerate().take(self.sights.len()) {
                for (g, total) in totals.iter().enumerate() {
                    let inverse = 1.0 / total;
                    let (sum, out) = (self.sum(row, g), self.out.add(row * self.width + g * dim));
                    for d in 0..dim {
                        *out.add(d) = *sum.add(d) * inverse;
                    }
                }
            }
        }
    }
}

/// Turns the scores of positions `first..len` into exp(score - max) and gives their sum. A NaN among
/// them makes the sum NaN.
/// # Safety
/// `scores` must be valid up to `len` rounded up to 16.
#[inline(always)]
unsafe fn soften<V: Lanes>(scores: *mut f32, (first, len): (usize, usize)) -> f32 {
    // Whole vectors; what lies in them outside the positions weighs nothing.
    let (start, padded) = (first / LANES * LANES, len.next_multiple_of(LANES));
    let outside = move |t: usize| (start..first).contains(&t) || t >= len;
    // SAFETY: vouched for by the caller.
    unsafe {
        for t in (start..first).chain(len..padded) {
            *scores.add(t) = f32::NEG_INFINITY;
        }
        let mut most = V::splat(f32::NEG_INFINITY);
        for t in (start..padded).step_by(LANES) {
            most = V::load(scores.add(t)).max(most);
        }
        let mut lanes = [0f32; LANES];
        most.store(lanes.as_mut_ptr());
        let max = lanes.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
        let max = V::splat(max);
        let mut sum = V::splat(0.0);
        for t in (start..padded).step_by(LANES) {
            let at = scores.add(t);
            math::exp(V::load(at).sub(max)).store(at);
            if t < first || t + LANES > len {
                for past in (t..t + LANES).filter(|past| outside(*past)) {
                    *scores.add(past) = 0.0;
                }
            }
            sum = V::load(at).add(sum);
        }
        sum.sum()
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
