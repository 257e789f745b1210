//! The admin socket, a Unix socket that the owner alone can open: one question for each connection, a line of JSON, and
//! one answer, a line that says whether there is one or why not, then the answer in JSON, and a zero byte: it is whole.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::flows::FlowFilter;

/// Longest question, bytes.
const MAX_QUESTION: u64 = 64 << 10;
/// Answers go out in pieces of so many bytes.
const PIECE: usize = 256 << 10;
/// A peer that does not come to the end of its question, or does not take a piece of the answer, is left after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers under way at once: one may be of a million rows.
const ANSWERS: usize = 2;
/// The end of an answer, which JSON does not have in it.
const END: u8 = 0;
/// How long the answer may take: the agent may be busy with a change of the network, on a slow or loaded machine.
const ANSWER: Duration = Duration::from_secs(60);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    Status,
    /// Whether new connections should come here; a refusal says why not.
    Ready,
    Backends,
    Flows {
        filter: FlowFilter,
    },
    /// To have the access logs opened anew.
    ReopenLogs,
    /// To have no new connections go to a backend, of one cluster or of all that have it.
    Drain {
        backend: SocketAddr,
        cluster: Option<String>,
        force: bool,
    },
    /// To take that back.
    Undrain {
        backend: SocketAddr,
        cluster: Option<String>,
    },
    /// To have new connections go to other nodes.
    DrainNode,
    /// To take that back.
    UndrainNode,
}

/// Writes an answer. Called beside the agent, since it may take its time.
pub type Answer = Box<dyn FnOnce(&mut dyn Write) -> Result<()> + Send>;

/// A question on its way to the agent.
pub struct Query {
    question: Question,
    reply: oneshot::Sender<Result<Answer>>,
}

impl Query {
    /// Answers it. A peer that has gone is no fault.
    pub fn answer(self, answer: impl FnOnce(Question) -> Result<Answer>) {
        let _ = self.reply.send(answer(self.question));
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
        let answering = Arc::new(Semaphore::new(ANSWERS));
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let (sender, answering) = (sender.clone(), Arc::clone(&answering));
                        tokio::spawn(async move {
                            // One who asks wrongly or goes away bothers nobody else.
                            let _ = serve(stream, sender, &answering).await;
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

async fn serve(
    mut stream: tokio::net::UnixStream,
    queries: mpsc::Sender<Query>,
    answering: &Semaphore,
) -> Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_QUESTION));
    timeout(PATIENCE, read.read_line(&mut line)).await??;
    let _permit = answering.acquire().await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => {
            let (reply, answer) = oneshot::channel();
            queries.send(Query { question, reply }).await?;
            answer.await?
        }
        Err(error) => Err(anyhow!("not a question: {error}")),
    };
    let (pieces, mut body) = mpsc::channel(4);
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE, Pieces(pieces));
        answer?(&mut out)?;
        out.write_all(&[END])?;
        Ok(out.flush()?)
    });
    let Some(mut piece) = body.recv().await else {
        let why = writing.await?.map_err(|error: anyhow::Error| format!("{error:#}"));
        return send(&mut write, &serde_json::to_vec(&why)?, b"\n").await;
    };
    send(&mut write, &serde_json::to_vec(&Ok::<(), String>(()))?, b"\n").await?;
    loop {
        send(&mut write, &piece, b"").await?;
        match body.recv().await {
            Some(next) => piece = next,
            None => return Ok(()),
        }
    }
}

async fn send(to: &mut (impl AsyncWriteExt + Unpin), text: &[u8], end: &[u8]) -> Result<()> {
    timeout(PATIENCE, to.write_all(text)).await??;
    Ok(timeout(PATIENCE, to.write_all(end)).await??)
}

/// Takes what is written to the task that sends it.
struct Pieces(mpsc::Sender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        self.0.blocking_send(piece.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the agent below `run_dir` answers, in JSON.
pub fn ask(run_dir: &Path, question: &Question) -> Result<Vec<u8>> {
    let path = path(run_dir);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!("no agent answers on {} (is it running? `--run-dir` says where)", path.display())
    })?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut text = serde_json::to_vec(question)?;
    text.push(b'\n');
    stream.write_all(&text).context("asking the agent")?;
    let mut stream = BufReader::with_capacity(PIECE, stream);
    let mut line = String::new();
    stream.read_line(&mut line).context("waiting for the agent's answer")?;
    if line.is_empty() {
        bail!("the agent has ended without an answer");
    }
    let refused: Result<(), String> = serde_json::from_str(&line).context("reading the agent's answer")?;
    refused.map_err(anyhow::Error::msg)?;
    // All of it before anything is done with it: who reads it on may take longer than the agent waits.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading the agent's answer")?;
    ensure!(answer.pop() == Some(END), "the agent has ended in the middle of its answer");
    Ok(answer)
}

/// The same as a value.
pub fn read<T: DeserializeOwned>(run_dir: &Path, question: &Question) -> Result<T> {
    serde_json::from_slice(&ask(run_dir, question)?).context("reading the agent's answer")
}
