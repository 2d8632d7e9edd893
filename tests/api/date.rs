//! The `Date` header of answers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use crate::support::{
    FakeNvidia, ROCKET, TestApp, exchange, parse_answer, post_head, request_head,
};

/// The time on the service's clock, in seconds since 1970.
static NOW: AtomicU64 = AtomicU64::new(784_111_777);

#[tokio::test]
async fn the_date_of_answers_follows_a_clock_that_is_set_back() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| {
            config.server.clock =
                || SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::Relaxed));
        })
        .start()
        .await;
    for (further_seconds_back, date) in [
        (0, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (3600, "Sun, 06 Nov 1994 07:49:37 GMT"),
        (1, "Sun, 06 Nov 1994 07:49:36 GMT"),
    ] {
        NOW.fetch_sub(further_seconds_back, Ordering::Relaxed);
        assert_eq!(app.upload(ROCKET, "a.jpg").await.header("date"), date);
        assert_eq!(app.get("/health").await.header("date"), date);
        assert_eq!(app.get("/nothing").await.header("date"), date);
        let without_host = request_head("GET /health HTTP/1.1", &[], "");
        let refused = parse_answer(&exchange(app.address, &without_host).await);
        assert_eq!(refused.headers.get_all("date").iter().collect::<Vec<_>>(), [date]);
    }
    // hyper itself answers a request that has two different lengths. The date then comes from
    // hyper's own clock, so only the number of dates is checked.
    let first_length = 1;
    let two_lengths = post_head("/health", first_length, "content-length: 2\r\n");
    let refused = parse_answer(&exchange(app.address, &two_lengths).await);
    assert_eq!(refused.headers.get_all("date").iter().count(), 1);
}
