//! The service never connects to an address that the policy for fetches denies, however the URL
//! spells the address.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    Answer, FakeNvidia, FakeServer, ROCKET, Reply, ServiceProcess, TestApp, assert_problem,
};

/// A listener on 127.0.0.1 and ::1 that counts its connections. The service must not connect to it.
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

    /// Asserts that no connection was made. Call this last: it then makes two connections itself, to
    /// check that the trap counts them.
    async fn assert_no_connection(&self) {
        let connections = self.connections.load(Ordering::SeqCst);
        assert_eq!(connections, 0, "the service must not connect to the trap");
        for host in ["127.0.0.1", "::1"] {
            TcpStream::connect((host, self.port)).await.unwrap();
        }
        while self.connections.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    }
}

/// URLs that the policy must deny: this machine's address in many spellings, and two addresses of its
/// local network.
fn denied_urls(port: u16) -> Vec<String> {
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
        // 127.0.0.1 in an address of NAT64, 6to4 and Teredo
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        // a link-local and a site-local address
        "[fe80::1]",
        "[fec0::1]",
    ]
    .iter()
    .map(|host| format!("http://{host}:{port}/"))
    .collect()
}

/// Asserts that the policy denied the URL. For `localhost.`, also accepts a failed look-up, because
/// some systems cannot resolve this name.
fn assert_denied(answer: &Answer, url: &str) {
    match answer.status {
        502 if url.contains("localhost.") => assert_problem(answer, 502, "download_failed"),
        _ => assert_problem(answer, 403, "url_not_allowed"),
    };
}

#[tokio::test]
async fn no_connection_is_made_to_this_machine_however_the_url_spells_its_address() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    // The trap's port is allowed, so only the address can be the reason for a refusal.
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_FETCH_PORTS", trap.port).start().await;
    for url in denied_urls(trap.port) {
        // The URL standard treats a backslash as a slash.
        for url in [url.clone(), url.replace("http:", "https:"), url.replace('/', "\\")] {
            assert_denied(&app.by_url(&url).await, &url);
        }
    }
    // The host of this URL is 127.0.0.1, and `example.com` is a user name. A URL must not contain a
    // user name.
    let with_user_name = format!("http://example.com@127.0.0.1:{}/", trap.port);
    assert_problem(&app.by_url(&with_user_name).await, 400, "invalid_url");
    trap.assert_no_connection().await;
}

#[tokio::test]
async fn no_redirect_to_a_denied_url_is_followed() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    // `/302?http://…` redirects to the URL. `/301/302?http://…` redirects to `/302?http://…`.
    let picture_server = FakeServer::start(|request, _| {
        let (path, url) = request.target.split_once('?').unwrap();
        let (status, next_path) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let location =
            if next_path.is_empty() { url.to_owned() } else { format!("/{next_path}?{url}") };
        Reply::new(status.parse().unwrap(), &[("location", &location)], "")
    })
    .await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", trap.port)
        .may_fetch_from(&picture_server)
        .start()
        .await;
    // The URL becomes part of a request line, which contains only ASCII.
    let ascii_urls = denied_urls(trap.port).into_iter().filter(|url| url.is_ascii());
    let other_schemes =
        ["gopher", "ftp", "file"].map(|scheme| format!("{scheme}://127.0.0.1:{}/", trap.port));
    let no_scheme = [format!("//127.0.0.1:{}/", trap.port)];
    for url in ascii_urls.chain(other_schemes).chain(no_scheme) {
        for path in ["301", "302", "303", "307", "308", "302/307", "307/302/301"] {
            let answer = app.by_url(&picture_server.url(&format!("/{path}?{url}"))).await;
            assert_denied(&answer, &url);
        }
    }
    trap.assert_no_connection().await;
}

#[tokio::test]
async fn a_host_name_that_resolves_differently_each_time_reaches_no_denied_address() {
    let trap = Trap::start().await;
    let allowed = Ipv4Addr::new(127, 0, 0, 2);
    let listener = TcpListener::bind((allowed, trap.port)).await.unwrap();
    let allowed_connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&allowed_connections);
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            // The reply is not a picture, so the service refuses it quickly.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        }
    });
    let nvidia = FakeNvidia::healthy().await;
    let lookups = AtomicUsize::new(0);
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", trap.port)
        .setting("IMAGESVC_FETCH_ALLOW", format!("{allowed}/32"))
        .lookup(move |_| {
            // The look-ups return the allowed and the denied address in turn.
            let returns_allowed = lookups.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            let denied = Ipv4Addr::LOCALHOST;
            Ok(vec![IpAddr::from(if returns_allowed { allowed } else { denied })])
        })
        .start()
        .await;
    let (mut fetches, mut denials) = (0, 0);
    for _ in 0..1000 {
        match app.by_url(&format!("http://rebinding.example:{}/", trap.port)).await.status {
            // The service fetched the bytes, which are not a picture.
            415 => fetches += 1,
            403 => denials += 1,
            status => panic!("unexpected status {status}"),
        }
    }
    assert_eq!((fetches, denials), (500, 500), "every second fetch should be denied");
    assert_eq!(allowed_connections.load(Ordering::SeqCst), 500);
    trap.assert_no_connection().await;
}

#[tokio::test]
async fn a_host_name_with_an_allowed_and_a_denied_address_is_refused() {
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", trap.port)
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.2/32")
        .lookup(|name| {
            let (allowed, denied) = (IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 1]));
            Ok(match name {
                "allowed-first.example" => vec![allowed, denied],
                // `denied-first.example`
                _ => vec![denied, allowed],
            })
        })
        .start()
        .await;
    for name in ["allowed-first.example", "denied-first.example"] {
        let answer = app.by_url(&format!("http://{name}:{}/", trap.port)).await;
        assert_problem(&answer, 403, "url_not_allowed");
    }
    trap.assert_no_connection().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_variables_in_the_environment_are_ignored() {
    // The trap is the proxy that the variables name.
    let trap = Trap::start().await;
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let proxy_url = format!("http://127.0.0.1:{}", trap.port);
    let allowed_host_and_port = picture_server.address.to_string();
    let mut settings = vec![("IMAGESVC_FETCH_ALLOW", allowed_host_and_port.as_str())];
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
    {
        settings.push((name, &proxy_url));
    }
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = service.url_request(&client, &picture_server.url("/rocket.jpg"));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        (picture_server.count(), nvidia.count()),
        (1, 1),
        "the service should call both servers directly"
    );
    trap.assert_no_connection().await;
}

#[tokio::test]
async fn outside_of_sandbox_mode_the_service_fetches_nothing_from_itself() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let port = app.address.port();
    for host in ["127.0.0.1", "localhost"] {
        let answer = app.by_url(&format!("http://{host}:{port}/health")).await;
        assert_problem(&answer, 403, "url_not_allowed");
    }
    let metrics = app.get("/metrics").await.text();
    assert!(
        !metrics.contains("route=\"/health\""),
        "the service must make no request to itself: {metrics}"
    );
}
