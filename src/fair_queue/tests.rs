//! Tests of the queue. In them, a flood is a client that always has many jobs in the queue.

use std::{future::Future, net::IpAddr, pin::Pin, task::Poll};

use futures_util::poll;
use proptest::prelude::*;

use super::*;

fn client(n: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::from([192, 0, 2, n]))
}

/// A queue with 100 bytes of memory. Of these, 25 are reserved for small jobs, so a job of 26 bytes
/// is large.
fn with_memory(permits: usize) -> FairQueue {
    FairQueue::new(permits, 100, 25)
}

/// A queue whose jobs need permits, but no memory.
fn without_memory(permits: usize) -> FairQueue {
    FairQueue::new(permits, 0, 0)
}

const HOUR: Duration = Duration::from_secs(3600);

/// The future that [`FairQueue::take`] returns.
type Taking<'a> = Pin<Box<dyn Future<Output = Option<Permit>> + 'a>>;

fn start_taking(queue: &FairQueue, client: ClientNetwork, memory: u64) -> Taking<'_> {
    Box::pin(queue.take(client, memory, Instant::now() + HOUR))
}

/// Takes a permit that must be free now.
async fn take_now(queue: &FairQueue, client: ClientNetwork, memory: u64) -> Permit {
    match poll!(start_taking(queue, client, memory)) {
        Poll::Ready(permit) => permit.unwrap(),
        Poll::Pending => panic!("a permit should be free"),
    }
}

/// Submits `count` jobs. All of them must wait.
async fn queue_up(
    queue: &FairQueue,
    client: ClientNetwork,
    memory: u64,
    count: usize,
) -> Vec<Taking<'_>> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        let mut taking = start_taking(queue, client, memory);
        assert!(poll!(&mut taking).is_pending());
        waiting.push(taking);
    }
    waiting
}

/// Takes all permits.
async fn take_all(queue: &FairQueue, client: ClientNetwork) -> Vec<Permit> {
    let mut taken = Vec::new();
    let permits = queue.0.state().capacity.permits;
    for _ in 0..permits {
        taken.push(take_now(queue, client, 0).await);
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn the_expected_wait_follows_from_the_queue_and_the_typical_time_of_a_permit() {
    let queue = without_memory(2);
    let (first, second) = (client(1), client(2));
    for _ in 0..100 {
        let _permit = take_now(&queue, first, 0).await;
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    // A permit is now typically in use for 4 s.
    let wait_seconds = |client| queue.expected_wait(client).as_secs_f64().round();
    assert_eq!(wait_seconds(first), 0.0, "with two free permits, a job should not wait");
    let _taken = take_all(&queue, first).await;
    assert_eq!(wait_seconds(first), 2.0, "one of two permits should be free after 4 s / 2");
    let waiting = queue_up(&queue, first, 0, 3).await;
    // A fourth job in the queue would wait for four permits, one every 2 s.
    assert_eq!((queue.waiting(), wait_seconds(first)), (3, 8.0));
    assert_eq!(wait_seconds(second), 2.0, "the second client should go before the queued jobs");
    drop(waiting);
    assert_eq!(queue.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_waits_no_longer_than_its_deadline() {
    let queue = without_memory(1);
    let started = Instant::now();
    let deadline = started + Duration::from_secs(5);
    let taken = queue.take_in_time(client(1), deadline).await.unwrap();
    assert!(queue.take_in_time(client(2), deadline).await.is_none());
    assert_eq!((started.elapsed().as_secs(), queue.waiting()), (5, 0));
    drop(taken);
    let too_late = queue.take_in_time(client(1), deadline).await;
    assert!(too_late.is_none(), "a free permit should not be granted when no time is left");
    assert_eq!(queue.0.state().permits_in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_comes_too_late_to_be_used_does_not_change_the_typical_time_of_a_permit() {
    let queue = without_memory(1);
    for _ in 0..100 {
        let _permit = take_now(&queue, client(1), 0).await;
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    // A permit is now typically in use for 4 s. Below, a permit is free at once, but each
    // deadline is only 1 s away.
    let before = queue.0.typical_permit_time();
    for _ in 0..20 {
        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(queue.take_in_time(client(1), deadline).await.is_none());
    }
    assert_eq!((queue.0.typical_permit_time(), queue.0.state().permits_in_use), (before, 0));
}

#[tokio::test]
async fn a_client_that_arrives_during_a_flood_gets_the_next_permit() {
    for permits in [1, 2, 3, 32] {
        // Jobs without memory, and large jobs.
        for memory in [0, 30, 70] {
            let queue = with_memory(permits);
            let mut taken = Vec::new();
            let mut flood = take_all_and_queue_up(&queue, memory, &mut taken).await;
            let mut newcomer = queue_up(&queue, client(2), memory, 1).await;
            drop(taken.pop());
            let outcome = poll!(&mut newcomer[0]);
            assert!(outcome.is_ready(), "{permits} permits, {memory} bytes");
            assert!(poll!(&mut flood[0]).is_pending());
        }
    }
}

/// Takes permits for the first client, and adds them to `taken`, until no permit is free for the
/// client. Then submits a hundred more jobs of the client.
async fn take_all_and_queue_up<'a>(
    queue: &'a FairQueue,
    memory: u64,
    taken: &mut Vec<Permit>,
) -> Vec<Taking<'a>> {
    loop {
        match poll!(start_taking(queue, client(1), memory)) {
            Poll::Ready(permit) => taken.extend(permit),
            Poll::Pending => return queue_up(queue, client(1), memory, 100).await,
        }
    }
}

/// Submits 40 jobs of each of `clients` clients. Whenever a job is served, submits a new job in its
/// place, possibly of another of these clients. After the first jobs are served, submits one job of
/// a newcomer. Returns how many jobs end before the newcomer is served.
async fn jobs_ended_before_newcomer(
    queue: &FairQueue,
    clients: u8,
    memory: u64,
    newcomer_memory: u64,
) -> usize {
    let mut waiting = Vec::new();
    for n in 0..clients {
        waiting.extend((0..40).map(|_| start_taking(queue, client(n), memory)));
    }
    let mut permits = VecDeque::new();
    let mut newcomer: Option<Taking<'_>> = None;
    for ended in 0..400 {
        for index in (0..waiting.len()).rev() {
            if let Poll::Ready(permit) = poll!(&mut waiting[index]) {
                permits.push_back(permit.unwrap());
                waiting[index] =
                    start_taking(queue, client((index % usize::from(clients)) as u8), memory);
            }
        }
        let newcomer =
            newcomer.get_or_insert_with(|| start_taking(queue, client(9), newcomer_memory));
        if poll!(newcomer).is_ready() {
            return ended;
        }
        permits.pop_front(); // the oldest job ends
    }
    panic!("the newcomer should be served before 400 jobs have ended");
}

#[tokio::test]
async fn a_newcomer_that_needs_more_memory_than_a_flood_is_served_soon() {
    for permits in [1, 2, 3, 4, 8] {
        // Large jobs get at most 75 of the 100 bytes: two jobs of 36, but not one of 36 and one of 41.
        // A newcomer of 75 bytes needs all 75. Jobs of 10 and 20 bytes are small.
        for (flood_memory, newcomer_memory) in [(36, 41), (20, 75), (26, 75), (10, 20)] {
            let queue = with_memory(permits);
            let ended = jobs_ended_before_newcomer(&queue, 1, flood_memory, newcomer_memory).await;
            // At most the jobs that hold a permit should end first. Two more are tolerated.
            assert!(
                ended <= permits + 2,
                "served after {ended} jobs with {permits} permits; the flood's jobs need \
                 {flood_memory} bytes, the newcomer's job {newcomer_memory} bytes"
            );
        }
    }
}

#[tokio::test]
async fn a_newcomer_during_several_floods_waits_for_at_most_one_job_of_each() {
    for clients in [2, 3, 8] {
        let queue = without_memory(32);
        let ended = jobs_ended_before_newcomer(&queue, clients, 0, 0).await;
        assert!(ended <= usize::from(clients), "served after {ended} jobs of {clients} clients");
    }
}

#[tokio::test]
async fn two_floods_get_half_of_the_permits_each_and_one_flood_alone_gets_all() {
    let queue = without_memory(4);
    let mut taken = take_all(&queue, client(1)).await;
    let mut floods =
        [queue_up(&queue, client(1), 0, 50).await, queue_up(&queue, client(2), 0, 50).await];
    for _ in 0..20 {
        drop(taken.remove(0));
        for flood in &mut floods {
            // A client's jobs are served in the order of their arrival.
            if let Poll::Ready(permit) = poll!(&mut flood[0]) {
                taken.push(permit.unwrap());
                drop(flood.remove(0));
            }
        }
        assert_eq!(taken.len(), 4);
    }
    let permits = |n| queue.0.state().client_state(client(n)).permits;
    assert_eq!((permits(1), permits(2)), (2, 2));
    floods[1].clear();
    for _ in 0..4 {
        drop(taken.remove(0));
        taken.push(floods[0].remove(0).await.unwrap());
    }
    assert_eq!((permits(1), permits(2)), (4, 0));
}

#[tokio::test]
async fn large_jobs_do_not_get_the_permit_reserved_for_small_jobs() {
    let queue = with_memory(2);
    let large = take_now(&queue, client(1), 75).await;
    let mut waiting = queue_up(&queue, client(1), 26, 3).await;
    let small = take_now(&queue, client(1), 25).await;
    assert!(poll!(start_taking(&queue, client(1), 1)).is_pending(), "no third permit should exist");
    drop((large, small));
    let first = poll!(&mut waiting[0]);
    assert!(first.is_ready(), "the first large job should be next");
    assert!(poll!(&mut waiting[1]).is_pending(), "the free permit should go to small jobs only");
}

#[tokio::test]
async fn small_jobs_get_only_the_reserved_memory_while_a_large_job_waits() {
    let queue = with_memory(8);
    let _large = take_now(&queue, client(1), 60).await;
    let mut waiting_large = start_taking(&queue, client(1), 60);
    assert!(poll!(&mut waiting_large).is_pending());
    let _small = take_now(&queue, client(1), 20).await;
    let outcome = poll!(start_taking(&queue, client(1), 6));
    assert!(outcome.is_pending(), "small jobs of 20 and 6 bytes must not exceed the reserved 25");
    // While no large job waits, small jobs also get memory that is not reserved.
    drop(waiting_large);
    let _second_small = take_now(&queue, client(1), 20).await;
}

#[tokio::test]
async fn a_large_job_may_use_the_only_permit() {
    let queue = with_memory(1);
    let large = take_now(&queue, client(1), 75).await;
    assert!(poll!(start_taking(&queue, client(1), 1)).is_pending());
    drop(large);
    take_now(&queue, client(1), 1).await;
}

#[tokio::test]
async fn a_job_may_use_all_memory_if_none_is_reserved_for_small_jobs() {
    let queue = FairQueue::new(2, 100, 0);
    let _all = take_now(&queue, client(1), 100).await;
    assert!(poll!(start_taking(&queue, client(1), 1)).is_pending());
}

#[tokio::test]
async fn an_endless_stream_of_small_jobs_does_not_block_a_large_job() {
    let queue = with_memory(8);
    let mut small = Vec::new();
    for _ in 0..5 {
        small.push(take_now(&queue, client(1), 20).await);
    }
    let mut large = start_taking(&queue, client(1), 75);
    assert!(poll!(&mut large).is_pending());
    for ended in 1..=5 {
        let mut next = start_taking(&queue, client(1), 20);
        assert!(poll!(&mut next).is_pending(), "small jobs must leave memory to the large job");
        drop(small.remove(0));
        // Two jobs of 20 bytes exceed the reserved 25, so the next one waits for the end of all five.
        assert_eq!(poll!(&mut next).is_ready(), ended == 5, "after {ended} of 5 jobs");
    }
    assert!(poll!(&mut large).is_ready());
}

#[tokio::test]
async fn a_small_job_is_served_when_the_large_job_ahead_of_it_gives_up() {
    let queue = with_memory(3);
    let _large = take_now(&queue, client(1), 70).await;
    let waiting_large = queue_up(&queue, client(1), 70, 1).await;
    let _small = take_now(&queue, client(1), 20).await;
    let mut next_small = start_taking(&queue, client(1), 10);
    assert!(poll!(&mut next_small).is_pending());
    drop(waiting_large);
    assert!(poll!(&mut next_small).is_ready());
}

proptest! {
    /// Each step consists of a client's number, a job's memory, an index, and whether a job arrives.
    /// If no job arrives, the job with that index gives up if it waits, or else ends. Waiting jobs
    /// have the first indices.
    #[test]
    fn every_job_is_served_within_the_limits_in_any_order_of_arrivals_and_ends(
        permits in 1usize..5,
        steps in proptest::collection::vec((0u8..3, 0u64..=75, 0usize..8, any::<bool>()), 0..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().build().unwrap();
        runtime.block_on(async {
            let queue = with_memory(permits);
            let mut waiting: Vec<Taking<'_>> = Vec::new();
            let mut taken: Vec<Permit> = Vec::new();
            for (n, memory, end_index, arrives) in steps {
                if arrives {
                    waiting.push(start_taking(&queue, client(n), memory));
                } else if end_index < waiting.len() {
                    // The job's permit may have been granted but not received yet.
                    drop(waiting.remove(end_index));
                } else if end_index < taken.len() + waiting.len() {
                    drop(taken.remove(end_index - waiting.len()));
                }
                // Only some of the jobs receive their permit at once.
                for index in (0..waiting.len()).rev().filter(|index| (index + end_index) % 3 != 0) {
                    if let Poll::Ready(permit) = poll!(&mut waiting[index]) {
                        taken.push(permit.unwrap());
                        drop(waiting.remove(index));
                    }
                }
                let state = queue.0.state();
                let (small, large) = (state.memory_of_small_jobs, state.memory_of_large_jobs);
                assert!(state.permits_in_use <= permits as u64);
                assert!(small + large <= 100 && large <= 75);
                // One permit is reserved for small jobs, unless it is the only one.
                assert!(state.permits_of_large_jobs < permits.max(2) as u64);
                let clients = || state.clients.values();
                let permits_of_clients: u64 = clients().map(|client| client.permits).sum();
                assert_eq!(permits_of_clients, state.permits_in_use);
                let queued: u64 = clients().map(|client| client.queued).sum();
                assert_eq!(queued, state.queue.len() as u64);
                assert!(state.queue.is_empty() || state.permits_in_use > 0);
            }
            while !waiting.is_empty() {
                // Returns all permits. Some of the waiting jobs are then served.
                let before = waiting.len();
                taken.clear();
                for index in (0..waiting.len()).rev() {
                    if let Poll::Ready(permit) = poll!(&mut waiting[index]) {
                        taken.push(permit.unwrap());
                        drop(waiting.remove(index));
                    }
                }
                assert!(waiting.len() < before, "free permits should be granted");
            }
            drop(taken);
            let state = queue.0.state();
            assert_eq!((state.permits_in_use, state.queue.len()), (0, 0));
            let large = (state.permits_of_large_jobs, state.memory_of_large_jobs);
            assert_eq!((large, state.memory_of_small_jobs), ((0, 0), 0));
            assert!(state.clients.is_empty(), "clients without permits and jobs must be removed");
        });
    }
}

#[tokio::test]
async fn a_client_that_was_served_before_is_served_again_despite_many_newcomers() {
    let queue = without_memory(1);
    let first = take_now(&queue, client(0), 0).await;
    let mut returning = queue_up(&queue, client(0), 0, 1).await;
    let mut newcomers: VecDeque<_> = queue_up(&queue, client(1), 0, 1).await.into();
    drop(first);
    let mut permit = newcomers.pop_front().unwrap().await.unwrap();
    for n in 2..100 {
        newcomers.extend(queue_up(&queue, client(n), 0, 1).await);
        drop(permit);
        if poll!(&mut returning[0]).is_ready() {
            assert!(n < 5, "the client should be served soon, not after {n} newcomers");
            return;
        }
        permit = newcomers.pop_front().unwrap().await.unwrap();
    }
    panic!("the client should be served again before a hundred newcomers");
}
