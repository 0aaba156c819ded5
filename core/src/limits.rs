//! Every bound of the system, with its unit. A queue, message, wait or buffer that is not bounded
//! by a number of this file (or by a flag whose default is here) is a bug.
//!
//! Must never hold logic.

/// Version of the messages between nodes. Nodes of another version are refused with a clear error.
pub const PROTOCOL_VERSION: u32 = 2;
/// Version of the kernels' arithmetic; part of the numerics profile.
pub const KERNEL_VERSION: &str = "i16-2";

// HTTP
pub const HTTP_BODY_BYTES: usize = 4 << 20;
pub const HTTP_HEADER_READ_MS: u64 = 10_000;
pub const HTTP_BODY_READ_MS: u64 = 30_000;
pub const HTTP_CONNECTIONS: usize = 1024;
pub const HTTP_HEADER_BYTES: usize = 64 << 10;
/// Bodies of all requests together while they are read and parsed; beyond it 503.
pub const HTTP_BODIES_BYTES: usize = 256 << 20;
/// Of a body over the limit: read and thrown away, so that the client gets to read its 413.
pub const HTTP_BODY_DISCARD_BYTES: usize = 64 << 20;
/// How long open connections may go on after the coordinator was told to stop.
pub const HTTP_DRAIN_MS: u64 = 5_000;
/// Completions that one coordinator serves at a time; beyond it 503.
pub const REQUESTS_SERVED: usize = 1024;
/// Sequences (prompts times choices) of one request.
pub const SEQUENCES_PER_REQUEST: usize = 128;
/// Content parts of one message.
pub const CONTENT_PARTS: usize = 256;
/// Parameter names and values are cut to this many characters in error messages.
pub const ERROR_WORD_CHARS: usize = 80;
/// Bodies parsed and prompts tokenised at a time, on threads of their own.
pub const PREPARING: usize = 4;
/// How long a request waits for its turn to be parsed or tokenised, and for the tokenizer itself.
pub const PREPARE_WAIT_MS: u64 = 30_000;
/// How long a new request waits for a pipeline that is about to be ready again.
pub const READY_WAIT_MS: u64 = 5_000;
/// How long a streamed answer's status line waits for the first event, so that an early refusal
/// still gets its own status.
pub const FIRST_EVENT_MS: u64 = 1_000;
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
/// Frames of one stream that wait for a slow client.
pub const SSE_FRAMES: usize = 4_096;
/// A client that takes no frame for so long, with all of these waiting, is cut off.
pub const SSE_STALL_MS: u64 = 30_000;
/// An admin call forwarded to the leader.
pub const ADMIN_MS: u64 = 8_000;

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
/// Rows of prefill in one step of a pipeline of one stage, by default. The kernels take rows by 48.
pub const PREFILL_CHUNK_TOKENS: u32 = 96;
/// Several stages share that, so that a prompt is soon in all of them, but not below this.
pub const PREFILL_SHARE_TOKENS: u32 = 32;
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
/// Blobs that one node sends at a time; beyond it RESOURCE_EXHAUSTED, safe to retry.
pub const BLOB_STREAMS: usize = 64;
/// Chunks queued on a blob stream before its reader waits.
pub const BLOB_CHUNKS_QUEUED: usize = 2;
/// A blob stream on which nothing moved for this long is given up, by sender and receiver.
pub const BLOB_STALL_MS: u64 = 10_000;

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
/// Entries and bytes of one replication message; a single larger entry travels alone.
pub const RAFT_APPEND_ENTRIES: u64 = 256;
pub const RAFT_APPEND_BYTES: usize = 1 << 20;
/// How long a replication message may be under way, though its sender asks again earlier.
pub const RAFT_APPEND_MS: u64 = 10_000;
pub const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;
/// One snapshot chunk, sent, written and installed.
pub const SNAPSHOT_CHUNK_MS: u64 = 10_000;
/// Pause before another try at a coordinator that can't be reached.
pub const RAFT_RETRY_MS: u64 = 100;
/// Pause before a vote is asked again of a coordinator that does not listen yet.
pub const RAFT_VOTE_RETRY_MS: u64 = 25;
/// A coordinator asks those it has not heard from this often whether they are there.
pub const RAFT_PROBE_MS: u64 = 500;
/// A coordinator not heard from for this long counts as down.
pub const RAFT_DOWN_MS: u64 = 1_500;
/// Adding a coordinator, until it has caught up, or removing one.
pub const MEMBERSHIP_MS: u64 = 30_000;
/// Commands under way in one coordinator; more wait.
pub const PROPOSALS: usize = 256;
/// Writes queued for the log's disk, and bytes of one commit.
pub const LOG_WRITES: usize = 1_024;
pub const LOG_BATCH_BYTES: usize = 8 << 20;
/// The committed index waits this long for another write to share its commit with.
pub const LOG_COMMITTED_FLUSH_MS: u64 = 100;
pub const LOG_CACHE_BYTES: usize = 32 << 20;

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
/// Experts of one layer.
pub const EXPERTS: u32 = 1_024;

// Cluster
pub const WORKERS: usize = 256;
pub const MODELS: usize = 64;
pub const EVENTS_KEPT: usize = 1_024;
pub const COORDINATORS: usize = 16;
pub const PIPELINES_PER_MODEL: usize = 16;
pub const WORKER_ID_BYTES: usize = 64;
pub const MODEL_NAME_BYTES: usize = 128;
/// Of an address, a device name or a numerics profile.
pub const ADDRESS_BYTES: usize = 256;

// Fleet
/// How often the leader looks at leases and deadlines.
pub const FLEET_TICK_MS: u64 = 20;
/// Reports of workers that wait for the leader's loop before their streams wait.
pub const FLEET_EVENTS: usize = 1_024;
/// Directives that wait for one worker; a worker that lets more wait is disconnected.
pub const FLEET_DIRECTIVES: usize = 64;
/// Bytes of one report of a worker.
pub const FLEET_REPORT_BYTES: usize = 1 << 20;
/// Connections of workers at a time, those in their handshake included.
pub const FLEET_CONNECTIONS: usize = 2 * WORKERS;
/// How long a connected worker may take to say who it is.
pub const HELLO_MS: u64 = 5_000;
/// How long a worker may take to measure a model before another on its machine gets its turn.
pub const MEASURE_MS: u64 = 10_000;
/// A plan that nothing forces waits until no worker has joined or been measured for this long,
pub const PLAN_SETTLE_MS: u64 = 200;
/// and while workers are measured until nothing has happened for this long,
pub const PLAN_WAIT_MS: u64 = 1_500;
/// but no longer than this in all.
pub const PLAN_WAIT_MAX_MS: u64 = 5_000;
/// After a pipeline broke: how long the loss of a worker may take to commit a plan of its own.
pub const PLAN_COMMIT_MS: u64 = 50;
/// A broken pipeline is opened again at growing intervals between these two,
pub const REOPEN_MIN_MS: u64 = 100;
pub const REOPEN_MAX_MS: u64 = 5_000;
/// which start anew once it was ready for this long.
pub const REOPEN_FORGET_MS: u64 = 10_000;
/// After a proposal failed: how long before the next try.
pub const PROPOSE_AGAIN_MS: u64 = 200;
/// Addresses that an assignment names as sources of tensors.
pub const SOURCES: usize = 16;
/// Of the reason why no token could be sampled for a sequence.
pub const SAMPLE_ERROR_BYTES: usize = 512;
/// Of the error that a worker's heartbeat carries.
pub const STAGE_ERROR_BYTES: usize = 1_024;

// Measuring
/// Requests of a load test that may be under way at a time, each on a thread of its own.
pub const BENCH_CLIENTS: usize = 256;
pub const BENCH_REQUESTS: u32 = 100_000;
/// Tokens of a prompt that a load test makes up.
pub const BENCH_PROMPT_TOKENS: u32 = 100_000;
pub const BENCH_REPEATS: u32 = 1_000;
/// Batches, or depths, of one measurement of the engine.
pub const BENCH_SHAPES: usize = 64;
/// A load test connects within this time.
pub const BENCH_CONNECT_MS: u64 = 5_000;
/// One line of a server's stream; the measured server may be any.
pub const BENCH_LINE_BYTES: usize = 1 << 20;
/// Of the body of a refusal, the part that is read.
pub const BENCH_ERROR_BYTES: u64 = 64 << 10;
/// Text of an evaluation.
pub const EVAL_TEXT_BYTES: u64 = 64 << 20;
/// Rows of one step of an evaluation: logits of all of them are held, twice.
pub const EVAL_ROWS: u32 = 64;
