//! The way out: no new flows, then wait for the old ones, then detach.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_common::Address;
use lb_common::tcp::is_closing;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

use crate::access_log::{Kind, Record, reason};
use crate::agent::admin::{self, AdminSocket};
use crate::agent::{Agent, asked};
use crate::datapath::kernel::{FamilyMaps, Kernel, monotonic_now};
use crate::net::Watch;
use crate::proxy::Observer;

/// How often is looked whether all flows have ended.
const LOOK: Duration = Duration::from_millis(250);
/// How long the access log may take for what is left when the agent ends.
const LAST_LINES: Duration = Duration::from_secs(1);
/// A handshake younger than this is waited for.
const HANDSHAKE: u64 = 3_000_000_000;

impl Agent {
    /// Stops: at once with `--leave-datapath`, else when the flows have ended, at the latest after the longest drain
    /// timeout. A second signal ends the waiting.
    pub(super) async fn stop(mut self, watch: &mut Watch, admin: AdminSocket) -> Result<()> {
        self.stopping = true;
        self.unlink_counts();
        // From here on another agent may take the place.
        drop(admin);
        // Without a datapath there is nobody who serves while it waits, and its successor cannot begin.
        if self.options.leave_datapath {
            log::info!("leaving the ports, and programs and flows if there are any, to the next agent");
            self.connections.logs.close(LAST_LINES);
            return Ok(());
        }
        self.proxy.stop_listening();
        if let Some(kernel) = &mut self.kernel {
            kernel.set_draining(true, &self.config, &self.endpoints, &self.network)?;
        }
        let timeout =
            self.config.clusters.iter().map(|cluster| cluster.drain_timeout).max().unwrap_or_default();
        log::info!("draining, for at most {}", humantime::format_duration(timeout));
        self.wait_for_flows(watch, Instant::now() + timeout).await?;
        self.hear();
        self.proxy.cut_all(reason::SHUTDOWN);
        let _ = tokio::time::timeout(LAST_LINES, self.proxy.drained()).await;
        self.notice_successor();
        if let Err(error) = self.end_what_is_left() {
            log::warn!("ending the connections that are left: {error:#}");
        }
        if !self.connections.logs.close(LAST_LINES) {
            log::warn!("the access log does not take its last lines: they are lost");
        }
        self.notice_successor();
        if let Some(kernel) = &self.kernel {
            kernel.unload(&self.network)?;
            log::info!("detached");
        }
        Ok(())
    }

    /// Resets the kernel's connections that end with the agent, and has the last lines logged of all that are left.
    fn end_what_is_left(&self) -> Result<()> {
        let mut left = self.proxy.records();
        if let Some(kernel) = &self.kernel {
            for connection in kernel.kernel.connections()? {
                self.reset_both(&connection);
                left.push(kernel.record(&connection));
            }
        }
        for record in left {
            let why = Some(reason::SHUTDOWN);
            self.connections.tell(&Record { kind: Kind::End, local_close: why, ..record });
        }
        Ok(())
    }

    /// Leaves the datapath alone if another agent has taken it over.
    fn notice_successor(&mut self) {
        if (self.kernel.is_some() || self.admin_http.is_some()) && admin::is_served(&self.options.run_dir) {
            if self.kernel.take().is_some() {
                log::info!("another agent has taken the datapath over");
            }
            self.admin_http = None;
        }
    }

    async fn wait_for_flows(&mut self, watch: &mut Watch, deadline: Instant) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut reopen = signal(SignalKind::user_defined1())?;
        let mut look = interval(LOOK);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = reopen.recv() => self.connections.logs.reopen(),
                changes = watch.changed() => {
                    self.notice_successor();
                    self.follow(changes?).await;
                }
                Some(request) = asked(&mut self.admin_http) => {
                    let view = self.view(request.only_server());
                    request.answer(view);
                }
                _ = look.tick() => {
                    self.notice_successor();
                    self.look_after_flows();
                    self.housekeep().await;
                    let kernel = match &self.kernel {
                        Some(kernel) => open_flows(&kernel.kernel)?,
                        None => 0,
                    };
                    let proxied = self.proxy.connections();
                    if kernel == 0 && proxied == 0 {
                        return Ok(());
                    }
                    if Instant::now() >= deadline {
                        log::warn!("the drain timeout is over: {kernel} kernel flows and {proxied} proxied connections end now");
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Flows that are established, or in the midst of their handshake.
fn open_flows(kernel: &Kernel) -> Result<u64> {
    Ok(open_in(&kernel.v4)? + open_in(&kernel.v6)?)
}

fn open_in<A: Address>(maps: &FamilyMaps<A>) -> Result<u64> {
    let now = monotonic_now();
    let mut open = 0;
    maps.flows.for_each(|flow| {
        open += if flow.is_established() {
            !flow.is_forward() && !is_closing(flow.word)
        } else {
            let young = now.saturating_sub(flow.last_seen) < HANDSHAKE;
            flow.is_forward() && !flow.is_tombstone() && young
        } as u64;
    })?;
    Ok(open)
}
