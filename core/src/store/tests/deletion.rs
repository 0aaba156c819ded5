//! Deleted and expired: nothing is left, and nothing else is touched.

#![allow(clippy::unwrap_used)]

use super::*;

/// Rows that hold the text, in key or value.
fn search(rows: &MemoryRows, text: &str) -> Vec<String> {
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let found = rows.0.iter().filter(|((_, key), value)| holds(&key.0) || holds(value));
    found.map(|((table, _), _)| table.name().to_owned()).collect()
}

fn world() -> MemoryRows {
    let mut rows = MemoryRows::default();
    done(&mut rows, conversation("c1", vec![item("m0", "canary in c1")], 1));
    for id in ["canary-r1", "r2"] {
        let conversation = Some("c1".to_owned());
        done(&mut rows, accepted(Accept { conversation, ..accept(id, 1) }));
        done(&mut rows, answered(id, 2));
    }
    rows
}

#[test]
fn a_deleted_response_leaves_no_trace_outside_the_conversation_it_was_said_in() {
    let mut rows = world();
    assert!(!search(&rows, "record of canary-r1").is_empty());
    done(&mut rows, StoreCommand::DeleteResponse { target: target("t1", "canary-r1") });
    assert_eq!(search(&rows, "record of canary-r1"), [""; 0]);
    let left = search(&rows, "canary-r1");
    assert!(left.iter().all(|table| table == "items" || table == "item_numbers"), "{left:?}");
    done(&mut rows, StoreCommand::DeleteConversation { target: target("t1", "c1") });
    assert_eq!(search(&rows, "canary"), [""; 0]);
    assert!(read::response(&rows, &target("t1", "r2")).unwrap().is_some());
}

#[test]
fn when_all_is_deleted_only_usage_and_totals_are_left() {
    let mut rows = world();
    done(&mut rows, accepted(accept("r3", 5)));
    for id in ["canary-r1", "r2", "r3"] {
        done(&mut rows, StoreCommand::DeleteResponse { target: target("t1", id) });
    }
    done(&mut rows, StoreCommand::DeleteConversation { target: target("t1", "c1") });
    assert!(rows.0.keys().all(|(table, _)| matches!(table, Table::Usage | Table::Totals)), "{rows:?}");
    assert_eq!(read::totals(&rows).unwrap(), (0, 0));
    assert_eq!(read::usage(&rows, None, 9).unwrap()[0].1.stored_bytes, 0);
    assert_eq!(refused(&mut rows, answered("r3", 9)), Refused::NotFound(Kind::Response));
}

#[test]
fn the_conversation_of_a_deleted_run_is_free_again() {
    let mut rows = world();
    let within = |id: &str| accepted(Accept { conversation: Some("c1".to_owned()), ..accept(id, 3) });
    done(&mut rows, within("r3"));
    done(&mut rows, StoreCommand::DeleteResponse { target: target("t1", "r3") });
    done(&mut rows, within("r4"));
    // And the conversation may go while a run is under way in it.
    done(&mut rows, StoreCommand::DeleteConversation { target: target("t1", "c1") });
    done(&mut rows, answered("r4", 4));
}

#[test]
fn time_removes_what_is_over_and_nothing_that_is_not() {
    let mut rows = world();
    done(&mut rows, accepted(accept("running", 3)));
    let once = Some(Once { key: "once".to_owned(), fingerprint: [1; 32] });
    done(&mut rows, accepted(Accept { once, ..accept("r9", 3) }));
    let chunk = StoreCommand::PutChunk {
        target: target("t1", "never"),
        part: 0,
        chunk: 0,
        bytes: b"canary upload".to_vec(),
        now_ms: 3,
    };
    done(&mut rows, chunk);
    let expire = |rows: &mut MemoryRows, now_ms| apply(rows, &StoreCommand::Expire { now_ms }).unwrap();
    assert_eq!(expire(&mut rows, 4), StoreOutcome::Removed { objects: 0 });
    assert!(!read::is_due(&rows, 4).unwrap());
    assert!(read::is_due(&rows, 3 + limits::UPLOAD_MS).unwrap());
    assert_eq!(expire(&mut rows, 3 + limits::UPLOAD_MS), StoreOutcome::Removed { objects: 1 });
    assert_eq!(search(&rows, "canary upload"), [""; 0]);
    assert_eq!(expire(&mut rows, 3 + limits::IDEMPOTENCY_MS), StoreOutcome::Removed { objects: 1 });
    // Two responses and a conversation.
    assert_eq!(expire(&mut rows, 2 + limits::RETENTION_MS), StoreOutcome::Removed { objects: 3 });
    assert_eq!(search(&rows, "canary"), [""; 0]);
    let left = read::unfinished(&rows, None, 9).unwrap();
    assert_eq!(left.len(), 2, "runs are not over");
}
