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

// Leases
pub const HEARTBEAT_MS: u64 = 200;
pub const LEASE_MS: u64 = 2_000;
/// After a worker's stream broke: how long it may take to come back before its lease ends.
pub const RECONNECT_GRACE_MS: u64 = 150;

// Worker process
/// Keepalive of the stream to the leader: a dead leader is noticed within their sum.
pub const ATTACH_KEEPALIVE_MS: u64 = 400;
pub const ATTACH_KEEPALIVE_TIMEOUT_MS: u64 = 600;
/// How long a coordinator may take to accept an attach call.
pub const ATTACH_ANSWER_MS: u64 = 10_000;
/// Pause between attempts to attach: the first one, and the longest.
pub const ATTACH_BACKOFF_MIN_MS: u64 = 50;
pub const ATTACH_BACKOFF_MAX_MS: u64 = 1_000;
/// Coordinator addresses that a worker keeps.
pub const COORDINATOR_ADDRESSES: usize = 32;
/// Reports queued for the leader.
pub const REPORTS: usize = 16;
/// Measurements asked for and not yet begun.
pub const MEASURES_WAITING: usize = 16;
/// The first frame of an edge must come within this time.
pub const EDGE_HELLO_MS: u64 = 5_000;
/// An edge that comes before its stage is ready is held open this long.
pub const EDGE_HOLD_MS: u64 = 30_000;
/// Pause before an edge that was not accepted is opened again.
pub const EDGE_RETRY_MS: u64 = 50;
/// Calls in progress on one connection.
pub const STREAMS_PER_CONNECTION: u32 = 256;
/// Flow-control windows, bytes.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Sequences whose sampler state a last stage keeps.
pub const SAMPLERS: usize = 4 * RUNNING_SEQUENCES;
/// Blobs fetched at a time, and blobs served at a time.
pub const BLOB_FETCHES: usize = 4;
pub const BLOBS_SERVED: usize = 32;
/// Chunks of a served blob read ahead of the receiver.
pub const BLOB_CHUNKS_AHEAD: usize = 4;
/// A blob source that sends nothing for this long is left for the next one.
pub const BLOB_STALL_MS: u64 = 5_000;
/// Pause after all sources of a blob were tried in vain.
pub const BLOB_RETRY_MS: u64 = 200;
/// Answer of a link test at most, bytes; and the size the bandwidth test asks for.
pub const PING_BYTES: u32 = 4 << 20;
pub const PING_BANDWIDTH_BYTES: u32 = 1 << 20;
pub const PINGS: usize = 5;
/// One peer's link test as a whole.
pub const LINK_TEST_MS: u64 = 3_000;
/// Peers tested at a time.
pub const LINK_TESTS: usize = 4;
/// How long calls in progress may take to end at shutdown.
pub const SHUTDOWN_MS: u64 = 1_000;

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
pub const GGUF_ARRAY_ENTRIES: u64 = 4 << 20;
pub const GGUF_HEADER_BYTES: u64 = 256 << 20;
pub const GGUF_DIMENSIONS: u32 = 4;
pub const CONTEXT_TOKENS: u32 = 1 << 20;
pub const LAYERS: u32 = 1_024;

// Cluster
pub const WORKERS: usize = 256;
pub const MODELS: usize = 64;
pub const EVENTS_KEPT: usize = 1_024;
