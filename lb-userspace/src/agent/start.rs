//! The way up: endpoints, their health, ports and the kernel rungs, before anything is carried.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::time::{sleep, timeout, timeout_at};

use crate::admin_http::ViewSource;
use crate::agent::kernel_side::{self, KernelSide, RESOLUTION};
use crate::agent::{Agent, HEARING, asked, proxy_listeners};
use crate::datapath::object::Pins;
use crate::discovery::Update;
use crate::model::Mode;
use crate::net;
use crate::stats::{ServerView, View};

/// How long a start or a reload waits for the first answers of discovery.
const SETTLING: Duration = Duration::from_secs(3);

/// Programs that go on without an agent take connections to backends that may be gone long since.
const LEFT_ALONE: &str = "an earlier agent has left its datapath, which nobody would look after: start with a mode that goes \
                          on with it, or end its flows with `headgate unload`";

/// The kernel rungs before they carry anything.
struct LoadedKernel {
    kernel: KernelSide,
    /// An earlier agent has left them.
    left: bool,
}

impl Agent {
    /// Everything until it is ready; meanwhile the admin port says that it is not.
    pub(super) async fn start(&mut self) -> Result<()> {
        let server = self.server_view();
        let mut admin_http = self.admin_http.take();
        {
            let starting = self.bring_up();
            tokio::pin!(starting);
            loop {
                tokio::select! {
                    result = &mut starting => break result?,
                    Some(request) = asked(&mut admin_http) => request.answer(Ok(not_ready(&server))),
                }
            }
        }
        self.admin_http = admin_http;
        self.ready_after = Some(self.started.elapsed());
        for cluster in self.config.clusters.clone() {
            self.tell_of_panic(&cluster);
        }
        Ok(())
    }

    async fn bring_up(&mut self) -> Result<()> {
        if self.drained.node() {
            self.begin_node_drain();
        }
        self.find_endpoints().await;
        // A port that cannot be had is told of before anything else is done. Connections that come now wait.
        self.proxy.accept(false);
        self.proxy.apply(proxy_listeners(&self.config, &self.balancers))?;
        // Endpoints are asked for their health meanwhile.
        let kernel = self.load_kernel().await?;
        self.wait_for_health().await;
        self.proxy.accept(true);
        self.attach_kernel(kernel).await?;
        self.look_at_host();
        Ok(())
    }

    /// The first endpoints of all clusters. Waits for discovery, but not for ever: what comes later is not lost.
    async fn find_endpoints(&mut self) {
        self.discovery.apply(&self.config.clusters);
        let updates = self.wait_for_discovery().await;
        for cluster in self.config.clusters.clone() {
            self.set_endpoints(&cluster);
        }
        updates.iter().for_each(|update| self.note(update, &BTreeMap::new()));
    }

    /// Waits until discovery has come to a first result for each cluster, but not for long. What it has told.
    pub(super) async fn wait_for_discovery(&mut self) -> Vec<Update> {
        let mut updates = Vec::new();
        let deadline = tokio::time::Instant::now() + SETTLING;
        while !self.discovery.settled() {
            let now = tokio::time::Instant::now();
            if now >= deadline {
                break;
            }
            if let Ok(update) = timeout_at(deadline.min(now + HEARING), self.discovery.changed()).await {
                updates.push(update);
            }
            // The ring has room for some seconds alone.
            self.hear();
        }
        // Those that take no query are there at once.
        while let Ok(update) = timeout(Duration::ZERO, self.discovery.changed()).await {
            updates.push(update);
        }
        updates
    }

    /// Waits until every endpoint that is to be asked for its health has been, but not for long.
    pub(super) async fn wait_for_health(&mut self) {
        let deadline = tokio::time::Instant::now() + SETTLING;
        while self.is_health_pending() {
            let now = tokio::time::Instant::now();
            if now >= deadline {
                break;
            }
            let change = timeout_at(deadline.min(now + HEARING), self.health.checker.changed()).await;
            if let Ok(change) = change {
                self.health_changed(change);
            }
            self.hear();
        }
    }

    /// Brings up the kernel rungs; where they cannot be had, the proxy goes on alone, unless they are forced.
    pub(super) async fn start_kernel(&mut self) -> Result<()> {
        let loaded = self.load_kernel().await?;
        self.attach_kernel(loaded).await
    }

    /// The first part, without a packet to carry: loads the programs, and begins to find out about endpoints.
    async fn load_kernel(&mut self) -> Result<Option<LoadedKernel>> {
        let mode = self.mode_of(&self.config);
        let left = Pins::new(&self.options.bpffs).exist();
        if mode == Mode::Proxy {
            if left {
                bail!(LEFT_ALONE);
            }
            self.no_kernel = Some("the mode is proxy".into());
            return Ok(None);
        }
        match KernelSide::load(&self.config, &self.options, mode, &mut self.endpoints, &self.network) {
            Ok(mut kernel) => {
                kernel.explore(&self.endpoints, &self.network, true).await;
                Ok(Some(LoadedKernel { kernel, left }))
            }
            Err(error) => {
                self.without_kernel(error, left)?;
                Ok(None)
            }
        }
    }

    /// The second part.
    async fn attach_kernel(&mut self, loaded: Option<LoadedKernel>) -> Result<()> {
        let Some(LoadedKernel { mut kernel, left }) = loaded else { return Ok(()) };
        kernel.draining = self.node_drained.is_some();
        match self.fill_and_attach(&mut kernel).await {
            Ok(()) => {
                self.kernel = Some(kernel);
                self.no_kernel = None;
                self.link_counts();
                Ok(())
            }
            Err(error) => {
                drop(kernel);
                self.without_kernel(error, left)
            }
        }
    }

    /// There are no kernel rungs. `left`: an earlier agent has left some.
    fn without_kernel(&mut self, error: anyhow::Error, left: bool) -> Result<()> {
        if left {
            return Err(error.context(LEFT_ALONE));
        }
        // Half a datapath is none. An earlier agent's goes on for its flows, though.
        let _ = kernel_side::unload(&Pins::new(&self.options.bpffs), &self.network);
        if self.mode_of(&self.config) != Mode::Auto {
            return Err(error.context("the datapath that was asked for is not to be had"));
        }
        log::warn!("no kernel datapath, the proxy carries everything: {error:#}");
        self.no_kernel = Some(format!("{error:#}"));
        Ok(())
    }

    async fn fill_and_attach(&mut self, kernel: &mut KernelSide) -> Result<()> {
        let deadline = Instant::now() + RESOLUTION;
        kernel.await_trials(RESOLUTION).await;
        loop {
            self.network.neighbours = net::neighbours().await?;
            kernel.update_maps(&self.config, &self.endpoints, &self.network)?;
            if kernel.is_resolved() || Instant::now() >= deadline {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        kernel.kernel.recount_active()?;
        kernel.attach(&self.config, &self.network).await?;
        kernel.confirm();
        Ok(())
    }
}

/// What the admin port shows before there is anything.
fn not_ready(server: &ServerView) -> ViewSource {
    let view = View { server: server.clone(), ..View::default() };
    Box::new(move || Ok(view))
}
