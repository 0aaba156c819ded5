//! The KV cache of a slice: pages of f32 keys and values, one slab a layer.
//!
//! Pages are numbered by the driver's scheduler, the same at every stage; there is no allocator
//! here. Memory becomes resident only as pages are written.
//! Must never be trusted to hold zeros: a page may hold the rows of a sequence that is gone.

use caravan_kernels::attention::{Kv, KvShape};

pub struct KvCache {
    shape: KvShape,
    pages: u32,
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl KvCache {
    pub fn new(shape: KvShape, pages: u32, layers: usize) -> KvCache {
        let slab = || {
            let pages = pages as usize;
            (vec![0.0; pages * shape.key_page()], vec![0.0; pages * shape.value_page()])
        };
        KvCache { shape, pages, layers: (0..layers).map(|_| slab()).collect() }
    }

    pub fn pages(&self) -> u32 {
        self.pages
    }

    pub fn page_tokens(&self) -> u32 {
        self.shape.page_tokens as u32
    }

    /// Bytes when every page is in use.
    pub fn memory_bytes(&self) -> u64 {
        self.layers.iter().map(|(keys, values)| 4 * (keys.len() + values.len()) as u64).sum()
    }

    /// Stores rows of keys and values (each rows x kv_heads x dim) of `layer` (counted in the
    /// slice) at `slots`, a (page, slot) for each row.
    pub fn put(&mut self, layer: usize, slots: &[(u32, u32)], keys: &[f32], values: &[f32]) {
        let width = self.shape.kv_heads * self.shape.dim;
        let (key_slab, value_slab) = &mut self.layers[layer];
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (&(page, slot), row) in slots.iter().zip(rows) {
            self.shape.put((key_slab, value_slab), (page as usize, slot as usize), row);
        }
    }

    /// One layer for attention.
    pub fn layer(&self, layer: usize) -> Kv<'_> {
        let (keys, values) = &self.layers[layer];
        Kv { shape: self.shape, keys, values }
    }
}
