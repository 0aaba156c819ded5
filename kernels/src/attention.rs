//! Attention over a paged f32 cache, with query heads grouped over key/value heads.
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

    /// Floats of the keys of one page.
    pub fn key_page(self) -> usize {
        self.kv_heads * self.dim * self.stride()
    }

    /// Floats of the values of one page.
    pub fn value_page(self) -> usize {
        self.kv_heads * self.page_tokens * self.width()
    }

    /// Writes one position: `key` and `value` are kv_heads x dim, `page` and `slot` say where.
    /// Panics if the page or slot does not exist.
    pub fn put(self, cache: (&mut [f32], &mut [f32]), (page, slot): (usize, usize), row: (&[f32], &[f32])) {
        assert!(slot < self.page_tokens, "slot");
        let keys = &mut cache.0[page * self.key_page()..(page + 1) * self.key_page()];
        let values = &mut cache.1[page * self.value_page()..(page + 1) * self.value_page()];
        for (line, x) in keys.chunks_exact_mut(self.stride()).zip(row.0) {
            line[slot] = *x;
        }
        let heads = values.chunks_exact_mut(self.page_tokens * self.width());
        for (head, x) in heads.zip(row.1.chunks_exact(self.dim)) {
            head[slot * self.width()..][..self.dim].copy_from_slice(x);
        }
    }
}

/// One layer's cache: pages x `key_page`, pages x `value_page`.
#[derive(Clone, Copy)]
pub struct Kv<'a> {
    pub shape: KvShape,
    pub keys: &'a [f32],
    pub values: &'a [f32],
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

/// Attention of `rows` query rows: `query` and `out` are rows x heads x dim. `scratch` is reused.
/// Panics if a shape does not fit, a page does not exist or the window is 0.
pub fn attend(
    team: &mut Team,
    (kv, scoring): (Kv<'_>, Scoring),
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
    let pages = (kv.keys.len() / shape.key_page()).min(kv.values.len() / shape.value_page());
    let mut longest = 0;
    for row in rows {
        let needed = row.position as usize / shape.page_tokens + 1;
        assert!(needed <= row.pages.len(), "pages of a row");
        assert!(row.pages[..needed].iter().all(|page| (*page as usize) < pages), "page number");
        longest = longest.max(needed);
    }
    // Room for whole vectors behind the last page.
    let reach = longest * shape.page_tokens + shape.stride() + LANES;
    scratch.resize(team.threads() * GROUP * reach, 0.0);
    let (isa, scratch, out) = (team.isa(), Racy(scratch.as_mut_ptr()), Racy(out.as_mut_ptr()));
    let group = heads / shape.kv_heads;
    team.run(rows.len() * shape.kv_heads, |thread, part| {
        let (row, kv_head) = (part / shape.kv_heads, part % shape.kv_heads);
        let mut done = 0;
        while done < group {
            let count = GROUP.min(group - done);
            let at = row * width + (kv_head * group + done) * shape.dim;
            // SAFETY: `thread` has its own piece of the scratch, and heads of a row are this
            // part's alone; both pieces lie within their buffers.
            let (scores, out) = unsafe { (scratch.get().add(thread * GROUP * reach), out.get().add(at)) };
            let sight = rows[row];
            isa.run(Heads {
                kv,
                scoring,
                sight,
                kv_head,
                query: &query[at..at + count * shape.dim],
                scores,
                reach,
                out,
            });
            done += count;
        }
    });
}

/// Up to GROUP query heads of one row that share a key/value head.
struct Heads<'a> {
    kv: Kv<'a>,
    scoring: Scoring,
    sight: Sight<'a>,
    kv_head: usize,
    query: &'a [f32],
    /// GROUP x reach
    scores: *mut f32,
    reach: usize,
    /// As many floats as `query`.
    out: *mut f32,
}

impl Kernel for Heads<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // SAFETY: `attend` checked pages and shapes and gave exclusive pieces.
        unsafe {
            match self.query.len() / self.kv.shape.dim {
                1 => self.heads::<V, 1>(),
                2 => self.heads::<V, 2>(),
                3 => self.heads::<V, 3>(),
                _ => self.heads::<V, 4>(),
            }
        }
    }
}

impl Heads<'_> {
    /// # Safety
    /// As `attend` arranges it; G is the number of heads.
    #[inline(always)]
    unsafe fn heads<V: Lanes, const G: usize>(&self) {
        let shape = self.kv.shape;
        let span = (self.scoring.first(self.sight.position), self.sight.position as usize + 1);
        let len = span.1;
        // SAFETY: pages exist; scores reach a whole vector beyond the last page.
        unsafe {
            for (i, page) in self.pages(span) {
                let first = i * shape.page_tokens;
                let keys = self.kv.keys.as_ptr().add(*page as usize * shape.key_page());
                let keys = keys.add(self.kv_head * shape.dim * shape.stride());
                let used = shape.page_tokens.min(len - first).next_multiple_of(LANES);
                let mut slot = 0;
                while slot + 2 * LANES <= used {
                    self.scores::<V, G, 2>(keys.add(slot), first + slot);
                    slot += 2 * LANES;
                }
                if slot < used {
                    self.scores::<V, G, 1>(keys.add(slot), first + slot);
                }
            }
            let mut totals = [0f32; G];
            for g in 0..G {
                totals[g] = soften::<V>(self.scores.add(g * self.reach), span);
            }
            let mut at = 0;
            while at + 4 * LANES <= shape.width() {
                self.values::<V, G, 4>(at, span, &totals);
                at += 4 * LANES;
            }
            while at < shape.width() {
                self.values::<V, G, 1>(at, span, &totals);
                at += LANES;
            }
        }
    }

    /// The pages that hold positions `span.0..span.1`, with their places in the sequence.
    #[inline(always)]
    fn pages(&self, span: (usize, usize)) -> impl Iterator<Item = (usize, &u32)> {
        let page_tokens = self.kv.shape.page_tokens;
        let used = self.sight.pages.iter().enumerate().take(span.1.div_ceil(page_tokens));
        used.skip(span.0 / page_tokens)
    }

    /// Scores of C x 16 positions from `first` on, whose keys begin at `keys`.
    /// # Safety
    /// As `heads`.
    #[inline(always)]
    unsafe fn scores<V: Lanes, const G: usize, const C: usize>(&self, keys: *const f32, first: usize) {
        let shape = self.kv.shape;
        let scale = V::splat(self.scoring.scale);
        let mut score = [[V::splat(0.0); C]; G];
        // SAFETY: vouched for by the caller.
        unsafe {
            for d in 0..shape.dim {
                let mut key = [V::splat(0.0); C];
                for c in 0..C {
                    key[c] = V::load(keys.add(d * shape.stride() + c * LANES));
                }
                for g in 0..G {
                    let q = V::splat(*self.query.as_ptr().add(g * shape.dim + d));
                    for c in 0..C {
                        score[g][c] = q.fma(key[c], score[g][c]);
                    }
                }
            }
            for g in 0..G {
                for c in 0..C {
                    let to = self.scores.add(g * self.reach + first + c * LANES);
                    let scaled = score[g][c].mul(scale);
                    match self.scoring.cap {
                        None => scaled.store(to),
                        Some(cap) => math::soft_cap(scaled, V::splat(cap)).store(to),
                    }
                }
            }
        }
    }

    /// Weighted sums of C x 16 dimensions from `at` on.
    /// # Safety
    /// As `heads`.
    #[inline(always)]
    unsafe fn values<V: Lanes, const G: usize, const C: usize>(
        &self,
        at: usize,
        span: (usize, usize),
        totals: &[f32; G],
    ) {
        let shape = self.kv.shape;
        let mut sum = [[V::splat(0.0); C]; G];
        // SAFETY: vouched for by the caller.
        unsafe {
            for (i, page) in self.pages(span) {
                let first = i * shape.page_tokens;
                let values = self.kv.values.as_ptr().add(*page as usize * shape.value_page());
                let values = values.add(self.kv_head * shape.page_tokens * shape.width() + at);
                for slot in span.0.saturating_sub(first)..shape.page_tokens.min(span.1 - first) {
                    let mut value = [V::splat(0.0); C];
                    for c in 0..C {
                        value[c] = V::load(values.add(slot * shape.width() + c * LANES));
                    }
                    for g in 0..G {
                        let weight = V::splat(*self.scores.add(g * self.reach + first + slot));
                        for c in 0..C {
                            sum[g][c] = weight.fma(value[c], sum[g][c]);
                        }
                    }
                }
            }
            for g in 0..G {
                let inverse = V::splat(1.0 / totals[g]);
                for c in 0..C {
                    let mut lanes = [0f32; LANES];
                    sum[g][c].mul(inverse).store(lanes.as_mut_ptr());
                    let from = at + c * LANES;
                    let count = LANES.min(shape.dim.saturating_sub(from));
                    let to = self.out.add(g * shape.dim + from.min(shape.dim));
                    to.copy_from_nonoverlapping(lanes.as_ptr(), count);
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
