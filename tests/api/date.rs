//! The `Date` of answers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use crate::support::{FakeNvidia, ROCKET, TestApp, exchange, parse_answer, post_head, raw_request};

/// The service's clock, in seconds since 1970.
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
    for (back, date) in [
        (0, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (3600, "Sun, 06 Nov 1994 07:49:37 GMT"),
        (1, "Sun, 06 Nov 1994 07:49:36 GMT"),
    ] {
        NOW.fetch_sub(back, Ordering::Relaxed);
        assert_eq!(app.upload(ROCKET, "a.jpg").await.header("date"), date);
        assert_eq!(app.get("/health").await.header("date"), date);
        assert_eq!(app.get("/nothing").await.header("date"), date);
        let sent = raw_request("GET /health HTTP/1.1", &[], "");
        let answer = parse_answer(&exchange(app.address, &sent).await);
        assert_eq!(answer.headers.get_all("date").iter().collect::<Vec<_>>(), [date]);
    }
    // hyper's own bare answers have hyper's date.
    let answer = exchange(app.address, &post_head("/health", 1, "content-length: 2\r\n")).await;
    assert_eq!(parse_answer(&answer).headers.get_all("date").iter().count(), 1);
}
