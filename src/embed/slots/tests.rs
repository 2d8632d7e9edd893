use std::{future::Future, net::IpAddr, pin::Pin};

use proptest::prelude::*;

use super::*;

fn client(n: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::from([192, 0, 2, n]))
}

const HOUR: Duration = Duration::from_secs(3600);

type Taking<'a> = Pin<Box<dyn Future<Output = Option<Slot<'a>>> + 'a>>;

/// Has so many of a client's pictures wait.
async fn line(slots: &Slots, client: ClientNetwork, count: usize) -> Vec<Taking<'_>> {
    let mut line = Vec::new();
    for _ in 0..count {
        let mut taking: Taking<'_> = Box::pin(slots.take(client, Instant::now() + HOUR));
        assert!(futures_util::poll!(&mut taking).is_pending());
        line.push(taking);
    }
    line
}

async fn fill(slots: &Slots, client: ClientNetwork) -> Vec<Slot<'_>> {
    let mut taken = Vec::new();
    for _ in 0..slots.count {
        taken.push(slots.take(client, Instant::now() + HOUR).await.unwrap());
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_foreseen_from_the_line_and_from_how_long_slots_are_taken() {
    let slots = Slots::new(2);
    let (one, other) = (client(1), client(2));
    for _ in 0..100 {
        let _slot = slots.take(one, Instant::now() + HOUR).await.unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    let expected = |client| slots.expected_wait(client).as_secs_f64().round();
    assert_eq!(expected(one), 0.0, "slots are free");
    let _taken = fill(&slots, one).await;
    assert_eq!(expected(one), 2.0, "one of two ends in 2 s");
    let line = line(&slots, one, 3).await;
    assert_eq!((slots.waiting(), expected(one)), (3, 8.0));
    assert_eq!(expected(other), 2.0, "it goes before them");
    drop(line);
    assert_eq!(slots.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_the_deadline() {
    let slots = Slots::new(1);
    let started = Instant::now();
    let deadline = started + Duration::from_secs(5);
    let taken = slots.take(client(1), deadline).await.unwrap();
    assert!(slots.take(client(2), deadline).await.is_none());
    assert_eq!((started.elapsed().as_secs(), slots.waiting()), (5, 0));
    drop(taken);
    assert!(slots.take(client(1), deadline).await.is_none(), "free, and too late");
    assert_eq!(slots.state().taken.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_comes_too_late_to_be_used_does_not_shorten_the_wait_that_is_foreseen() {
    let slots = Slots::new(1);
    for _ in 0..100 {
        let _slot = slots.take(client(1), Instant::now() + HOUR).await.unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    let before = slots.typical();
    for _ in 0..20 {
        assert!(slots.take(client(1), Instant::now() + Duration::from_secs(1)).await.is_none());
    }
    assert_eq!((slots.typical(), slots.state().taken.total()), (before, 0));
}

#[tokio::test]
async fn a_client_that_comes_beside_a_flood_gets_the_next_slot() {
    for count in [1, 2, 3, 32] {
        let slots = Slots::new(count);
        let mut taken = fill(&slots, client(1)).await;
        let mut flood = line(&slots, client(1), 100).await;
        let mut newcomer = line(&slots, client(2), 1).await;
        drop(taken.pop());
        let got = futures_util::poll!(&mut newcomer[0]);
        assert!(got.is_ready(), "of {count}");
        assert!(futures_util::poll!(&mut flood[0]).is_pending());
    }
}

#[tokio::test]
async fn two_floods_get_half_of_the_slots_each_and_one_alone_gets_all_in_order() {
    let slots = Slots::new(4);
    let mut taken = fill(&slots, client(1)).await;
    let mut lines = [line(&slots, client(1), 50).await, line(&slots, client(2), 50).await];
    for _ in 0..20 {
        drop(taken.remove(0));
        for line in &mut lines {
            // Within a line, it is the first one's turn.
            if let std::task::Poll::Ready(slot) = futures_util::poll!(&mut line[0]) {
                taken.push(slot.unwrap());
                drop(line.remove(0));
            }
        }
        assert_eq!(taken.len(), 4);
    }
    let held = |n| slots.state().taken.of(client(n));
    assert_eq!((held(1), held(2)), (2, 2));
    lines[1].clear();
    for _ in 0..4 {
        drop(taken.remove(0));
        taken.push(lines[0].remove(0).await.unwrap());
    }
    assert_eq!((held(1), held(2)), (4, 0));
}

proptest! {
    #[test]
    fn however_pictures_come_and_go_no_slot_is_lost_and_nobody_is_remembered(
        count in 1usize..5,
        steps in proptest::collection::vec((0u8..3, 0usize..8, any::<bool>()), 0..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().build().unwrap();
        runtime.block_on(async {
            let slots = Slots::new(count);
            let mut line: Vec<Taking<'_>> = Vec::new();
            let mut taken: Vec<Slot<'_>> = Vec::new();
            for (n, at, comes) in steps {
                if comes {
                    line.push(Box::pin(slots.take(client(n), Instant::now() + HOUR)));
                } else if at < line.len() {
                    // It may have been called, and not know it yet.
                    drop(line.remove(at));
                } else if at < taken.len() + line.len() {
                    drop(taken.remove(at - line.len()));
                }
                // Only some of them hear at once that they were called.
                for index in (0..line.len()).rev().filter(|index| (index + at) % 3 != 0) {
                    if let std::task::Poll::Ready(slot) = futures_util::poll!(&mut line[index]) {
                        taken.push(slot.unwrap());
                        drop(line.remove(index));
                    }
                }
                let state = slots.state();
                assert!(state.taken.total() <= count as u64);
                assert!(state.line.is_empty() || state.taken.total() == count as u64);
            }
            drop((line, taken));
            let state = slots.state();
            assert_eq!((state.taken.total(), state.line.len()), (0, 0));
            assert!(format!("{:?}", state.taken).contains("{}"), "nobody is remembered");
        });
    }
}
