//! The team: every part once, panics surface, nothing hangs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[test]
fn every_part_runs_once_also_after_sleeping() {
    for threads in 1..5 {
        let mut team = Team::new(threads);
        assert_eq!(team.threads(), threads);
        for round in 0..2_000usize {
            let counts: Vec<AtomicUsize> = (0..round % 17).map(|_| AtomicUsize::new(0)).collect();
            team.run(counts.len(), |thread, part| {
                assert!(thread < threads);
                counts[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            if round % 500 == 0 {
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_team_goes_on() {
    for threads in [1, 3] {
        let mut team = Team::new(threads);
        for bad in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(20, |_, part| assert!(part != bad, "part {part} is bad"));
            }));
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("part {bad} is bad"));
        }
        let sum = AtomicUsize::new(0);
        team.run(10, |_, part| {
            sum.fetch_add(part, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}

#[test]
fn pieces_cover_the_data() {
    let mut data = vec![0u32; 103];
    Team::new(3).each_piece(&mut data, 10, |index, piece| {
        for x in piece {
            *x += index as u32 + 1;
        }
    });
    assert!(data.iter().enumerate().all(|(i, x)| *x == i as u32 / 10 + 1));
}

#[test]
fn a_slow_part_is_waited_for() {
    let mut team = Team::new(3);
    let done = AtomicUsize::new(0);
    team.run(3, |_, part| {
        thread::sleep(std::time::Duration::from_millis(10 * part as u64));
        done.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(done.into_inner(), 3);
}
