//! The fetcher never connects to an address that the policy denies, however the URL spells it.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::net::TcpListener;

use crate::support::{
    Answer, Child, FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem,
};

/// Listens on 127.0.0.1 and ::1 and counts connections. There should be none.
struct Trap {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Trap {
    async fn start() -> Self {
        let v4 = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = TcpListener::bind(("::1", port)).await.unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        for listener in [v4, v6] {
            let connections = Arc::clone(&connections);
            tokio::spawn(async move {
                while listener.accept().await.is_ok() {
                    connections.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { port, connections }
    }

    /// Asserts that nobody has connected, and then that the trap does count connections.
    async fn assert_untouched(&self) {
        assert_eq!(self.connections.load(Ordering::SeqCst), 0);
        for host in ["127.0.0.1", "::1"] {
            tokio::net::TcpStream::connect((host, self.port)).await.unwrap();
        }
        while self.connections.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    }
}

/// Every spelling of this machine's address in a URL.
fn spellings(port: u16) -> Vec<String> {
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "１２７.０.０.１",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fec0::1]",
    ]
    .iter()
    .map(|host| format!("http://{host}:{port}/"))
    .collect()
}

/// Asserts that the policy refused the URL. On systems that cannot resolve `localhost.`, the
/// look-up fails first.
fn assert_refused(answer: &Answer, address: &str) {
    match answer.status {
        502 if address.contains("localhost.") => assert_problem(answer, 502, "download_failed"),
        _ => assert_problem(answer, 403, "url_not_allowed"),
    };
}

#[tokio::test]
async fn no_spelling_of_this_machines_address_is_connected_to() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_FETCH_PORTS", trap.port).start().await;
    for address in spellings(trap.port) {
        for address in
            [address.clone(), address.replace("http:", "https:"), address.replace('/', "\\")]
        {
            assert_refused(&app.by_url(&address).await, &address);
        }
    }
    let with_user = format!("http://example.com@127.0.0.1:{}/", trap.port);
    assert_problem(&app.by_url(&with_user).await, 400, "invalid_url");
    trap.assert_untouched().await;
}

#[tokio::test]
async fn no_redirect_leads_to_this_machine() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    // `/302?http://…` redirects to the URL; `/302/302?http://…` redirects to `/302?http://…` first.
    let picture_server = FakeServer::start(|request, _| {
        let (path, to) = request.target.split_once('?').unwrap();
        let (first, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let to = if rest.is_empty() { to.to_owned() } else { format!("/{rest}?{to}") };
        Reply::new(first.parse().unwrap(), &[("location", &to)], "")
    })
    .await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", trap.port)
        .may_fetch_from(&picture_server)
        .start()
        .await;
    let others =
        ["gopher", "ftp", "file"].map(|scheme| format!("{scheme}://127.0.0.1:{}/", trap.port));
    let plain = spellings(trap.port).into_iter().filter(|address| address.is_ascii());
    for to in plain.chain(others).chain([format!("//127.0.0.1:{}/", trap.port)]) {
        for path in ["301", "302", "303", "307", "308", "302/307", "307/302/301"] {
            let answer = app.by_url(&picture_server.url(&format!("/{path}?{to}"))).await;
            assert_refused(&answer, &to);
        }
    }
    trap.assert_untouched().await;
}

#[tokio::test]
async fn a_host_name_that_resolves_differently_each_time_reaches_no_denied_address() {
    let trap = Trap::start().await;
    // An exception allows the good address, so that the test needs no other machine.
    let good = Ipv4Addr::new(127, 0, 0, 2);
    let listener = TcpListener::bind((good, trap.port)).await.unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let serving = Arc::clone(&served);
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            serving.fetch_add(1, Ordering::SeqCst);
            // The answer is not a picture, so the service refuses it quickly.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        }
    });
    let nvidia = FakeNvidia::healthy().await;
    let asked = AtomicUsize::new(0);
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", trap.port)
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.2/32")
        .lookup(move |_| {
            let last = if asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) { 2 } else { 1 };
            Ok(vec![IpAddr::from([127, 0, 0, last])])
        })
        .start()
        .await;
    let (mut fetched, mut refused) = (0, 0);
    for _ in 0..1000 {
        match app.by_url(&format!("http://rebinding.example:{}/", trap.port)).await.status {
            415 => fetched += 1,
            403 => refused += 1,
            status => panic!("{status}"),
        }
    }
    assert_eq!((fetched, refused), (500, 500));
    assert_eq!(served.load(Ordering::SeqCst), 500);
    trap.assert_untouched().await;
}

#[tokio::test]
async fn a_host_name_with_an_allowed_and_a_denied_address_is_refused() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", trap.port)
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.2/32")
        .lookup(|name| {
            let (good, bad) = (IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 1]));
            Ok(if name == "good-first.example" { vec![good, bad] } else { vec![bad, good] })
        })
        .start()
        .await;
    for name in ["good-first.example", "bad-first.example"] {
        let answer = app.by_url(&format!("http://{name}:{}/", trap.port)).await;
        assert_problem(&answer, 403, "url_not_allowed");
    }
    trap.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_variables_in_the_environment_are_ignored() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let proxy = format!("http://127.0.0.1:{}", trap.port);
    let allow = picture_server.address.to_string();
    let mut settings = vec![("IMAGESVC_FETCH_ALLOW", allow.as_str())];
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
    {
        settings.push((name, &proxy));
    }
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = child.url_request(&client, &picture_server.url("/rocket.jpg"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!((picture_server.received().len(), nvidia.received().len()), (1, 1));
    trap.assert_untouched().await;
}

#[tokio::test]
async fn outside_of_sandbox_mode_the_services_own_port_is_denied() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let port = app.address.port();
    for host in ["127.0.0.1", "localhost"] {
        let answer = app.by_url(&format!("http://{host}:{port}/health")).await;
        assert_problem(&answer, 403, "url_not_allowed");
    }
    let metrics = app.get("/metrics").await.text();
    assert!(!metrics.contains("route=\"/health\""), "nobody called it: {metrics}");
}
