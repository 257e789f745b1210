//! The admin socket: one question and one answer for each connection, as lines of JSON, over a Unix socket that the
//! owner alone can open.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::flows::FlowFilter;

/// Longest question, bytes.
const MAX_QUESTION: u64 = 64 << 10;
/// A peer that does not come to the end of its question, or does not take the answer, is left after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the answer may take: the agent may be busy with a change of the network, on a slow or loaded machine.
const ANSWER: Duration = Duration::from_secs(60);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    Status,
    Backends,
    Flows { filter: FlowFilter },
}

/// A question on its way to the agent.
pub struct Query {
    question: Question,
    reply: oneshot::Sender<Result<Value, String>>,
}

impl Query {
    /// Answers it. A peer that has gone is no fault.
    pub fn answer(self, answer: impl FnOnce(Question) -> Result<Value>) {
        let _ = self.reply.send(answer(self.question).map_err(|error| format!("{error:#}")));
    }
}

/// The listening socket. Dropping it frees the path for another agent.
pub struct AdminSocket {
    path: PathBuf,
    queries: mpsc::Receiver<Query>,
    accepting: tokio::task::JoinHandle<()>,
}

/// The socket below a `--run-dir`.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("admin.sock")
}

/// Whether an agent answers there.
pub fn is_served(run_dir: &Path) -> bool {
    UnixStream::connect(path(run_dir)).is_ok()
}

impl AdminSocket {
    /// Listens below `run_dir`; an agent that runs there already is an error.
    pub fn bind(run_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(run_dir).with_context(|| format!("creating {}", run_dir.display()))?;
        let path = path(run_dir);
        if is_served(run_dir) {
            bail!(
                "an agent runs already with {}: stop it, or pass another --run-dir and --bpffs",
                path.display()
            );
        }
        let _ = std::fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        let (sender, queries) = mpsc::channel(16);
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let sender = sender.clone();
                        tokio::spawn(async move {
                            // One who asks wrongly or goes away bothers nobody else.
                            let _ = serve(stream, sender).await;
                        });
                    }
                    Err(error) => {
                        log::warn!("accepting on the admin socket: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self { path, queries, accepting })
    }

    /// The next question.
    pub async fn next(&mut self) -> Option<Query> {
        self.queries.recv().await
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(mut stream: tokio::net::UnixStream, queries: mpsc::Sender<Query>) -> Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_QUESTION));
    timeout(PATIENCE, read.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => {
            let (reply, answer) = oneshot::channel();
            queries.send(Query { question, reply }).await?;
            answer.await?
        }
        Err(error) => Err(format!("not a question: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(PATIENCE, write.write_all(&text)).await??;
    Ok(())
}

/// Asks the agent below `run_dir`.
pub fn ask(run_dir: &Path, question: &Question) -> Result<Value> {
    let path = path(run_dir);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!("no agent answers on {} (is it running? `--run-dir` says where)", path.display())
    })?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut text = serde_json::to_vec(question)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("waiting for the agent's answer")?;
    if line.is_empty() {
        bail!("the agent has ended without an answer");
    }
    let answer: Result<Value, String> = serde_json::from_str(&line).context("reading the agent's answer")?;
    answer.map_err(anyhow::Error::msg)
}
