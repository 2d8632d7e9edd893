//! Tests of runs that last for minutes or hours, in simulated time.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep,
};

use super::{
    super::{
        failures::Failures,
        feeder::SourceEvent,
        item::{ItemReader, Picture},
        output::{self, Appender},
        writer::Target,
    },
    *,
};

/// A service on a local port that gives every request the same reply.
struct FakeService {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl FakeService {
    async fn replying(status: u16, headers: &str, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reply = format!(
            "HTTP/1.1 {status} Fake\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, reply.clone(), Arc::clone(&count)));
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Replies to the requests of one connection.
async fn serve(mut stream: TcpStream, reply: String, count: Arc<AtomicUsize>) {
    let mut received = Vec::new();
    while stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&received);
        // The body of each request is JSON with only one `}`, at its end.
        let is_complete = text.contains("\r\n\r\n") && text.ends_with('}');
        if is_complete {
            received.clear();
            count.fetch_add(1, Ordering::SeqCst);
            if stream.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// A service's answer to a picture.
const EMBEDDED: &str =
    r#"{"sha256":"ab","model":"m","prepared":"original","width":4,"height":4,"vector":[0.5]}"#;

/// The body of an error with this code.
fn problem(code: &str) -> String {
    format!(r#"{{"code":"{code}","detail":"Sentence."}}"#)
}

/// A run of at most 8 requests at once, of which at most 2 are for pictures of the same host. Also
/// returns the folder of its output.
fn new_run(service: SocketAddr) -> (Run, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
    let out = folder.path().join("out.jsonl");
    let rows = Appender::new(output::open(&out).unwrap()).unwrap();
    let is_done = |_| false; // the output contains no rows
    let failures = Failures::open(&out, reader, is_done).unwrap();
    let progress = Progress::hidden();
    let writer = Writer::start(Target::Files(rows, failures), progress.console()).unwrap();
    let url = format!("http://{service}").parse().unwrap();
    let (key, save, field_prefix) = (None, false, "");
    let client = ServiceClient::new(url, key, save, field_prefix).unwrap();
    let plan = Plan { concurrency: 8, per_host: 2, model: "m".into() };
    (Run::new(plan, client, writer, progress), folder)
}

/// An event with the row of this path or URL.
fn row_event(location: &str) -> SourceEvent {
    let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
    SourceEvent::Row(Box::new(reader.plain(Picture::parse(location))))
}

/// URLs of one host.
fn urls(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("http://host.example/{n}")).collect()
}

/// Sends the pictures of this many URLs of one host; see [`send_pictures`].
async fn send(service: SocketAddr, count: usize) -> (Outcome, u64, Vec<String>) {
    send_pictures(service, &urls(count)).await
}

/// Sends the pictures at these paths and URLs. Returns the outcome, the seconds that passed, and the
/// lines of the failures.
async fn send_pictures(service: SocketAddr, locations: &[String]) -> (Outcome, u64, Vec<String>) {
    let (run, folder) = new_run(service);
    let (sender, receiver) = mpsc::channel(locations.len());
    for location in locations {
        sender.try_send(row_event(location)).unwrap();
    }
    drop(sender);
    let (started, mut interrupt) = (Instant::now(), Interrupt::never());
    let outcome = run.send_all(Feeder::of(receiver), &mut interrupt).await.unwrap();
    let failures = std::fs::read_to_string(folder.path().join("out.failed.jsonl"));
    let failures = failures.unwrap_or_default().lines().map(ToOwned::to_owned).collect();
    (outcome, started.elapsed().as_secs(), failures)
}

#[tokio::test(start_paused = true)]
async fn a_run_stops_if_the_service_never_answers() {
    // The system accepts the connections. No program reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (outcome, seconds, failures) = send(silent.local_addr().unwrap(), 1000).await;
    assert_eq!(outcome, Outcome::Stopped);
    // `SERVICE_TIMEOUT` stops the run after 900 s. Its last requests then end within 420 s, the
    // `REQUEST_TIMEOUT`.
    assert!((900..1400).contains(&seconds), "{seconds} s");
    // Only two pictures of the host are sent at once. Each is tried for 900 s, the `PICTURE_TIMEOUT`, so the
    // run ends before others fail.
    assert!(failures.len() <= 2, "most pictures must be left for the next run");
}

#[tokio::test(start_paused = true)]
async fn a_run_stops_if_the_service_is_always_busy_and_until_then_obeys_retry_after() {
    let service = FakeService::replying(503, "retry-after: 2\r\n", &problem("overloaded")).await;
    let (outcome, seconds, failures) = send(service.address, 1000).await;
    assert_eq!((outcome, failures.len()), (Outcome::Stopped, 0));
    assert!((900..920).contains(&seconds), "{seconds} s");
    // `Retry-After` allows one request every two seconds: 450 in 900 s, and a few more at the start.
    assert!(service.requests() < 500, "{} requests", service.requests());
}

#[tokio::test(start_paused = true)]
async fn every_picture_of_a_host_that_always_fails_is_tried_but_only_the_first_ones_again() {
    for (status, code) in [(502, "download_failed"), (504, "download_timeout")] {
        let service = FakeService::replying(status, "", &problem(code)).await;
        let (outcome, seconds, failures) = send(service.address, 1000).await;
        assert_eq!((outcome, failures.len()), (Outcome::SomeFailed, 1000));
        assert!(failures.iter().all(|line| line.contains(r#""retryable":true"#)));
        // While one of the host's 2 pictures waits for its next attempt, no other takes its place. So the
        // first 4 pictures are sent 5 times each. After these 20 consecutive failures of the host, each
        // further picture is sent only once.
        assert!((1000..1030).contains(&service.requests()), "{} requests", service.requests());
        // Each of these 4 waits 1, 2, 4 and 8 s between its attempts. So the first 2 alone take 15 s.
        assert!(
            seconds > 15,
            "the first pictures should be tried again, but the run took {seconds} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_pause_that_a_host_demands_takes_the_place_of_a_shorter_wait() {
    let headers = "retry-after: 3\r\n";
    let service = FakeService::replying(502, headers, &problem("download_failed")).await;
    let (outcome, seconds, _) = send(service.address, 1).await;
    assert_eq!((outcome, service.requests()), (Outcome::SomeFailed, 5));
    // The waits alone would be 1, 2, 4 and 8 s. Those of 1 and 2 s become the host's 3 s.
    assert!((18..22).contains(&seconds), "{seconds} s instead of 3 + 3 + 4 + 8");
}

#[tokio::test(start_paused = true)]
async fn a_run_stops_if_the_service_is_always_busy_even_while_unreadable_files_fail() {
    let service = FakeService::replying(503, "retry-after: 2\r\n", &problem("overloaded")).await;
    // Between two pauses that the service demands, the run tries only a few files. So it stops before it
    // has tried all 3000.
    let files = (0..3000).map(|n| format!("/nothing/here/{n}.jpg"));
    let locations: Vec<_> = urls(1).into_iter().chain(files).collect();
    let (outcome, seconds, failures) = send_pictures(service.address, &locations).await;
    assert_eq!(outcome, Outcome::Stopped);
    assert!((900..920).contains(&seconds), "{seconds} s");
    assert!(!failures.is_empty());
    assert!(failures.iter().all(|line| line.contains("unreadable_file")));
}

#[tokio::test(start_paused = true)]
async fn a_run_stops_if_a_proxy_always_answers_in_place_of_the_service() {
    let proxy = FakeService::replying(502, "", "<html>Bad Gateway</html>").await;
    let (outcome, seconds, failures) = send(proxy.address, 1000).await;
    assert_eq!(outcome, Outcome::Stopped);
    // An attempt begins with its wait, of at most 8 s. So the last attempts end soon after 900 s.
    assert!((900..930).contains(&seconds), "{seconds} s");
    assert!(!failures.is_empty());
    assert!(failures.iter().all(|line| line.contains(r#""retryable":true"#)));
}

#[tokio::test(start_paused = true)]
async fn a_source_may_be_silent_for_hours() {
    let service = FakeService::replying(200, "", EMBEDDED).await;
    let (run, folder) = new_run(service.address);
    let (sender, receiver) = mpsc::channel(1);
    let feeder = Feeder::of(receiver);
    let run = tokio::spawn(async move { run.send_all(feeder, &mut Interrupt::never()).await });
    for url in urls(3) {
        sleep(Duration::from_secs(3600)).await;
        sender.send(row_event(&url)).await.unwrap();
    }
    drop(sender);
    assert_eq!(run.await.unwrap().unwrap(), Outcome::Success);
    let rows = std::fs::read_to_string(folder.path().join("out.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 3);
}
