//! nginx as the backend: a real web server in each backend's namespace.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::cmd::wait_for;
use crate::netns::Namespace;
use crate::payload::Payload;
use crate::topology::{BACKEND_HTTP, Family};

/// Where files are memory.
pub(crate) const MEMORY: &str = "/dev/shm";

/// A running nginx on port 8080 of both families; it answers
/// - `GET /` with its name,
/// - `GET /big` with the payload's file, if there is one,
/// - `PUT /upload/NAME` by keeping the body as the file [`Nginx::upload`].
#[derive(Debug)]
pub struct Nginx {
    pub name: String,
    directory: PathBuf,
    child: Child,
}

impl Nginx {
    /// Starts it in `namespace` and waits until it answers. Uploads are kept in memory (/dev/shm).
    pub fn start(namespace: &Namespace, name: &str, payload: Option<&Payload>) -> Result<Self> {
        Self::start_with(namespace, name, payload, "")
    }

    /// The same with more `server` blocks.
    pub fn start_with(
        namespace: &Namespace,
        name: &str,
        payload: Option<&Payload>,
        servers: &str,
    ) -> Result<Self> {
        let directory = Path::new(MEMORY).join(namespace.name());
        fs::create_dir_all(directory.join("upload"))?;
        let config = directory.join("nginx.conf");
        fs::write(&config, config_text(&directory, name, payload, servers))?;
        let child = namespace
            .command("nginx")
            .arg("-p")
            .arg(&directory)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.join("stderr"))?)
            .spawn()
            .context("cannot start nginx (`cargo xtask setup` installs it)")?;
        let nginx = Self { name: name.to_owned(), directory, child };
        let answers = || {
            for family in Family::ALL {
                let own = match family {
                    Family::V4 => "127.0.0.1",
                    Family::V6 => "::1",
                };
                namespace.within(|| TcpStream::connect((own, BACKEND_HTTP)))??;
            }
            Ok(())
        };
        wait_for(&format!("nginx of {name} listens"), Duration::from_secs(10), answers)
            .with_context(|| fs::read_to_string(nginx.directory.join("stderr")).unwrap_or_default())?;
        Ok(nginx)
    }

    /// Ends it as its operator would: it takes no more connections, closes those that are idle, the others with their
    /// answer, and is gone.
    pub fn quit(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::QUIT)?;
        let gone = || self.child.try_wait()?.context("it runs");
        wait_for(&format!("nginx of {} has quit", self.name), Duration::from_secs(10), gone).map(drop)
    }

    /// Where `PUT /upload/NAME` puts its body.
    pub fn upload(&self, name: &str) -> PathBuf {
        self.directory.join("upload").join(name)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The id of one that has been waited for may be another's by now.
        if let Ok(None) = self.child.try_wait() {
            // nginx ends its workers at SIGTERM; the namespace kills what is left.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn config_text(directory: &Path, name: &str, payload: Option<&Payload>, servers: &str) -> String {
    let directory = directory.display();
    let big = payload.map_or_else(String::new, |payload| {
        format!("location = /big {{ default_type application/octet-stream; alias {}; }}", payload.path())
    });
    format!(
        "user root;
        daemon off;
        worker_processes 1;
        worker_rlimit_nofile 16384;
        pid {directory}/pid;
        error_log {directory}/error.log warn;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            sendfile on; tcp_nopush on; tcp_nodelay on;
            keepalive_timeout 600s; keepalive_requests 1000000;
            client_max_body_size 0; client_body_timeout 120s; send_timeout 120s;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
            scgi_temp_path {directory}/scgi;
            server {{
                listen 0.0.0.0:{BACKEND_HTTP} backlog=4096; listen [::]:{BACKEND_HTTP} backlog=4096;
                location = / {{ default_type text/plain; return 200 \"{name}\\n\"; }}
                location /upload/ {{ alias {directory}/upload/; dav_methods PUT; }}
                {big}
            }}
            {servers}
        }}
        "
    )
}
