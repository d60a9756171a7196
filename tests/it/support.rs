//! What the tests are made of: a Tidegate in this process, backends that follow a script, clients that
//! write what they are told to, and patience.

pub mod backend;
pub mod bare;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod collector;
pub mod eventually;
pub mod external;
pub mod hyper_backend;
pub mod metrics;
pub mod python;
pub mod tidegate;
pub mod tonic_peer;
pub mod wire;

pub use self::{
    backend::{Backend, Refusing, Unaccepting, reply},
    client::{H2, Raw, exchange, get, runtime},
    eventually::{eventually, eventually_is, patience},
    hyper_backend::{HyperBackend, Limits},
    tidegate::{Tidegate, Web},
};
