//! Certificates made for a test, and a client that speaks TLS and looks at what it is shown.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;

use super::eventually::patience;

/// An authority that certificates come from.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Issued {
    /// What a server needs that shows it and speaks these protocols.
    pub fn server(&self, protocols: &[&[u8]]) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = builder.unwrap().with_no_client_auth().with_single_cert(vec![self.der()], key);
        let mut config = config.unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for host names and addresses.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 4096)
    }

    /// One that has not been valid since 2001.
    pub fn expired(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 2001)
    }

    fn issue_until(&self, names: &[&str], year: i32) -> Issued {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }
}

/// A folder with the files that a configuration names.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes `NAME.pem` and `NAME.key`; how a configuration names them.
    pub fn pair(&self, name: &str, issued: &Issued) -> String {
        let certificate = self.write(&format!("{name}.pem"), &issued.certificate);
        let key = self.write(&format!("{name}.key"), &issued.key);
        format!("certificate = '{}', key = '{}'", certificate.display(), key.display())
    }
}

/// A client that speaks TLS.
pub type Secure = StreamOwned<ClientConnection, TcpStream>;

/// How a client speaks TLS.
pub struct Dialect {
    config: ClientConfig,
}

impl Dialect {
    /// Believes one authority.
    pub fn trusting(authority: &Authority) -> Self {
        Self::with(authority, None, rustls::ALL_VERSIONS)
    }

    /// The same with a certificate of its own.
    pub fn showing(authority: &Authority, shown: &Issued) -> Self {
        Self::with(authority, Some(shown), rustls::ALL_VERSIONS)
    }

    /// The same in one version alone.
    pub fn of_version(authority: &Authority, version: &'static SupportedProtocolVersion) -> Self {
        Self::with(authority, None, &[version])
    }

    fn with(
        authority: &Authority,
        shown: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(shown) => {
                let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![shown.der()], key).unwrap()
            }
        };
        Self { config }
    }

    /// Connects, and shakes hands as far as the client can see.
    pub fn connect(&self, address: SocketAddr, name: &str) -> Result<Secure, String> {
        self.connect_after("", address, name)
    }

    /// The same, after something that is said before TLS.
    pub fn connect_after(&self, said: &str, address: SocketAddr, name: &str) -> Result<Secure, String> {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(said.as_bytes()).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(Arc::new(self.config.clone()), name).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| error.to_string())?;
        }
        Ok(stream)
    }
}

/// Sends a GET and reads to the end of the connection.
pub fn secure_get(stream: &mut Secure, target: &str) -> Result<String, String> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

/// The certificate that the other side has shown.
pub fn shown(stream: &Secure) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}
