//! Tests of limits that clients share.

use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;

use super::*;

fn client(n: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)))
}

/// The arguments `largest` and `step` of [`Shares::new`] in tests in which they do not matter. With a
/// step of 1, units are not rounded.
const LARGEST: u64 = 1;
const STEP: u64 = 1;

/// Takes units one by one until the client gets no more.
fn take_all(shares: &Shares, client: ClientNetwork) -> SharePermit {
    let mut permit = shares.empty_permit(client);
    while permit.grow_to(permit.units + 1).is_ok() {}
    permit
}

#[test]
fn a_first_client_gets_three_quarters_or_its_share_if_that_is_more_and_a_second_one_the_rest() {
    // A quarter is rounded down: of fewer than four units, the first client gets all. Its share is
    // at least `largest` units, because one permit may need that many.
    for (total, largest, first_client_gets) in
        [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 3), (100, 1, 75), (100, 90, 90)]
    {
        let shares = Shares::new(total, largest, STEP);
        let first = take_all(&shares, client(1));
        assert_eq!(first.units, first_client_gets, "total: {total}, largest: {largest}");
        assert!(!shares.would_grant(client(1), 1));
        assert_eq!(take_all(&shares, client(2)).units, total - first_client_gets);
    }
}

#[test]
fn two_clients_that_take_units_in_turn_get_half_of_the_units_each() {
    let shares = Shares::new(100, LARGEST, STEP);
    let (mut first, mut second) = (shares.empty_permit(client(1)), shares.empty_permit(client(2)));
    for units in 1..=50 {
        first.grow_to(units).unwrap();
        second.grow_to(units).unwrap();
    }
    assert_eq!((first.grow_to(51), shares.in_use()), (Err(NotEnoughUnits), 100));
}

#[test]
fn a_client_never_exceeds_a_capped_share() {
    let (total, share) = (10, 4);
    let shares = Shares::capped(total, share);
    let permits: Vec<_> = (1..=4).map(|n| take_all(&shares, client(n))).collect();
    assert_eq!(permits.iter().map(|permit| permit.units).collect::<Vec<_>>(), [4, 4, 2, 0]);
    drop(permits);
    assert_eq!(take_all(&shares, client(5)).units, 4);
}

#[test]
fn units_are_rounded_up_to_a_multiple_of_the_step() {
    let step = 10;
    let shares = Shares::new(100, LARGEST, step);
    let mut permit = shares.empty_permit(client(1));
    assert_eq!(shares.in_use(), 0);
    permit.grow_to(11).unwrap();
    assert_eq!(shares.in_use(), 20);
    permit.grow_to(5).unwrap();
    assert_eq!(shares.in_use(), 20, "`grow_to` must not shrink the permit");
    permit.shrink_to(1);
    assert_eq!(shares.in_use(), 10);
    assert_eq!(permit.grow_to(u64::MAX), Err(NotEnoughUnits));
    assert_eq!(shares.in_use(), 10, "a refused `grow_to` must take nothing");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_client_gets_units_that_are_returned_or_an_error_at_the_deadline() {
    let shares = Shares::new(2, LARGEST, STEP);
    let deadline = Instant::now() + Duration::from_secs(1);
    // A quarter of two units is rounded down to none, so the first client gets both.
    let first = shares.take(client(1), 2, deadline).await.unwrap();
    let mut waiting = Box::pin(shares.take(client(2), 1, deadline));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(first);
    let second = waiting.await.unwrap();
    // The second client keeps its unit, so only one is free.
    assert_eq!(shares.take(client(1), 2, deadline).await.unwrap_err(), NotEnoughUnits);
    assert_eq!(Instant::now(), deadline);
    drop(second);
    assert_eq!(shares.in_use(), 0);
}

/// What happens to one of six permits. `index` is the permit's index.
///
/// `Grow` and `Shrink` make an empty permit if there is none. For `Panic`, a thread that owns the
/// permit panics. For `TakeOrGiveUp`, a client asks for 60 units. If it gets them at once, the new
/// permit replaces the old one. Otherwise the client stops waiting.
#[derive(Debug, Clone)]
enum Action {
    Grow { index: usize, units: u64 },
    Shrink { index: usize, units: u64 },
    Drop { index: usize },
    Panic { index: usize },
    TakeOrGiveUp { index: usize },
}

/// Random actions, each with a client's number. If the action makes a permit, the permit is for this
/// client.
fn random_actions() -> impl Strategy<Value = Vec<(u8, Action)>> {
    let action = prop_oneof![
        (0usize..6, 0u64..120).prop_map(|(index, units)| Action::Grow { index, units }),
        (0usize..6, 0u64..120).prop_map(|(index, units)| Action::Shrink { index, units }),
        (0usize..6).prop_map(|index| Action::Drop { index }),
        (0usize..6).prop_map(|index| Action::Panic { index }),
        (0usize..6).prop_map(|index| Action::TakeOrGiveUp { index }),
    ];
    proptest::collection::vec((0u8..4, action), 0..60)
}

proptest! {
    #[test]
    fn after_any_actions_the_units_in_use_are_those_of_the_existing_permits(
        actions in random_actions(), step in 1u64..8,
    ) {
        let shares = Shares::new(100, LARGEST, step);
        let mut permits: Vec<Option<SharePermit>> = (0..6).map(|_| None).collect();
        for (client_number, action) in actions {
            let client = client(client_number);
            let empty_permit = || shares.empty_permit(client);
            match action {
                Action::Grow { index, units } => {
                    // An error leaves the permit as it was.
                    let _ = permits[index].get_or_insert_with(empty_permit).grow_to(units);
                }
                Action::Shrink { index, units } => {
                    permits[index].get_or_insert_with(empty_permit).shrink_to(units);
                }
                Action::Drop { index } => permits[index] = None,
                Action::Panic { index } => {
                    let permit = permits[index].take();
                    let thread = std::thread::spawn(move || {
                        let _permit = permit;
                        std::panic::resume_unwind(Box::new("a panic of the test"));
                    });
                    prop_assert!(thread.join().is_err());
                }
                Action::TakeOrGiveUp { index } => {
                    let deadline = Instant::now() + Duration::from_secs(3600);
                    let mut waiting = Box::pin(shares.take(client, 60, deadline));
                    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time().build().unwrap();
                    let _inside = runtime.enter();
                    if let std::task::Poll::Ready(permit) = waiting.as_mut().poll(&mut context) {
                        permits[index] = Some(permit.unwrap());
                    }
                }
            }
            let total: u64 = permits.iter().flatten().map(|permit| permit.units).sum();
            prop_assert!(total <= 100);
            let clients: HashSet<_> = permits.iter().flatten()
                .filter(|permit| permit.units > 0).map(|permit| permit.client).collect();
            let tally = shares.tally().clone();
            prop_assert_eq!(tally.total(), total);
            prop_assert_eq!(tally.by_client.into_keys().collect::<HashSet<_>>(), clients);
        }
        drop(permits);
        prop_assert_eq!(shares.in_use(), 0);
        prop_assert!(shares.tally().by_client.is_empty());
    }
}
