//! The store on rows in memory: commands one by one here, whole lives in the files below.

#![allow(clippy::unwrap_used)]

mod deletion;
mod lists;
mod runs;

use super::*;
use crate::journal::{Entry, Tokens, TurnEnd};
use crate::limits;

pub(super) fn owner(tenant: &str) -> Owner {
    Owner { tenant: tenant.to_owned(), key: "k1".to_owned() }
}

pub(super) fn target(tenant: &str, id: &str) -> Target {
    Target { tenant: tenant.to_owned(), id: id.to_owned() }
}

pub(super) fn item(id: &str, text: &str) -> Item {
    Item { id: id.to_owned(), body: Body::Inline(text.as_bytes().to_vec()) }
}

pub(super) fn accept(id: &str, now_ms: u64) -> Accept {
    Accept {
        owner: owner("t1"),
        id: id.to_owned(),
        model: "toy".to_owned(),
        background: true,
        created_ms: now_ms,
        previous: None,
        conversation: None,
        record: Body::Inline(format!("record of {id}").into_bytes()),
        request: Body::Inline(b"{}".to_vec()),
        input: vec![item(&format!("msg_in_{id}"), &format!("question of {id}"))],
        once: None,
    }
}

pub(super) fn answered(id: &str, now_ms: u64) -> StoreCommand {
    let tokens = Tokens { prompt: 10, cached: 2, output: 5, reasoning: 0 };
    StoreCommand::Journal {
        target: target("t1", id),
        entry: Entry::ItemComplete { item: 0, tokens, end: Some(TurnEnd::Answered) },
        item: Some(item(&format!("msg_out_{id}"), &format!("answer of {id}"))),
        upload: None,
        now_ms,
    }
}

pub(super) fn conversation(id: &str, items: Vec<Item>, now_ms: u64) -> StoreCommand {
    StoreCommand::CreateConversation(Box::new(NewConversation {
        owner: owner("t1"),
        id: id.to_owned(),
        metadata: b"{}".to_vec(),
        items: NewItems { items, upload: None },
        now_ms,
        once: None,
    }))
}

pub(super) fn done(rows: &mut MemoryRows, command: StoreCommand) {
    assert_eq!(apply(rows, &command).unwrap(), StoreOutcome::Done, "{command:?}");
}

pub(super) fn refused(rows: &mut MemoryRows, command: StoreCommand) -> Refused {
    let before = rows.clone();
    match apply(rows, &command).unwrap() {
        StoreOutcome::Refused(refused) => {
            assert_eq!(*rows, before, "a refused command changed something");
            refused
        }
        other => panic!("{command:?} gave {other:?}"),
    }
}

fn accepted(accept: Accept) -> StoreCommand {
    StoreCommand::AcceptResponse(Box::new(accept))
}

#[test]
fn a_response_is_accepted_answered_and_read() {
    let mut rows = MemoryRows::default();
    done(&mut rows, accepted(accept("r1", 5)));
    assert_eq!(apply(&mut rows, &accepted(accept("r1", 5))).unwrap(), StoreOutcome::Unchanged);
    let r1 = target("t1", "r1");
    assert_eq!(read::unfinished(&rows, None, 10).unwrap().len(), 1);
    done(&mut rows, answered("r1", 9));
    assert_eq!(apply(&mut rows, &answered("r1", 11)).unwrap(), StoreOutcome::Unchanged);
    let response = read::response(&rows, &r1).unwrap().unwrap();
    assert_eq!((response.created_ms, response.ended_ms), (5, 9));
    assert!(read::unfinished(&rows, None, 10).unwrap().is_empty());
    let output = read::all_items(&rows, &r1, ItemList::Output).unwrap();
    assert_eq!(output, [item("msg_out_r1", "answer of r1")]);
    let usage = read::usage(&rows, None, 10).unwrap();
    assert_eq!(usage[0].1.tokens.output, 5, "counted once");
    assert_eq!((usage[0].1.requests, usage[0].1.stored_bytes), (1, response.bytes));
    assert_eq!(read::response(&rows, &target("t2", "r1")).unwrap(), None, "another tenant's");
}

#[test]
fn what_a_response_builds_on_must_be_there_and_over() {
    let mut rows = MemoryRows::default();
    let follow =
        |id: &str, previous: &str| accepted(Accept { previous: Some(previous.to_owned()), ..accept(id, 1) });
    assert_eq!(refused(&mut rows, follow("r2", "r1")), Refused::PreviousNotFound);
    done(&mut rows, accepted(accept("r1", 1)));
    assert_eq!(refused(&mut rows, follow("r2", "r1")), Refused::PreviousNotOver);
    done(&mut rows, answered("r1", 2));
    done(&mut rows, follow("r2", "r1"));
    let alien = accepted(Accept { owner: owner("t2"), previous: Some("r1".to_owned()), ..accept("r3", 1) });
    assert_eq!(refused(&mut rows, alien), Refused::PreviousNotFound);
}

#[test]
fn a_conversation_takes_one_response_at_a_time_and_gets_what_was_said() {
    let mut rows = MemoryRows::default();
    done(&mut rows, conversation("c1", vec![item("m0", "hello")], 1));
    let within = |id: &str| accepted(Accept { conversation: Some("c1".to_owned()), ..accept(id, 2) });
    done(&mut rows, within("r1"));
    let busy = Refused::Busy { response: "r1".to_owned() };
    assert_eq!(refused(&mut rows, within("r2")), busy);
    let items = NewItems { items: vec![item("m1", "meanwhile")], upload: None };
    let add = StoreCommand::AddItems { target: target("t1", "c1"), items, now_ms: 3, once: None };
    assert_eq!(refused(&mut rows, add.clone()), busy);
    done(&mut rows, answered("r1", 4));
    done(&mut rows, add);
    let ids: Vec<String> = read::all_items(&rows, &target("t1", "c1"), ItemList::Conversation)
        .unwrap()
        .into_iter()
        .map(|item| item.id)
        .collect();
    assert_eq!(ids, ["m0", "msg_in_r1", "msg_out_r1", "m1"]);
    // One that is cancelled leaves nothing, and the conversation is free again.
    done(&mut rows, within("r3"));
    let cancel = StoreCommand::Journal {
        target: target("t1", "r3"),
        entry: Entry::Cancelled,
        item: None,
        upload: None,
        now_ms: 6,
    };
    done(&mut rows, cancel);
    let found = read::conversation(&rows, &target("t1", "c1")).unwrap().unwrap();
    assert_eq!((found.items, found.busy), (4, None));
}

#[test]
fn the_same_idempotency_key_makes_the_same_object_for_a_day() {
    let mut rows = MemoryRows::default();
    let with = |id: &str, fingerprint: u8, now_ms: u64| {
        let once = Some(Once { key: "key".to_owned(), fingerprint: [fingerprint; 32] });
        accepted(Accept { once, ..accept(id, now_ms) })
    };
    done(&mut rows, with("r1", 7, 10));
    let again = apply(&mut rows, &with("r2", 7, 20)).unwrap();
    assert_eq!(again, StoreOutcome::Exists { id: "r1".to_owned() });
    assert_eq!(refused(&mut rows, with("r3", 8, 20)), Refused::KeyReused);
    let mut other = accept("r4", 20);
    other.once = Some(Once { key: "key".to_owned(), fingerprint: [8; 32] });
    other.owner = owner("t2");
    done(&mut rows, accepted(other));
    done(&mut rows, with("r5", 8, 10 + limits::IDEMPOTENCY_MS));
}

#[test]
fn large_bodies_come_in_chunks_before_their_object() {
    let mut rows = MemoryRows::default();
    let put = |chunk: u32| StoreCommand::PutChunk {
        target: target("t1", "r1"),
        part: 0,
        chunk,
        bytes: vec![chunk as u8; 1000],
        now_ms: 1,
    };
    let body = Body::Chunked { part: 0, chunks: 2, bytes: 2000 };
    let large = || {
        let input = vec![Item { id: "m".to_owned(), body: body.clone() }];
        accepted(Accept { input, conversation: Some("c1".to_owned()), ..accept("r1", 2) })
    };
    done(&mut rows, conversation("c1", Vec::new(), 1));
    done(&mut rows, put(0));
    assert!(matches!(refused(&mut rows, large()), Refused::Malformed(_)), "a chunk is missing");
    done(&mut rows, put(1));
    assert_eq!(apply(&mut rows, &put(1)).unwrap(), StoreOutcome::Unchanged);
    done(&mut rows, large());
    done(&mut rows, answered("r1", 3));
    // The upload is no longer swept, and the conversation has a copy of its own.
    apply(&mut rows, &StoreCommand::Expire { now_ms: 2 * limits::UPLOAD_MS }).unwrap();
    done(&mut rows, StoreCommand::DeleteResponse { target: target("t1", "r1") });
    let c1 = target("t1", "c1");
    let copy = read::item(&rows, &c1, ItemList::Conversation, "m").unwrap().unwrap();
    assert_eq!(read::body(&rows, &c1, &copy.body).unwrap()[999..1001], [0, 1]);
}

#[test]
fn keys_are_made_and_revoked_once() {
    let mut rows = MemoryRows::default();
    assert!(!read::has_api_keys(&rows).unwrap());
    let key = ApiKey {
        tenant: "t1".to_owned(),
        name: "laptop".to_owned(),
        hash: [3; 32],
        created_ms: 1,
        revoked_ms: None,
    };
    let create = StoreCommand::CreateKey { id: "k1".to_owned(), key };
    done(&mut rows, create.clone());
    assert_eq!(apply(&mut rows, &create).unwrap(), StoreOutcome::Unchanged);
    let revoke = |now_ms| StoreCommand::RevokeKey { id: "k1".to_owned(), now_ms };
    done(&mut rows, revoke(5));
    assert_eq!(apply(&mut rows, &revoke(6)).unwrap(), StoreOutcome::Unchanged);
    assert_eq!(read::api_key(&rows, "k1").unwrap().unwrap().revoked_ms, Some(5));
    assert!(read::has_api_keys(&rows).unwrap(), "a revoked key still closes the door");
}

#[test]
fn names_that_would_break_a_key_are_refused() {
    let mut rows = MemoryRows::default();
    for bad in ["", "a\0b", "a b", &"x".repeat(limits::OBJECT_ID_BYTES + 1)] {
        assert!(matches!(refused(&mut rows, accepted(accept(bad, 1))), Refused::Malformed(_)), "{bad:?}");
        let owner = Owner { tenant: bad.to_owned(), key: "k".to_owned() };
        let alien = accepted(Accept { owner, ..accept("r1", 1) });
        assert!(matches!(refused(&mut rows, alien), Refused::Malformed(_)), "{bad:?}");
    }
    let twice = Accept { input: vec![item("m", "a"), item("m", "b")], ..accept("r1", 1) };
    assert!(matches!(refused(&mut rows, accepted(twice)), Refused::Malformed(_)));
}

#[test]
fn an_answer_that_outgrows_its_bounds_is_refused_whole() {
    let mut rows = MemoryRows::default();
    done(&mut rows, accepted(accept("r1", 1)));
    let most = limits::OUTPUT_ITEMS as u32;
    let entry = |number: u32| StoreCommand::Journal {
        target: target("t1", "r1"),
        entry: Entry::ItemComplete { item: number, tokens: Tokens::default(), end: None },
        item: Some(item(&format!("o{number}"), "x")),
        upload: None,
        now_ms: 1,
    };
    (0..most).for_each(|number| done(&mut rows, entry(number)));
    assert!(matches!(refused(&mut rows, entry(most)), Refused::TooMuch(_)));
}
