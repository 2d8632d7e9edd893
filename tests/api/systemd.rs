//! The service's notifications to systemd. In the tests, a socket of the test stands in for systemd's.

use std::{
    io::{Read, Write},
    os::unix::net::UnixDatagram,
    time::Duration,
};

use crate::support::ServiceProcess;

/// Receives the next message.
fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let len = socket
        .recv(&mut buffer)
        .expect("the service should send a message before the socket's timeout");
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

/// Receives messages until one contains this line, and returns that message. Fails if no message
/// arrives within the socket's timeout.
fn wait_for_message_with(socket: &UnixDatagram, line: &str) -> String {
    loop {
        let message = receive(socket);
        if message.lines().any(|received| received == line) {
            return message;
        }
    }
}

#[test]
fn systemd_is_notified_when_the_service_is_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let settings = [
        ("IMAGESVC_SANDBOX", "true"),
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "200000"), // 0.2 s, in microseconds
    ];
    let service = ServiceProcess::start(folder.path(), &settings);
    let ready = wait_for_message_with(&socket, "READY=1");
    let status_line = format!("STATUS=serving on {}", service.address);
    assert!(ready.lines().any(|line| line == status_line), "{ready}");
    for _ in 0..3 {
        wait_for_message_with(&socket, "WATCHDOG=1");
    }
    // This client announces a body, but never sends it.
    let mut stalled_client = std::net::TcpStream::connect(service.address).unwrap();
    let head = b"POST /vectorize-image HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
                 content-length: 99\r\n\r\n";
    stalled_client.write_all(head).unwrap();
    // The request is running once the service has sent this interim response.
    stalled_client.read_exact(&mut [0; "HTTP/1.1 100 Continue\r\n\r\n".len()]).unwrap();
    service.terminate();
    let stopping = wait_for_message_with(&socket, "STOPPING=1");
    assert!(stopping.contains("STATUS=stopping"), "{stopping}");
    // Watchdog messages continue while the service waits for the stalled client.
    wait_for_message_with(&socket, "STATUS=stopping: waiting for running requests");
    for _ in 0..2 {
        wait_for_message_with(&socket, "WATCHDOG=1");
    }
    drop(stalled_client);
    let (status, _) = service.wait();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn no_watchdog_message_is_sent_if_watchdog_pid_is_the_id_of_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let settings = [
        ("IMAGESVC_SANDBOX", "true"),
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "1000"), // so short that a watchdog message would precede STOPPING=1
        ("WATCHDOG_PID", "1"),     // not the id of the service's process
    ];
    let service = ServiceProcess::start(folder.path(), &settings);
    wait_for_message_with(&socket, "READY=1");
    service.terminate();
    let message = receive(&socket);
    assert!(message.contains("STOPPING=1"), "no watchdog message should come first: {message}");
    service.wait();
}

#[test]
fn the_service_starts_and_stops_without_a_working_notify_socket() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("IMAGESVC_SANDBOX", "true"),
        ("NOTIFY_SOCKET", "/nowhere/notify"),
        ("WATCHDOG_USEC", "50000"), // so the service also tries to send watchdog messages
    ];
    let (status, _) = ServiceProcess::start(folder.path(), &settings).stop();
    assert_eq!(status.code(), Some(0));
}
