//! Runs an nginx that passes requests on to the fake NVIDIA, and passes the answers back. It does nothing
//! else, so the service cannot be expected to need less processor time than this nginx.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::child::{Service, free_address};

/// Starts nginx. Returns `None`, and says why, if nginx is not installed.
pub fn start(folder: &Path, nvidia: SocketAddr) -> Option<Service> {
    let Some(program) = find_program() else {
        println!("\nskipped: nginx is not installed (Debian: apt-get install nginx)");
        return None;
    };
    let address = free_address();
    let configuration = folder.join("nginx.conf");
    fs::write(&configuration, configuration_text(folder, address, nvidia)).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(configuration).args(["-e", "stderr"]);
    Some(Service::spawn(command, address, folder))
}

/// The path of nginx. `None` if nginx is not installed.
fn find_program() -> Option<PathBuf> {
    // Debian installs nginx where only root looks for programs.
    ["nginx", "/usr/sbin/nginx"].map(PathBuf::from).into_iter().find(|program| {
        Command::new(program).arg("-v").output().is_ok_and(|output| output.status.success())
    })
}

/// A minimal configuration. There is one process, which is enough for the 16 clients of the benchmark.
/// Requests and answers stay in memory: nginx creates the folder `temp`, but writes nothing to it. No
/// connection is closed while the benchmark sends requests. [`Service::spawn`] waits until `/health`
/// answers.
fn configuration_text(folder: &Path, address: SocketAddr, nvidia: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "daemon off;
        master_process off;
        pid {folder}/nginx.pid;
        events {{}}
        http {{
          access_log off;
          client_body_temp_path {folder}/temp;
          proxy_temp_path {folder}/temp;
          fastcgi_temp_path {folder}/temp;
          uwsgi_temp_path {folder}/temp;
          scgi_temp_path {folder}/temp;
          keepalive_requests 100000000;
          upstream nvidia {{
            server {nvidia};
            keepalive 32;
            keepalive_requests 100000000;
          }}
          server {{
            listen {address};
            client_body_buffer_size 128k;
            location = /health {{ return 200; }}
            location / {{
              proxy_pass http://nvidia;
              proxy_http_version 1.1;
              proxy_set_header Connection '';
              proxy_buffers 8 32k;
              proxy_max_temp_file_size 0;
            }}
          }}
        }}
        "
    )
}
