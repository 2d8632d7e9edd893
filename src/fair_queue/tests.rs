use std::{future::Future, net::IpAddr, pin::Pin, task::Poll};

use futures_util::poll;
use proptest::prelude::*;

use super::*;

fn client(n: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::from([192, 0, 2, n]))
}

const HOUR: Duration = Duration::from_secs(3600);

type Taking<'a> = Pin<Box<dyn Future<Output = Option<Permit>> + 'a>>;

fn taking(queue: &FairQueue, client: ClientNetwork, memory: u64) -> Taking<'_> {
    Box::pin(queue.take(client, memory, Instant::now() + HOUR))
}

/// Takes a permit that must be free at once.
async fn take_now(queue: &FairQueue, client: ClientNetwork, memory: u64) -> Permit {
    match poll!(taking(queue, client, memory)) {
        Poll::Ready(permit) => permit.unwrap(),
        Poll::Pending => panic!("there is no room"),
    }
}

/// Submits this many jobs of a client, all of which must wait.
async fn queue_up(
    queue: &FairQueue,
    client: ClientNetwork,
    memory: u64,
    count: usize,
) -> Vec<Taking<'_>> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        let mut taking = taking(queue, client, memory);
        assert!(poll!(&mut taking).is_pending());
        waiting.push(taking);
    }
    waiting
}

async fn fill(queue: &FairQueue, client: ClientNetwork) -> Vec<Permit> {
    let mut taken = Vec::new();
    let permits = queue.0.state().capacity.permits;
    for _ in 0..permits {
        taken.push(take_now(queue, client, 0).await);
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn the_expected_wait_follows_from_the_queue_and_from_how_long_permits_are_held() {
    let queue = FairQueue::new(2, 0, 0);
    let (one, other) = (client(1), client(2));
    for _ in 0..100 {
        let _permit = take_now(&queue, one, 0).await;
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    let expected = |client| queue.expected_wait(client).as_secs_f64().round();
    assert_eq!(expected(one), 0.0, "permits are free");
    let _taken = fill(&queue, one).await;
    assert_eq!(expected(one), 2.0, "one of two ends in 2 s");
    let waiting = queue_up(&queue, one, 0, 3).await;
    assert_eq!((queue.waiting(), expected(one)), (3, 8.0));
    assert_eq!(expected(other), 2.0, "it goes before them");
    drop(waiting);
    assert_eq!(queue.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_the_deadline() {
    let queue = FairQueue::new(1, 0, 0);
    let started = Instant::now();
    let deadline = started + Duration::from_secs(5);
    let taken = queue.take_in_time(client(1), deadline).await.unwrap();
    assert!(queue.take_in_time(client(2), deadline).await.is_none());
    assert_eq!((started.elapsed().as_secs(), queue.waiting()), (5, 0));
    drop(taken);
    assert!(queue.take_in_time(client(1), deadline).await.is_none(), "free, and too late");
    assert_eq!(queue.0.state().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_comes_too_late_to_be_used_does_not_shorten_the_expected_wait() {
    let queue = FairQueue::new(1, 0, 0);
    for _ in 0..100 {
        let _permit = take_now(&queue, client(1), 0).await;
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    let before = queue.0.typical_hold();
    for _ in 0..20 {
        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(queue.take_in_time(client(1), deadline).await.is_none());
    }
    assert_eq!((queue.0.typical_hold(), queue.0.state().held), (before, 0));
}

#[tokio::test]
async fn a_client_that_comes_beside_a_flood_gets_the_next_permit() {
    for permits in [1, 2, 3, 32] {
        for memory in [0, 30, 70] {
            let queue = FairQueue::new(permits, 100, 25);
            let mut taken = Vec::new();
            let mut flood = wait_beyond(&queue, memory, &mut taken).await;
            let mut newcomer = queue_up(&queue, client(2), memory, 1).await;
            drop(taken.pop());
            let got = poll!(&mut newcomer[0]);
            assert!(got.is_ready(), "of {permits}, with {memory}");
            assert!(poll!(&mut flood[0]).is_pending());
        }
    }
}

/// Takes all permits that the first client gets, and submits a hundred more of its jobs.
async fn wait_beyond<'a>(
    queue: &'a FairQueue,
    memory: u64,
    taken: &mut Vec<Permit>,
) -> Vec<Taking<'a>> {
    loop {
        match poll!(taking(queue, client(1), memory)) {
            Poll::Ready(permit) => taken.extend(permit),
            Poll::Pending => return queue_up(queue, client(1), memory, 100).await,
        }
    }
}

/// Submits a flood of jobs, and another one for each that is served. Returns how many of them are
/// served before the newcomer.
async fn served_before(
    queue: &FairQueue,
    clients: u8,
    memory: u64,
    newcomer: (ClientNetwork, u64),
) -> usize {
    let mut waiting = Vec::new();
    for n in 0..clients {
        waiting.extend((0..40).map(|_| taking(queue, client(n), memory)));
    }
    let mut held = VecDeque::new();
    let mut wanted: Option<Taking<'_>> = None;
    for served in 0..400 {
        for index in (0..waiting.len()).rev() {
            if let Poll::Ready(permit) = poll!(&mut waiting[index]) {
                held.push_back(permit.unwrap());
                waiting[index] =
                    taking(queue, client((index % usize::from(clients)) as u8), memory);
            }
        }
        let wanted = wanted.get_or_insert_with(|| taking(queue, newcomer.0, newcomer.1));
        if poll!(wanted).is_ready() {
            return served;
        }
        held.pop_front();
    }
    panic!("it is never served");
}

#[tokio::test]
async fn a_newcomer_that_needs_more_memory_than_a_flood_does_not_wait_for_all_of_it() {
    for permits in [1, 2, 3, 4, 8] {
        for (flood, newcomer) in [(36, 41), (20, 75), (26, 75), (10, 20)] {
            let queue = FairQueue::new(permits, 100, 25);
            let before = served_before(&queue, 1, flood, (client(9), newcomer)).await;
            assert!(before <= permits + 2, "{before}, of {permits}, {flood} and {newcomer}");
        }
    }
}

#[tokio::test]
async fn a_newcomer_beside_many_floods_waits_for_none_that_holds_a_permit() {
    for clients in [2, 3, 8] {
        let queue = FairQueue::new(32, 0, 0);
        let before = served_before(&queue, clients, 0, (client(9), 0)).await;
        // At most one job of each flood that holds no permit either.
        assert!(before <= usize::from(clients), "{before}, of {clients}");
    }
}

#[tokio::test]
async fn two_floods_get_half_of_the_permits_each_and_one_alone_gets_all_in_order() {
    let queue = FairQueue::new(4, 0, 0);
    let mut taken = fill(&queue, client(1)).await;
    let mut floods =
        [queue_up(&queue, client(1), 0, 50).await, queue_up(&queue, client(2), 0, 50).await];
    for _ in 0..20 {
        drop(taken.remove(0));
        for flood in &mut floods {
            // A client's jobs are served in order.
            if let Poll::Ready(permit) = poll!(&mut flood[0]) {
                taken.push(permit.unwrap());
                drop(flood.remove(0));
            }
        }
        assert_eq!(taken.len(), 4);
    }
    let held = |n| queue.0.state().client(client(n)).held;
    assert_eq!((held(1), held(2)), (2, 2));
    floods[1].clear();
    for _ in 0..4 {
        drop(taken.remove(0));
        taken.push(floods[0].remove(0).await.unwrap());
    }
    assert_eq!((held(1), held(2)), (4, 0));
}

#[tokio::test]
async fn large_jobs_leave_a_permit_and_memory_to_small_ones() {
    let queue = FairQueue::new(2, 100, 25);
    let large = take_now(&queue, client(1), 75).await;
    let mut waiting = queue_up(&queue, client(1), 26, 3).await;
    let small = take_now(&queue, client(1), 25).await;
    assert!(poll!(taking(&queue, client(1), 1)).is_pending(), "two at once, no more");
    drop((large, small));
    let first = poll!(&mut waiting[0]);
    assert!(first.is_ready(), "in order");
    assert!(poll!(&mut waiting[1]).is_pending(), "one is left to small ones");
}

#[tokio::test]
async fn jobs_share_the_memory() {
    let queue = FairQueue::new(8, 100, 25);
    let _first = take_now(&queue, client(1), 60).await;
    let mut second = taking(&queue, client(1), 60);
    assert!(poll!(&mut second).is_pending());
    let small = take_now(&queue, client(1), 20).await;
    assert!(poll!(taking(&queue, client(1), 21)).is_pending(), "there is no more for small ones");
    drop(second);
    let _third = take_now(&queue, client(1), 20).await;
    drop(small);
}

#[tokio::test]
async fn large_jobs_may_use_the_only_permit_of_a_single_core() {
    let queue = FairQueue::new(1, 100, 25);
    let large = take_now(&queue, client(1), 75).await;
    assert!(poll!(taking(&queue, client(1), 1)).is_pending());
    drop(large);
    take_now(&queue, client(1), 1).await;
}

#[tokio::test]
async fn without_a_part_for_small_jobs_one_job_may_have_all_memory() {
    let queue = FairQueue::new(2, 100, 0);
    let all = take_now(&queue, client(1), 100).await;
    assert!(poll!(taking(&queue, client(1), 1)).is_pending());
    drop(all);
}

#[tokio::test]
async fn an_endless_stream_of_small_jobs_does_not_block_a_large_one() {
    let queue = FairQueue::new(8, 100, 25);
    let mut small = Vec::new();
    for _ in 0..5 {
        small.push(take_now(&queue, client(1), 20).await);
    }
    let mut large = taking(&queue, client(1), 75);
    assert!(poll!(&mut large).is_pending());
    for end in 0..5 {
        let mut next = taking(&queue, client(1), 20);
        assert!(poll!(&mut next).is_pending(), "it would take the large one's room");
        drop(small.remove(0));
        let passes = poll!(&mut next).is_ready();
        assert_eq!(passes, end == 4, "only within the part of small ones");
    }
    assert!(poll!(&mut large).is_ready());
}

#[tokio::test]
async fn when_a_waiting_job_leaves_the_next_one_gets_its_room() {
    let queue = FairQueue::new(3, 100, 25);
    let _large = take_now(&queue, client(1), 70).await;
    let gives_up = queue_up(&queue, client(1), 70, 1).await;
    let _small = take_now(&queue, client(1), 20).await;
    let mut next = taking(&queue, client(1), 10);
    assert!(poll!(&mut next).is_pending());
    drop(gives_up);
    assert!(poll!(&mut next).is_ready());
}

proptest! {
    #[test]
    fn however_jobs_come_and_go_bounds_hold_nothing_is_lost_and_every_job_is_served(
        permits in 1usize..5,
        steps in proptest::collection::vec((0u8..3, 0u64..=75, 0usize..8, any::<bool>()), 0..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().build().unwrap();
        runtime.block_on(async {
            let queue = FairQueue::new(permits, 100, 25);
            let mut waiting: Vec<Taking<'_>> = Vec::new();
            let mut taken: Vec<Permit> = Vec::new();
            for (n, memory, at, comes) in steps {
                if comes {
                    waiting.push(taking(&queue, client(n), memory));
                } else if at < waiting.len() {
                    // Its permit may have been granted but not received yet.
                    drop(waiting.remove(at));
                } else if at < taken.len() + waiting.len() {
                    drop(taken.remove(at - waiting.len()));
                }
                // Only some of the jobs receive their permit at once.
                for index in (0..waiting.len()).rev().filter(|index| (index + at) % 3 != 0) {
                    if let Poll::Ready(permit) = poll!(&mut waiting[index]) {
                        taken.push(permit.unwrap());
                        drop(waiting.remove(index));
                    }
                }
                let state = queue.0.state();
                let (small, large) = (state.small_memory, state.large_memory);
                assert!(state.held <= permits as u64);
                assert!(small + large <= 100 && large <= 75);
                assert!(state.held_by_large < permits.max(2) as u64);
                let clients = || state.clients.values();
                assert_eq!(clients().map(|client| client.held).sum::<u64>(), state.held);
                let waiting: u64 = clients().map(|client| client.waiting).sum();
                assert_eq!(waiting, state.queue.len() as u64);
                assert!(state.queue.is_empty() || state.held > 0);
            }
            while !waiting.is_empty() {
                // All jobs with a permit give it back, and so does each job that is served after
                // them.
                let before = waiting.len();
                taken.clear();
                for index in (0..waiting.len()).rev() {
                    if let Poll::Ready(permit) = poll!(&mut waiting[index]) {
                        taken.push(permit.unwrap());
                        drop(waiting.remove(index));
                    }
                }
                assert!(waiting.len() < before, "somebody is always served");
            }
            drop(taken);
            let state = queue.0.state();
            assert_eq!((state.held, state.queue.len()), (0, 0));
            assert_eq!((state.small_memory, state.large_memory, state.held_by_large), (0, 0, 0));
            assert!(state.clients.is_empty(), "nobody is remembered");
        });
    }
}

#[tokio::test]
async fn newcomers_do_not_starve_a_client_that_was_served_before() {
    let queue = FairQueue::new(1, 0, 0);
    let first = take_now(&queue, client(0), 0).await;
    let mut old = queue_up(&queue, client(0), 0, 1).await;
    let mut fresh: VecDeque<_> = queue_up(&queue, client(1), 0, 1).await.into();
    drop(first);
    let mut permit = fresh.pop_front().unwrap().await.unwrap();
    for n in 2..100 {
        fresh.extend(queue_up(&queue, client(n), 0, 1).await);
        drop(permit);
        if poll!(&mut old[0]).is_ready() {
            assert!(n < 5, "{n} came first");
            return;
        }
        permit = fresh.pop_front().unwrap().await.unwrap();
    }
    panic!("it is never served");
}
