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
pub const REQUEST_ID_BYTES: usize = 256;
pub const STOP_TOKENS: usize = 1_024;

// Between nodes
pub const GRPC_MESSAGE_BYTES: usize = 64 << 20;
pub const CONNECT_MS: u64 = 1_000;
pub const KEEPALIVE_MS: u64 = 1_000;
pub const KEEPALIVE_TIMEOUT_MS: u64 = 2_000;
/// Frames queued on an edge before the sender waits.
pub const EDGE_FRAMES: usize = 64;
pub const BLOB_CHUNK_BYTES: usize = 256 << 10;
pub const BLOB_BYTES: u64 = 64 << 30;

// Drivers
/// The first frame of a stream of results must come within this time.
pub const RESULTS_HELLO_MS: u64 = 5_000;
/// Results of an epoch that is not known here yet are held this long.
pub const RESULTS_HOLD_MS: u64 = 30_000;
/// Pause before the edge to the first stage is opened again.
pub const HEAD_RETRY_MS: u64 = 50;
/// Pause before a ready pipeline is proposed as ready again, after no quorum was found.
pub const READY_RETRY_MS: u64 = 200;
/// A step in flight without a result for so long means that the pipeline hangs.
pub const STEP_PROGRESS_MS: u64 = 60_000;
/// How often a driver looks for clients that have gone and deadlines that have passed.
pub const DRIVER_TICK_MS: u64 = 25;
/// Submissions that wait for a driver's loop to look at them.
pub const SUBMISSIONS: usize = 1_024;
/// Busy time over which the rate of tokens is taken.
pub const RATE_WINDOW_MS: u64 = 10_000;

// Generation
/// Events of one sequence that wait for the gateway.
pub const GENERATE_EVENTS: usize = 64;
/// How long a driver may take to accept or refuse a record.
pub const SUBMIT_MS: u64 = 5_000;
/// Pause before a record is submitted again: the first one, and the longest.
pub const RESUBMIT_MIN_MS: u64 = 10;
pub const RESUBMIT_MAX_MS: u64 = 250;
/// Keepalive of connections to other drivers: a dead host is noticed within their sum.
pub const DRIVER_KEEPALIVE_MS: u64 = 1_000;
pub const DRIVER_KEEPALIVE_TIMEOUT_MS: u64 = 1_000;

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
pub const GGUF_ARRAY_ENTRIES: u64 = 4 << 20;
pub const GGUF_HEADER_BYTES: u64 = 256 << 20;
pub const GGUF_DIMENSIONS: u32 = 4;
pub const CONTEXT_TOKENS: u32 = 1 << 20;
pub const LAYERS: u32 = 1_024;

// Cluster
pub const WORKERS: usize = 256;
pub const MODELS: usize = 64;
pub const EVENTS_KEPT: usize = 1_024;
