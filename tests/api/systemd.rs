//! The service's notifications to systemd, over a real socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixDatagram,
    time::Duration,
};

use crate::support::ServiceProcess;

fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let len = socket
        .recv(&mut buffer)
        .expect("the service should send a message before the socket's timeout");
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

/// Receives messages until one contains this line, and returns that message.
fn wait_for(socket: &UnixDatagram, line: &str) -> String {
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
        ("WATCHDOG_USEC", "200000"),
    ];
    let child = ServiceProcess::start(folder.path(), &settings);
    let ready = wait_for(&socket, "READY=1");
    let status_line = format!("STATUS=serving on {}", child.address);
    assert!(ready.lines().any(|line| line == status_line), "{ready}");
    for _ in 0..3 {
        wait_for(&socket, "WATCHDOG=1");
    }
    let mut stalled = std::net::TcpStream::connect(child.address).unwrap();
    let head = b"POST /vectorize-image HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99\r\n\r\n";
    stalled.write_all(head).unwrap();
    stalled.read_exact(&mut [0; 25]).unwrap(); // `100 Continue`, so the request is running
    child.terminate();
    let stopping = wait_for(&socket, "STOPPING=1");
    assert!(stopping.contains("STATUS=stopping"), "{stopping}");
    // Watchdog messages continue while the service waits for the stalled request.
    wait_for(&socket, "STATUS=stopping: waiting for running requests");
    for _ in 0..2 {
        wait_for(&socket, "WATCHDOG=1");
    }
    drop(stalled);
    let (status, _) = child.wait();
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
        ("WATCHDOG_USEC", "1000"),
        ("WATCHDOG_PID", "1"),
    ];
    let child = ServiceProcess::start(folder.path(), &settings);
    wait_for(&socket, "READY=1");
    child.terminate();
    let next = receive(&socket);
    assert!(next.contains("STOPPING=1"), "{next}");
    child.wait();
}

#[test]
fn the_service_starts_and_stops_without_a_working_notify_socket() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("IMAGESVC_SANDBOX", "true"),
        ("NOTIFY_SOCKET", "/nowhere/notify"),
        ("WATCHDOG_USEC", "50000"),
    ];
    let (status, _) = ServiceProcess::start(folder.path(), &settings).stop();
    assert_eq!(status.code(), Some(0));
}
