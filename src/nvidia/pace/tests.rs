//! Tests of the limiter in simulated time.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;

// Two clients. No `client(number)` equals `FIRST`.
const FIRST: ClientNetwork = ClientNetwork::UNKNOWN;
const SECOND: ClientNetwork = client(2);

/// Longer than any wait of these tests.
const NO_DEADLINE: Duration = Duration::from_secs(1_000_000);

/// The argument `is_spread` of all calls here, except those of [`batch`].
const SPREAD: bool = true;

const fn client(number: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::V4(Ipv4Addr::new(127, 0, 0, number)))
}

/// A limiter for many clients.
fn pace(calls_per_window: u32) -> PaceLimiter {
    PaceLimiter::new(calls_per_window, WINDOW, Clients::Many, None)
}

/// Waits for a permit, uses it, and returns the time of the call.
async fn call(pace: &PaceLimiter, client_network: ClientNetwork) -> Instant {
    let permit =
        pace.take_permit(client_network, SPREAD, Instant::now() + NO_DEADLINE).await.unwrap();
    permit.use_now().await;
    Instant::now()
}

/// Makes `count` calls of a client as soon as the limiter permits them, and returns their times.
async fn calls(pace: &PaceLimiter, client_network: ClientNetwork, count: usize) -> Vec<Instant> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let pace = pace.clone();
        tasks.spawn(async move { call(&pace, client_network).await });
    }
    let mut times = tasks.join_all().await;
    times.sort_unstable();
    times
}

/// The fewest and the most calls in any period of this length that begins with a call and ends no later
/// than the last call.
fn fewest_and_most(times: &[Instant], period: Duration) -> (usize, usize) {
    let last = *times.last().unwrap();
    let starts = times.iter().enumerate().filter(|(_, start)| **start + period <= last);
    let counts = starts.map(|(index, start)| {
        let in_period = times[index..].iter().take_while(|time| **time < *start + period);
        in_period.count()
    });
    let counts: Vec<usize> = counts.collect();
    (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
}

/// What a client does after it has got a permit.
#[derive(Debug, Clone, Copy)]
enum Use {
    Now,
    /// Uses the permit after this many milliseconds.
    After(u64),
    Never,
}

fn any_use() -> impl Strategy<Value = Use> {
    prop_oneof![Just(Use::Now), (0u64..9_000).prop_map(Use::After), Just(Use::Never)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_minute_contains_more_calls_than_the_limit(
        requests in proptest::collection::vec((0u64..5_000, 1u8..4, any_use()), 1..150),
        limit in 1u32..50,
        has_one_client in any::<bool>(),
    ) {
        let clients = if has_one_client { Clients::One } else { Clients::Many };
        let times = paused(async move {
            let pace = PaceLimiter::new(limit, WINDOW, clients, None);
            let mut tasks = JoinSet::new();
            for (millis_since_last, number, use_permit) in requests {
                sleep(Duration::from_millis(millis_since_last)).await;
                let pace = pace.clone();
                tasks.spawn(async move {
                    let deadline = Instant::now() + Duration::from_secs(90);
                    let permit = pace.take_permit(client(number), SPREAD, deadline).await.ok()?;
                    match use_permit {
                        Use::Now => {}
                        Use::After(millis) => sleep(Duration::from_millis(millis)).await,
                        Use::Never => return None,
                    }
                    permit.use_now().await;
                    Some(Instant::now())
                });
            }
            let mut times: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
            times.sort_unstable();
            times
        });
        // Each of these slices contains one call more than the limit.
        for calls in times.windows(limit as usize + 1) {
            prop_assert!(calls[limit as usize] - calls[0] > Duration::from_secs(60));
        }
    }

    #[test]
    fn reserved_calls_are_made_by_their_deadline_if_no_other_client_has_reserved_any(
        earlier in 0usize..60,
        reservations in proptest::collection::vec((1u8..4, 1usize..30), 1..6),
        limit in 1u32..50,
    ) {
        paused(async move {
            let pace = pace(limit);
            let deadline = Instant::now() + Duration::from_secs(100);
            for _ in 0..earlier {
                // The near deadline allows only calls that need not wait.
                let soon = Instant::now() + Duration::from_millis(1);
                if let Ok(permit) = pace.take_permit(FIRST, SPREAD, soon).await {
                    permit.use_now().await;
                }
            }
            let mut guards = Vec::new();
            for (number, count) in reservations {
                let guard = pace.reserve(client(number), count, Instant::now(), deadline);
                guards.extend(guard.map(|guard| (number, count, guard)));
            }
            // A later reservation of another client may delay an earlier one, so that they share the
            // calls evenly. The calls are certain to be in time only if one client has reserved them all.
            let first = guards.first().map(|(number, ..)| *number);
            let is_alone = guards.iter().all(|(number, ..)| Some(*number) == first);
            let mut tasks = JoinSet::new();
            for (number, count, guard) in guards {
                drop(guard); // otherwise each call would count twice: as reserved and as waiting
                for _ in 0..count {
                    let pace = pace.clone();
                    tasks.spawn(async move {
                        let permit = pace.take_permit(client(number), SPREAD, deadline).await;
                        permit?.use_now().await;
                        Ok::<(), Duration>(())
                    });
                }
            }
            let results = tasks.join_all().await;
            assert!(!is_alone || results.iter().all(Result::is_ok));
        });
    }
}

/// Runs a future with simulated time.
fn paused<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// Reserves the calls of a batch, makes them as soon as possible, and returns their times.
async fn batch(pace: &PaceLimiter, client_network: ClientNetwork, count: usize) -> Vec<Instant> {
    let (now, deadline) = (Instant::now(), Instant::now() + NO_DEADLINE);
    let mut reservation = pace.reserve(client_network, count, now, deadline).unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (pace, one_call) = (pace.clone(), reservation.split_one());
        tasks.spawn(async move {
            let is_spread = one_call.is_spread();
            drop(one_call);
            pace.take_permit(client_network, is_spread, deadline).await.unwrap().use_now().await;
            Instant::now()
        });
    }
    let mut times = tasks.join_all().await;
    times.sort_unstable();
    times
}

#[tokio::test(start_paused = true)]
async fn the_calls_of_a_batch_that_fits_are_made_at_once_and_a_large_limit_keeps_one_call_free() {
    let (pace, start) = (pace(40), Instant::now());
    assert_eq!(batch(&pace, FIRST, 39).await, [start; 39]);
    assert_eq!(call(&pace, SECOND).await, start);
    // If the limit is less than 20, no call stays free.
    let pace = self::pace(10);
    assert_eq!(batch(&pace, FIRST, 10).await, [start; 10]);
    assert_eq!(call(&pace, SECOND).await, start + WINDOW);
}

#[tokio::test(start_paused = true)]
async fn half_of_the_calls_are_made_at_once_and_the_others_are_spread_over_the_window() {
    let start = Instant::now();
    // One client gets 39 of the 40 calls in a window: one stays free for others.
    let times = calls(&pace(40), FIRST, 39).await;
    assert_eq!(times[..20], [start; 20]);
    // The other 19 calls divide the window of 60.5 s into 20 gaps of about 3 s. The first gap begins with
    // the calls made at once. The last gap ends without a call, so `gaps` does not contain it.
    let gaps: Vec<f64> =
        times[19..].windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!(gaps.iter().all(|gap| (3.0..3.1).contains(gap)), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_client_waits_only_seconds_and_the_run_of_another_client_gets_all_other_calls() {
    // `at_once`: how many calls the run has waiting or running. `seconds`: when the new client comes.
    for (at_once, seconds) in [(500, 7), (500, 70), (500, 333), (8, 30), (8, 200)] {
        let pace = pace(40);
        let run = tokio::spawn({
            let pace = pace.clone();
            async move {
                let mut tasks = JoinSet::new();
                let mut times = Vec::new();
                for _ in 0..500 {
                    if tasks.len() >= at_once {
                        times.extend(tasks.join_next().await.unwrap());
                    }
                    let pace = pace.clone();
                    tasks.spawn(async move {
                        let time = call(&pace, FIRST).await;
                        sleep(Duration::from_millis(300)).await;
                        time
                    });
                }
                times.extend(tasks.join_all().await);
                times.sort_unstable();
                times
            }
        });
        sleep(Duration::from_secs(seconds)).await;
        for _ in 0..3 {
            let wait_started = Instant::now();
            let wait = call(&pace, SECOND).await - wait_started;
            assert!(wait <= Duration::from_secs(6), "{at_once} at once, at {seconds} s: {wait:?}");
            sleep(Duration::from_secs(5)).await;
        }
        let times = run.await.unwrap();
        let minutes = (*times.last().unwrap() - times[0]).as_secs_f64() / 60.0;
        assert!(minutes < 13.2, "500 calls at 39 a minute should take 12.8 minutes, not {minutes}");
        let (_, most) = fewest_and_most(&times, Duration::from_secs(60));
        assert!(most <= 40, "{most} calls in a minute are more than the limit");
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_client_of_a_service_gets_the_whole_limit_in_any_ten_minutes() {
    let pace = PaceLimiter::new(40, WINDOW, Clients::One, None);
    let times = calls(&pace, FIRST, 1200).await;
    let (fewest, _) = fewest_and_most(&times, Duration::from_secs(600));
    let (_, most) = fewest_and_most(&times, Duration::from_secs(60));
    // 40 calls in each window of 60.5 s are 397 in ten minutes.
    assert!(fewest >= 390 && most <= 40, "{fewest} in ten minutes, {most} in one");
}

#[tokio::test(start_paused = true)]
async fn two_clients_get_equally_many_calls() {
    let pace = pace(40);
    let (first, second) = tokio::join!(calls(&pace, FIRST, 300), calls(&pace, SECOND, 100));
    let end = *second.last().unwrap();
    let first_calls = first.iter().filter(|time| **time <= end).count();
    assert!((95..=105).contains(&first_calls), "{first_calls} calls for the first client, not 100");
}

#[test]
fn reserved_calls_count_before_they_wait_for_a_permit() {
    paused(async {
        let (pace, now) = (pace(2), Instant::now());
        let deadline = now + Duration::from_secs(60); // less than a window
        let reservations = [
            pace.reserve(FIRST, 1, now, deadline).unwrap(),
            pace.reserve(FIRST, 1, now, deadline).unwrap(),
        ];
        assert_eq!(pace.reserve(FIRST, 1, now, deadline).unwrap_err(), WINDOW);
        drop(reservations);
        assert!(pace.reserve(FIRST, 2, now, deadline).is_ok());
    });
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_be_made_in_time_fails_at_once_with_the_time_to_wait() {
    let (pace, start) = (pace(1), Instant::now());
    assert_eq!(call(&pace, FIRST).await, start);
    let permit = pace.take_permit(FIRST, SPREAD, start + Duration::from_secs(30)).await;
    assert_eq!((permit.unwrap_err(), Instant::now()), (WINDOW, start));
    assert_eq!(call(&pace, FIRST).await, start + WINDOW);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_new_clients_overtake_fails_at_its_deadline() {
    let (pace, start) = (pace(2), Instant::now());
    // These two calls are half a window apart, so only the first expires at `start + WINDOW`.
    calls(&pace, FIRST, 2).await;
    let overtaken = pace.take_permit(FIRST, SPREAD, start + WINDOW + Duration::from_secs(1));
    let (overtaken, second) = tokio::join!(overtaken, call(&pace, SECOND));
    // Zero means that the deadline has passed.
    assert_eq!((overtaken.unwrap_err(), second), (Duration::ZERO, start + WINDOW));
    assert_eq!(pace.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_is_free_for_another_call_and_a_dropped_wait_does_not_count() {
    let (pace, start) = (pace(1), Instant::now());
    let permit = pace.take_permit(FIRST, SPREAD, start + NO_DEADLINE).await.unwrap();
    let waiting = tokio::spawn({
        let pace = pace.clone();
        async move { call(&pace, SECOND).await }
    });
    sleep(Duration::from_secs(5)).await;
    assert_eq!(pace.waiting(), 1);
    drop(permit);
    assert_eq!(waiting.await.unwrap(), start + Duration::from_secs(5));
    // The timeout drops the future of this call, which then does not count as waiting.
    let given_up =
        timeout(Duration::from_secs(1), pace.take_permit(FIRST, SPREAD, start + NO_DEADLINE)).await;
    assert!(given_up.is_err() && pace.waiting() == 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_counts_from_its_use_and_an_unused_permit_expires_after_a_window() {
    let (pace, start) = (pace(1), Instant::now());
    let permit = pace.take_permit(FIRST, SPREAD, start + NO_DEADLINE).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    permit.use_now().await;
    assert_eq!(call(&pace, FIRST).await, start + Duration::from_secs(20) + WINDOW);
    let unused = pace.take_permit(FIRST, SPREAD, start + NO_DEADLINE).await.unwrap();
    assert!(!unused.is_expired());
    sleep(WINDOW).await;
    assert!(unused.is_expired());
}

#[test]
fn the_largest_reservation_is_the_largest_that_is_not_refused() {
    paused(async {
        let now = Instant::now();
        // With a limit of 20 calls or more, one call stays free for other clients.
        for limit in [1, 2, 10, 19, 20, 40, 100] {
            for seconds in [1, 30, 60, 61, 200] {
                let (pace, time) = (pace(limit), Duration::from_secs(seconds));
                let largest = pace.largest_reservation(150, time);
                assert!(largest == 0 || pace.reserve(FIRST, largest, now, now + time).is_ok());
                let more = pace.reserve(FIRST, largest + 1, now, now + time);
                assert!(largest == 150 || more.is_err(), "{limit} a minute, {seconds} s");
            }
        }
        assert_eq!(pace(10).largest_reservation(150, Duration::from_secs(60)), 10);
        assert_eq!(pace(40).largest_reservation(150, Duration::from_secs(60)), 39);
    });
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_that_becomes_the_next_one_when_earlier_calls_expire_is_made_at_that_time() {
    let (pace, start) = (pace(4), Instant::now());
    calls(&pace, SECOND, 2).await;
    sleep(Duration::from_secs(10)).await;
    calls(&pace, FIRST, 2).await;
    // Each client has two calls in the window, so the call that `join!` starts first is the next one. At
    // `start + WINDOW`, `SECOND` has none in it any more, so its waiting call becomes the next one.
    let (first, second) = tokio::join!(call(&pace, FIRST), call(&pace, SECOND));
    assert_eq!((first, second), (start + WINDOW, start + WINDOW));
}

#[tokio::test(start_paused = true)]
async fn a_refused_reservation_changes_nothing() {
    let pace = pace(7);
    // Six calls of three clients, at different times.
    for seconds in [1, 20, 30] {
        sleep(Duration::from_secs(seconds)).await;
        calls(&pace, client(seconds as u8), 2).await;
    }
    let state = || {
        let state = pace.0.state(Instant::now());
        (format!("{:?}", state.log), state.reserved.total())
    };
    let before = state();
    let now = Instant::now();
    let refused = pace.reserve(FIRST, 300, now, now + Duration::from_secs(1));
    // At 7 calls a window, 300 calls take more than 40 windows.
    assert!(refused.unwrap_err() > WINDOW * 40);
    assert_eq!(state(), before);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_stored_about_a_client_one_window_after_its_last_call() {
    let pace = pace(4);
    drop(pace.reserve(FIRST, 1, Instant::now(), Instant::now() + WINDOW).unwrap());
    call(&pace, SECOND).await;
    sleep(WINDOW).await;
    let state = pace.0.state(Instant::now());
    let clients = format!("{state:?}").matches("ClientNetwork").count();
    assert_eq!(clients, 0, "no client should be stored: {state:?}");
}
