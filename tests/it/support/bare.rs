//! Workers without the rest of the program: no control plane, no admin side.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus::Registry;
use tidegate::{
    config::load::parse,
    controller::publish::{Compiled, Publisher},
    net::listen,
    proxy::client::Patience,
    routing::{edge::Edge, snapshot::Endpoint},
    telemetry::ledger::Hub,
    tls::reload::Keeper,
    worker::{
        drain::Stage,
        handle::{Behind, ListenerChanges, Opening, Workers},
        handshake::Entrance,
    },
};

use super::{Web, runtime};

/// A worker, with the door through which addresses of its one endpoint come in.
pub struct Bare {
    publisher: Arc<Publisher>,
    workers: Option<Workers>,
    /// Where it listens.
    pub address: SocketAddr,
    name: Endpoint,
}

impl Bare {
    pub fn start(balance: &str) -> Self {
        let toml = Web::at(&["http://name.test:1"]).table("balance", balance).to_string();
        let (config, _) = parse("test.toml", &toml).unwrap();
        let name = config.services[0].backends[0].endpoints[0].clone();
        let mut keeper = Keeper::new(&Registry::new()).unwrap();
        let publisher = Arc::new(Publisher::new(Compiled::new(&config, &mut keeper).unwrap()));
        let hub = Arc::new(Hub::new(1));
        let workers = Workers::start(1, publisher.snapshots(), &hub, Vec::new()).unwrap();
        let address = open(&workers);
        Self { publisher, workers: Some(workers), address, name }
    }

    /// Makes it listen elsewhere, too.
    pub fn open(&self) -> SocketAddr {
        open(self.workers.as_ref().unwrap())
    }

    /// Moves it to a stage of its end.
    pub fn enter(&self, stage: Stage) {
        self.workers.as_ref().unwrap().enter(stage);
    }

    pub fn set(&self, addresses: &[SocketAddr]) -> bool {
        self.publisher.set_addresses(&"web".parse().unwrap(), &"v1".parse().unwrap(), &self.name, addresses)
    }
}

fn open(workers: &Workers) -> SocketAddr {
    let sockets = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let address = sockets[0].local_addr().unwrap();
    let patience = Patience { header: Duration::from_secs(10), idle: Duration::from_secs(10) };
    let (entrance, edge) = (Entrance::default(), Edge::default());
    let opening = Opening { sockets, behind: Behind { address, patience, entrance, edge } };
    let opened = ListenerChanges { opened: vec![opening], ..ListenerChanges::default() };
    runtime().block_on(workers.listeners().change(opened));
    address
}

impl Drop for Bare {
    fn drop(&mut self) {
        let mut workers = self.workers.take().unwrap();
        workers.enter(Stage::Cutting);
        runtime().block_on(workers.ended()).unwrap();
    }
}
