//! Certificates, keys and authorities: read from files, made into what a handshake needs, and made
//! anew when the files change. Both sides of the proxy use it; neither waits for it: a handshake
//! reads what was published last. So are the secrets that sign cookies.
//!
//! Nothing here moves a byte of a connection: that is `net::tls`.

pub mod client;
pub mod files;
pub mod names;
pub mod reload;
pub mod server;
pub mod signing;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The one provider of cryptography.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
