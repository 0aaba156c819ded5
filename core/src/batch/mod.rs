//! Which tokens of which sequences go into the next step: queue, KV pages, continuous batching. No tensors.
