use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;

use super::*;

fn client(n: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)))
}

/// Takes as many units as the client gets, one by one.
fn take_all(shares: &Shares, client: ClientNetwork) -> SharePermit {
    let mut share = shares.empty(client);
    while share.grow_to(share.units + 1).is_ok() {}
    share
}

#[test]
fn a_client_that_is_alone_leaves_a_quarter_and_the_next_one_finds_it() {
    for (total, largest, alone) in
        [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 3), (100, 1, 75), (100, 90, 90)]
    {
        let shares = Shares::new(total, largest, 1);
        let first = take_all(&shares, client(1));
        assert_eq!(first.units, alone, "of {total}");
        assert!(!shares.has_room(client(1), 1));
        assert_eq!(take_all(&shares, client(2)).units, total - alone);
    }
}

#[test]
fn two_clients_get_half_each() {
    let shares = Shares::new(100, 1, 1);
    let (mut one, mut other) = (shares.empty(client(1)), shares.empty(client(2)));
    for units in 1..=50 {
        one.grow_to(units).unwrap();
        other.grow_to(units).unwrap();
    }
    assert_eq!((one.grow_to(51), shares.in_use()), (Err(Full), 100));
}

#[test]
fn where_shares_are_capped_a_client_that_is_alone_gets_its_share_and_no_more() {
    let shares = Shares::capped(10, 4);
    let all: Vec<_> = (1..=4).map(|n| take_all(&shares, client(n))).collect();
    assert_eq!(all.iter().map(|share| share.units).collect::<Vec<_>>(), [4, 4, 2, 0]);
    drop(all);
    assert_eq!(take_all(&shares, client(5)).units, 4);
}

#[test]
fn units_are_counted_in_steps() {
    let shares = Shares::new(100, 1, 10);
    let mut share = shares.empty(client(1));
    assert_eq!(shares.in_use(), 0);
    share.grow_to(11).unwrap();
    assert_eq!(shares.in_use(), 20);
    share.grow_to(5).unwrap();
    assert_eq!(shares.in_use(), 20, "it never shrinks by growing");
    share.shrink_to(1);
    assert_eq!(shares.in_use(), 10);
    assert_eq!(share.grow_to(u64::MAX), Err(Full));
    assert_eq!(shares.in_use(), 10, "a failed attempt takes nothing");
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_is_given_back() {
    let shares = Shares::new(2, 1, 1);
    let soon = Instant::now() + Duration::from_secs(1);
    let held = shares.take(client(1), 2, soon).await.unwrap();
    let mut waits = Box::pin(shares.take(client(2), 1, soon));
    assert!(futures_util::poll!(&mut waits).is_pending());
    drop(held);
    let got = waits.await.unwrap();
    assert_eq!(shares.take(client(1), 2, soon).await.unwrap_err(), Full);
    assert_eq!(Instant::now(), soon);
    drop(got);
    assert_eq!(shares.in_use(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Grow(usize, u64),
    Shrink(usize, u64),
    Drop(usize),
    Panic(usize),
    GiveUpWaiting(usize),
}

fn steps() -> impl Strategy<Value = Vec<(u8, Step)>> {
    let step = prop_oneof![
        (0usize..6, 0u64..120).prop_map(|(at, units)| Step::Grow(at, units)),
        (0usize..6, 0u64..120).prop_map(|(at, units)| Step::Shrink(at, units)),
        (0usize..6).prop_map(Step::Drop),
        (0usize..6).prop_map(Step::Panic),
        (0usize..6).prop_map(Step::GiveUpWaiting),
    ];
    proptest::collection::vec((0u8..4, step), 0..60)
}

proptest! {
    #[test]
    fn however_permits_end_all_units_are_given_back_and_no_client_is_remembered(
        steps in steps(), step in 1u64..8,
    ) {
        let shares = Shares::new(100, 1, step);
        let mut held: Vec<Option<SharePermit>> = (0..6).map(|_| None).collect();
        for (n, step) in steps {
            let new = || shares.empty(client(n));
            match step {
                // If growing fails, the permit keeps what it has.
                Step::Grow(at, units) => drop(held[at].get_or_insert_with(new).grow_to(units)),
                Step::Shrink(at, units) => held[at].get_or_insert_with(new).shrink_to(units),
                Step::Drop(at) => drop(held[at].take()),
                Step::Panic(at) => {
                    let share = held[at].take();
                    let thread = std::thread::spawn(move || {
                        let _share = share;
                        std::panic::resume_unwind(Box::new("planted"));
                    });
                    prop_assert!(thread.join().is_err());
                }
                Step::GiveUpWaiting(at) => {
                    let never = Instant::now() + Duration::from_secs(3600);
                    let mut wait = Box::pin(shares.take(client(n), 60, never));
                    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time().build().unwrap();
                    let _inside = runtime.enter();
                    if let std::task::Poll::Ready(share) = wait.as_mut().poll(&mut context) {
                        held[at] = share.ok();
                    }
                }
            }
            let parts: u64 = held.iter().flatten().map(|share| share.units).sum();
            prop_assert!(parts <= 100);
            let clients: HashSet<_> = held.iter().flatten()
                .filter(|share| share.units > 0).map(|share| share.client).collect();
            let used = shares.used().clone();
            prop_assert_eq!(used.total(), parts);
            prop_assert_eq!(used.of.into_keys().collect::<HashSet<_>>(), clients);
        }
        drop(held);
        prop_assert_eq!(shares.in_use(), 0);
        prop_assert!(shares.used().of.is_empty());
    }
}
