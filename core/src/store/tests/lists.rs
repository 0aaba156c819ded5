//! Pages: every object once, in order, from any cursor, both ways.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn pages(rows: &MemoryRows, kind: Kind, order: Order, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let found = read::list(rows, "t1", kind, &Page { after, order, limit }).unwrap().unwrap();
        assert!(found.rows.len() <= limit);
        all.extend(found.rows.iter().cloned());
        if !found.more {
            return all;
        }
        after = found.rows.last().cloned();
    }
}

use super::read::Page;

proptest! {
    #[test]
    fn every_response_is_listed_once_by_its_time(
        times in prop::collection::vec(0u64..50, 1..40),
        deleted in prop::collection::vec(any::<bool>(), 40),
        limit in 1usize..9,
    ) {
        let mut rows = MemoryRows::default();
        let mut expected = Vec::new();
        for (number, time) in times.iter().enumerate() {
            let id = format!("r{number:02}");
            done(&mut rows, accepted(accept(&id, *time)));
            done(&mut rows, accepted(Accept { owner: owner("t2"), ..accept(&id, *time) }));
            if deleted[number] {
                done(&mut rows, StoreCommand::DeleteResponse { target: target("t1", &id) });
            } else {
                expected.push((*time, id));
            }
        }
        expected.sort();
        let mut ids: Vec<String> = expected.into_iter().map(|(_, id)| id).collect();
        prop_assert_eq!(&pages(&rows, Kind::Response, Order::Ascending, limit), &ids);
        ids.reverse();
        prop_assert_eq!(&pages(&rows, Kind::Response, Order::Descending, limit), &ids);
    }
}

#[test]
fn items_are_paged_in_the_order_they_came() {
    let mut rows = MemoryRows::default();
    let items = (0..25).map(|number| item(&format!("m{number}"), "x")).collect();
    done(&mut rows, conversation("c1", items, 1));
    let c1 = target("t1", "c1");
    let delete = StoreCommand::DeleteItem { target: c1.clone(), item: "m3".to_owned() };
    done(&mut rows, delete.clone());
    assert_eq!(refused(&mut rows, delete), Refused::ItemNotFound);
    let page = |after: Option<&str>, order| {
        let page = Page { after: after.map(str::to_owned), order, limit: 4 };
        let found = read::items(&rows, &c1, ItemList::Conversation, &page).unwrap();
        found.map(|found| (found.rows.into_iter().map(|item| item.id).collect::<Vec<_>>(), found.more))
    };
    let ids = |numbers: [u32; 4]| numbers.map(|number| format!("m{number}")).to_vec();
    assert_eq!(page(Some("m1"), Order::Ascending), Some((ids([2, 4, 5, 6]), true)));
    assert_eq!(page(Some("m5"), Order::Descending), Some((ids([4, 2, 1, 0]), false)));
    assert_eq!(page(Some("m3"), Order::Ascending), None, "a deleted cursor");
}
