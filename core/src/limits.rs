//! Every bound of the system, with its unit. A queue, message, wait or buffer that is not bounded
//! by a number of this file (or by a flag whose default is here) is a bug.
//!
//! Must never hold logic.

/// Version of the messages between nodes. Nodes of another version are refused with a clear error.
pub const PROTOCOL_VERSION: u32 = 1;
/// Version of the kernels' arithmetic; part of the numerics profile.
pub const KERNEL_VERSION: &str = "f32-acc-1";

// HTTP
pub const HTTP_BODY_BYTES: usize = 4 << 20;
pub const HTTP_HEADER_READ_MS: u64 = 10_000;
pub const HTTP_BODY_READ_MS: u64 = 30_000;
pub const HTTP_CONNECTIONS: usize = 1024;
pub const CHOICES: u32 = 16;
pub const MESSAGES: usize = 2048;
pub const PROMPTS_PER_REQUEST: usize = 64;
pub const STOP_STRINGS: usize = 16;
pub const STOP_STRING_BYTES: usize = 256;
pub const LOGIT_BIAS_ENTRIES: usize = 1024;
pub const TOP_LOGPROBS: u8 = 20;
pub const REQUEST_DEADLINE_MS: u64 = 600_000;
/// A stream on which nothing is due says it is alive this often.
pub const SSE_KEEPALIVE_MS: u64 = 10_000;

// Chat templates
pub const TEMPLATE_FUEL: u64 = 2_000_000;
pub const TEMPLATE_OUTPUT_BYTES: usize = 2 << 20;
pub const TEMPLATE_SOURCE_BYTES: usize = 1 << 20;
/// Nesting of macro calls, includes and loops.
pub const TEMPLATE_RECURSION: usize = 64;
/// Stack of the thread that renders: values can be nested as deep as the fuel allows.
pub const TEMPLATE_STACK_BYTES: usize = 256 << 20;

// Tokenizer
/// A longer run without a place to split is cut into parts of this size before pairs are merged.
pub const TOKENIZER_WORD_BYTES: usize = 16 << 10;

// Scheduling
/// Sequences that wait for admission in one pipeline; beyond it 429.
pub const WAITING_SEQUENCES: usize = 512;
/// Sequences admitted in one pipeline at a time.
pub const RUNNING_SEQUENCES: usize = 256;
pub const PAGE_TOKENS: u32 = 32;
pub const PREFILL_CHUNK_TOKENS: u32 = 128;
/// Rows (decode tokens and prefill tokens) of one step.
pub const STEP_ROWS: u32 = 512;
pub const RETRY_AFTER_MS: u64 = 1_000;

// Between nodes
pub const GRPC_MESSAGE_BYTES: usize = 64 << 20;
pub const CONNECT_MS: u64 = 1_000;
pub const KEEPALIVE_MS: u64 = 1_000;
pub const KEEPALIVE_TIMEOUT_MS: u64 = 2_000;
/// Frames queued on an edge before the sender waits.
pub const EDGE_FRAMES: usize = 64;
pub const BLOB_CHUNK_BYTES: usize = 256 << 10;
pub const BLOB_BYTES: u64 = 64 << 30;
/// Blobs that one node sends at a time; beyond it RESOURCE_EXHAUSTED, safe to retry.
pub const BLOB_STREAMS: usize = 64;
/// Chunks queued on a blob stream before its reader waits.
pub const BLOB_CHUNKS_QUEUED: usize = 2;
/// A blob stream on which nothing moved for this long is given up, by sender and receiver.
pub const BLOB_STALL_MS: u64 = 10_000;

// Leases
pub const HEARTBEAT_MS: u64 = 200;
pub const LEASE_MS: u64 = 2_000;
/// After a worker's stream broke: how long it may take to come back before its lease ends.
pub const RECONNECT_GRACE_MS: u64 = 150;

// Consensus
pub const RAFT_HEARTBEAT_MS: u64 = 100;
pub const RAFT_ELECTION_MIN_MS: u64 = 400;
pub const RAFT_ELECTION_MAX_MS: u64 = 800;
pub const PROPOSE_MS: u64 = 5_000;
pub const COMMAND_BYTES: usize = 4 << 20;
pub const SNAPSHOT_BYTES: usize = 256 << 20;
pub const SNAPSHOT_EVERY_ENTRIES: u64 = 2_000;
pub const LOG_KEEP_ENTRIES: u64 = 500;

// Model files
pub const GGUF_METADATA_ENTRIES: u64 = 4_096;
pub const GGUF_TENSORS: u64 = 65_536;
pub const GGUF_STRING_BYTES: u64 = 4 << 20;
/// Of all arrays of a file together.
pub const GGUF_ARRAY_ENTRIES: u64 = 4 << 20;
pub const GGUF_HEADER_BYTES: u64 = 256 << 20;
pub const GGUF_DIMENSIONS: u32 = 4;
/// Arrays within arrays.
pub const GGUF_ARRAY_DEPTH: u32 = 4;
pub const GGUF_KEY_BYTES: u64 = 65_535;
pub const GGUF_TENSOR_NAME_BYTES: u64 = 64;
pub const GGUF_ALIGNMENT: u64 = 1 << 16;
/// Threads that hash a file which is not known yet.
pub const HASH_THREADS: usize = 2;
pub const CONTEXT_TOKENS: u32 = 1 << 20;
pub const LAYERS: u32 = 1_024;

// Cluster
pub const WORKERS: usize = 256;
pub const MODELS: usize = 64;
pub const EVENTS_KEPT: usize = 1_024;
