//! Files that change while the proxy runs.
//!
//! They are looked at every few seconds, by what is in them: this sees a file that is written anew, one
//! that is renamed into place, and a link that leads elsewhere (as Kubernetes mounts secrets), on any
//! file system. What has changed is taken up once it has stayed the same for one look, because a
//! certificate and its key are seldom replaced in one step. What is no good is not taken up: the last
//! good one stays in use, with a line in the log and a count.

use std::{fmt, sync::Arc, time::Duration};

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};
use tokio::sync::Mutex;

use super::{
    client::{CannotConnect, Client, Settings},
    files::{Fault, Source},
    server::Server,
    signing::{KeptSigner, Secrets, Signer},
};
use crate::clock;

/// Something made of files, and the files that it was made of.
#[derive(Debug)]
pub struct Kept<S: Source> {
    source: S,
    made: S::Made,
    /// The fingerprint that was last tried.
    tried: u64,
    /// One that is new, and has yet to stay.
    settling: Option<u64>,
}

impl<S: Source + fmt::Display> Kept<S> {
    /// Reads the files for the first time.
    pub(super) fn load(source: S) -> Result<Self, Fault> {
        let tried = source.fingerprint();
        let made = source.load()?;
        Ok(Self { source, made, tried, settling: None })
    }

    /// What was made last, and of what.
    pub(super) fn made(&self) -> (&S, &S::Made) {
        (&self.source, &self.made)
    }

    /// Looks at the files; whether what was made is new.
    pub(super) fn refresh(&mut self, reloads: &mut Reloads) -> bool {
        let seen = self.source.fingerprint();
        if seen == self.tried {
            self.settling = None;
            return false;
        }
        if self.settling.replace(seen) != Some(seen) {
            return false;
        }
        self.settling = None;
        self.tried = seen;
        let loaded = self.source.load();
        match loaded.and_then(|made| self.source.check(&made, clock::now()).map(|()| made)) {
            Ok(made) => {
                tracing::info!(file = %self.source, "a file has changed and is taken up");
                reloads.succeeded += 1;
                self.made = made;
                true
            }
            Err(fault) => {
                tracing::error!(%fault, help = fault.remedy(), "a file has changed for the worse; what it held before stays in use");
                reloads.failed += 1;
                false
            }
        }
    }
}

/// What came of a look at the files.
#[derive(Debug, Default)]
pub struct Reloads {
    succeeded: u64,
    failed: u64,
}

/// Everything that is made of files, kept fresh.
pub struct Keeper {
    servers: Vec<Server>,
    clients: Vec<Client>,
    signers: Vec<KeptSigner>,
    metrics: Metrics,
}

impl Keeper {
    /// Registers the metrics; there is nothing to keep yet.
    ///
    /// # Errors
    /// When a metric of that name is there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Metrics::register(registry)?;
        Ok(Self { servers: Vec::new(), clients: Vec::new(), signers: Vec::new(), metrics })
    }

    /// Keeps a listener's side fresh.
    pub fn add_server(&mut self, server: Server) {
        self.servers.push(server);
        self.show();
    }

    /// A connector for backends that are spoken to in this way; the same one for the same way.
    ///
    /// # Errors
    /// When there is none yet and it cannot be made.
    pub fn connector(&mut self, settings: &Settings) -> Result<Arc<super::client::Connector>, CannotConnect> {
        let known = self.clients.iter().find(|client| client.connector().settings() == settings);
        if let Some(known) = known {
            return Ok(Arc::clone(known.connector()));
        }
        let client = Client::new(settings.clone())?;
        let connector = Arc::clone(client.connector());
        self.clients.push(client);
        self.show();
        Ok(connector)
    }

    /// What signs with these secrets; the same one for the same file.
    ///
    /// # Errors
    /// When there is none yet and the file is not what it should be.
    pub fn signer(&mut self, secrets: &Secrets) -> Result<Arc<Signer>, Fault> {
        if let Some(known) = self.signers.iter().find(|kept| kept.signer().source() == secrets) {
            return Ok(Arc::clone(known.signer()));
        }
        let kept = KeptSigner::new(secrets.clone())?;
        let signer = Arc::clone(kept.signer());
        self.signers.push(kept);
        Ok(signer)
    }

    /// Looks at the files every so often, for as long as it is polled.
    pub async fn run(keeper: Arc<Mutex<Self>>, every: Duration) {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            // Files may be on a network.
            let mut keeper = Arc::clone(&keeper).lock_owned().await;
            let looked = tokio::task::spawn_blocking(move || keeper.refresh());
            if let Err(error) = looked.await {
                return tracing::error!(%error, "certificates are not reloaded any more");
            }
        }
    }

    /// One look at every file.
    fn refresh(&mut self) {
        self.forget_unused();
        let mut reloads = Reloads::default();
        self.servers.iter_mut().for_each(|server| server.refresh(&mut reloads));
        self.clients.iter_mut().for_each(|client| client.refresh(&mut reloads));
        self.signers.iter_mut().for_each(|kept| kept.refresh(&mut reloads));
        self.metrics.count(&reloads);
        if reloads.succeeded > 0 {
            self.show();
        }
    }

    /// Forgets what nobody else has any more, since a configuration without it is in force.
    fn forget_unused(&mut self) {
        let before = (self.servers.len(), self.clients.len());
        self.servers.retain(|server| Arc::strong_count(server.published()) > 1);
        self.clients.retain(|client| Arc::strong_count(client.connector()) > 1);
        self.signers.retain(|kept| Arc::strong_count(kept.signer()) > 1);
        if before != (self.servers.len(), self.clients.len()) {
            self.metrics.expiry.reset();
            self.show();
        }
    }

    fn show(&self) {
        let servers = self.servers.iter().flat_map(Server::certificates);
        for (pair, certificate) in servers.chain(self.clients.iter().filter_map(Client::certificate)) {
            let seconds = certificate.not_after.as_millis() / 1000;
            self.metrics.expiry.with_label_values(&[&pair.to_string()]).set(seconds as f64);
        }
    }
}

struct Metrics {
    expiry: GaugeVec,
    reloads: IntCounterVec,
}

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            expiry: GaugeVec::new(
                Opts::new(
                    "tidegate_tls_certificate_expiry_timestamp_seconds",
                    "When a certificate in use expires, in seconds since 1970, by its file.",
                ),
                &["certificate"],
            )?,
            reloads: IntCounterVec::new(
                Opts::new(
                    "tidegate_tls_reloads_total",
                    "Files of certificates, keys, authorities and secrets that changed, by whether they were taken up.",
                ),
                &["result"],
            )?,
        };
        registry.register(Box::new(metrics.expiry.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        metrics.count(&Reloads::default());
        Ok(metrics)
    }

    fn count(&self, Reloads { succeeded, failed }: &Reloads) {
        self.reloads.with_label_values(&["success"]).inc_by(*succeeded);
        self.reloads.with_label_values(&["failure"]).inc_by(*failed);
    }
}
