//! SIGHUP: the configuration file is read again, and what has changed is applied. A file that is not good, or that cannot
//! be carried out, changes nothing.

use std::time::{Instant, SystemTime};

use anyhow::{Result, bail};

use crate::agent::{Agent, access_logs, bind_admin_http, check_against_host, proxy_listeners};
use crate::config::{self, ConfigErrors, Loaded, Place};
use crate::discovery::Event;
use crate::endpoints::State;
use crate::model::{Cluster, Config, Mode};

/// The last attempt at a reload.
#[derive(Clone, Debug)]
pub(super) struct Reload {
    pub at: SystemTime,
    /// Why the file was not taken.
    pub error: Option<String>,
}

impl Agent {
    /// Reads the file again.
    pub(super) async fn reload(&mut self) {
        let file = self.options.config.display().to_string();
        let result = self.try_reload().await;
        match &result {
            Ok(_) => self.changes.reloads_applied += 1,
            Err(_) => self.changes.reloads_refused += 1,
        }
        let (to, why, error) = match result {
            Ok(false) => {
                log::info!("reloaded {file}: nothing has changed");
                ("applied", "nothing has changed".to_owned(), None)
            }
            Ok(true) => {
                log::info!("reloaded {file}: {}", self.summary());
                ("applied", self.summary(), None)
            }
            Err(error) => {
                log::error!("reload: {error:#}\nthe configuration that runs stays as it is");
                let why = format!("{error:#}");
                ("refused", why.lines().next().unwrap_or_default().to_owned(), Some(why))
            }
        };
        self.events.keep(Event::now("", None, "read", to, &why));
        self.reloaded = Some(Reload { at: SystemTime::now(), error });
    }

    /// Whether anything has changed.
    async fn try_reload(&mut self) -> Result<bool> {
        let loaded = config::load(&self.options.config)?;
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        check_against_host(&loaded, &self.network)?;
        self.check_fixed(&loaded)?;
        if loaded.config == self.config {
            self.renew_probers();
            return Ok(false);
        }
        let before = self.config.clone();
        let mut result = self.open_ports_and_logs(&before, &loaded.config).await;
        if result.is_ok() {
            result = self.reconfigure(loaded.config.clone()).await;
        }
        // One that was refused before is not asked for again by a change of something else.
        if result.is_ok() && before.datapath.max_flows != loaded.config.datapath.max_flows {
            result = self.resize(&loaded).await;
        }
        if let Err(error) = result {
            // Back to what is known to work.
            if let Err(worse) = self.open_ports_and_logs(&loaded.config, &before).await {
                log::error!("going back to the configuration before: {worse:#}");
            }
            if let Err(worse) = self.reconfigure(before).await {
                log::error!("going back to the configuration before: {worse:#}");
            }
            return Err(error);
        }
        self.renew_probers();
        self.changes.count(&before, &loaded.config);
        Ok(true)
    }

    /// Goes over to another admin port and other logs; an error changes nothing.
    async fn open_ports_and_logs(&mut self, old: &Config, new: &Config) -> Result<()> {
        self.connections.logs.reconfigure(access_logs(new))?;
        if new.admin == old.admin && new.admin.is_some() == self.admin_http.is_some() {
            return Ok(());
        }
        // The new address may be one that cannot be had beside the old.
        self.admin_http = None;
        if let Some(admin) = new.admin {
            self.admin_http = Some(bind_admin_http(admin.address).await?);
        }
        Ok(())
    }

    /// What cannot change while flows are open.
    fn check_fixed(&self, loaded: &Loaded) -> Result<()> {
        let (old_mode, new_mode) = (self.mode_of(&self.config), self.mode_of(&loaded.config));
        if self.kernel.is_some() && new_mode == Mode::Proxy && old_mode != Mode::Proxy {
            bail!(ConfigErrors::from(vec![loaded.error_at(
                loaded.places.mode().unwrap_or(Place::START),
                "datapath.mode",
                "to go over to proxy would cut all kernel flows: put it back, or stop the agent, which lets them end, and start it again",
            )]));
        }
        Ok(())
    }

    /// Makes everything as `config` says. What can fail comes first.
    async fn reconfigure(&mut self, config: Config) -> Result<()> {
        self.discovery.apply(&config.clusters);
        let updates = self.wait_for_discovery().await;
        let before = self.endpoints.states();
        let is_new = |cluster: &&Cluster| self.config.cluster(&cluster.name).is_none();
        self.coming = config.clusters.iter().filter(is_new).cloned().collect();
        for cluster in self.coming.clone() {
            self.set_endpoints(&cluster);
        }
        if self.coming.iter().any(|cluster| cluster.health_check.is_some()) {
            self.wait_for_health().await;
        }
        self.proxy.apply(proxy_listeners(&config, &self.balancers))?;

        for (name, before) in self.endpoints.keep_clusters(&self.config, &config, Instant::now()) {
            let (cluster, endpoint) = &name;
            let why = "its cluster is not in the configuration any more";
            self.events.endpoint(cluster, *endpoint, before.name(), State::Draining.name(), why);
        }
        let mode = self.mode_of(&config);
        self.config = config;
        self.coming.clear();
        for cluster in self.config.clusters.clone() {
            self.set_endpoints(&cluster);
        }
        updates.iter().for_each(|update| self.note(update, &before));
        let (config, endpoints) = (&self.config, &self.endpoints);
        self.balancers
            .retain(|name, _| config.cluster(name).is_some() || endpoints.of(name).next().is_some());
        self.forget_health();
        match &mut self.kernel {
            Some(kernel) => {
                kernel.reconfigure(&self.config, mode)?;
                self.apply_endpoints(true).await
            }
            None if mode == Mode::Proxy => Ok(()),
            None => self.start_kernel().await,
        }
    }

    /// The last part of a reload, so that it never has to be taken back.
    async fn resize(&mut self, loaded: &Loaded) -> Result<()> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.resize(&self.config, &self.endpoints, &self.network).await.map_err(|error| {
            let place = loaded.places.max_flows().unwrap_or(Place::START);
            ConfigErrors::from(vec![loaded.error_at(place, "datapath.max_flows", format!("{error:#}"))])
                .into()
        })
    }
}
