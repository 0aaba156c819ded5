//! The KV cache of a slice: pages of keys and values, one slab a layer.
//!
//! Pages are numbered by the driver's scheduler, the same at every stage; there is no allocator
//! here. Memory becomes resident only as pages are written.
//! Must never be trusted to hold zeros: a page may hold the rows of a sequence that is gone.

use caravan_core::model::KvPrecision;
use caravan_kernels::Team;
use caravan_kernels::attention::{Half, Kv, KvShape, Scoring, Sight, Stored, attend};

pub struct KvCache {
    shape: KvShape,
    pages: u32,
    slabs: Slabs,
}

/// Keys and values of each layer.
type Layers<E> = Vec<(Vec<E>, Vec<E>)>;

enum Slabs {
    F32(Layers<f32>),
    F16(Layers<Half>),
}

/// What attention reads and writes beside the cache.
pub struct Looks<'a> {
    pub scoring: Scoring,
    pub sights: &'a [Sight<'a>],
    /// rows x heads x dim, as `out`.
    pub query: &'a [f32],
    pub out: &'a mut [f32],
    /// Kept from call to call.
    pub scratch: &'a mut Vec<f32>,
}

impl KvCache {
    pub fn new(shape: KvShape, precision: KvPrecision, pages: u32, layers: usize) -> KvCache {
        let slabs = match precision {
            KvPrecision::F32 => Slabs::F32(empty(shape, pages, layers)),
            KvPrecision::F16 => Slabs::F16(empty(shape, pages, layers)),
        };
        KvCache { shape, pages, slabs }
    }

    pub fn pages(&self) -> u32 {
        self.pages
    }

    pub fn page_tokens(&self) -> u32 {
        self.shape.page_tokens as u32
    }

    /// Bytes when every page is in use.
    pub fn memory_bytes(&self) -> u64 {
        match &self.slabs {
            Slabs::F32(layers) => bytes(layers),
            Slabs::F16(layers) => bytes(layers),
        }
    }

    /// Stores rows of keys and values (each rows x kv_heads x dim) of `layer` (counted in the
    /// slice) at `slots`, a (page, slot) for each row.
    pub fn put(&mut self, layer: usize, slots: &[(u32, u32)], keys: &[f32], values: &[f32]) {
        match &mut self.slabs {
            Slabs::F32(layers) => put(self.shape, &mut layers[layer], slots, (keys, values)),
            Slabs::F16(layers) => put(self.shape, &mut layers[layer], slots, (keys, values)),
        }
    }

    /// Attention over what `layer` holds.
    pub fn attend(&self, layer: usize, team: &mut Team, looks: Looks<'_>) {
        match &self.slabs {
            Slabs::F32(layers) => look(self.shape, &layers[layer], team, looks),
            Slabs::F16(layers) => look(self.shape, &layers[layer], team, looks),
        }
    }
}

fn empty<E: Stored>(shape: KvShape, pages: u32, layers: usize) -> Layers<E> {
    let pages = pages as usize;
    let slab = |_| (E::zeros(pages * shape.key_page()), E::zeros(pages * shape.value_page()));
    (0..layers).map(slab).collect()
}

fn bytes<E>(layers: &Layers<E>) -> u64 {
    layers.iter().map(|(keys, values)| (size_of_val(&keys[..]) + size_of_val(&values[..])) as u64).sum()
}

fn put<E: Stored>(
    shape: KvShape,
    (key_slab, value_slab): &mut (Vec<E>, Vec<E>),
    slots: &[(u32, u32)],
    (keys, values): (&[f32], &[f32]),
) {
    let width = shape.kv_heads * shape.dim;
    let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
    for (&(page, slot), row) in slots.iter().zip(rows) {
        shape.put((key_slab, value_slab), (page as usize, slot as usize), row);
    }
}

fn look<E: Stored>(shape: KvShape, (keys, values): &(Vec<E>, Vec<E>), team: &mut Team, looks: Looks<'_>) {
    let Looks { scoring, sights, query, out, scratch } = looks;
    attend(team, (Kv { shape, keys, values }, scoring), sights, query, out, scratch);
}
