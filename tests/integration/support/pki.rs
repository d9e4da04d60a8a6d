//! Certificates made for a test, and clients that use them.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use workflow_secrets::grpc::tls::TlsFiles;

/// A certificate authority.
pub(crate) struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // OpenSSL takes a certificate with its issuer's name for self-signed.
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// For `localhost` and 127.0.0.1.
    pub(crate) fn server(&self) -> Identity {
        self.issue(&server_params())
    }

    /// The same, valid for some time more.
    pub(crate) fn expiring_server(&self, left: Duration) -> Identity {
        let mut params = server_params();
        params.not_after = (SystemTime::now() + left).into();
        self.issue(&params)
    }

    /// The same, but expired in that year.
    pub(crate) fn server_until(&self, year: i32) -> Identity {
        let mut params = server_params();
        params.not_after = date_time_ymd(year, 1, 1);
        self.issue(&params)
    }

    /// The same, but not valid before that year.
    pub(crate) fn server_from(&self, year: i32) -> Identity {
        let mut params = server_params();
        params.not_before = date_time_ymd(year, 1, 1);
        self.issue(&params)
    }

    /// With these URI SANs, next to a DNS SAN.
    pub(crate) fn client(&self, uris: &[&str]) -> Identity {
        self.issue(&client_params(uris))
    }

    pub(crate) fn expired_client(&self, uri: &str) -> Identity {
        let mut params = client_params(&[uri]);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.issue(&params)
    }

    /// Valid in a few hundred years.
    pub(crate) fn early_client(&self, uri: &str) -> Identity {
        let mut params = client_params(&[uri]);
        params.not_before = date_time_ymd(2400, 1, 1);
        self.issue(&params)
    }

    /// Without extended key usages.
    pub(crate) fn aimless_client(&self, uri: &str) -> Identity {
        let mut params = client_params(&[uri]);
        params.extended_key_usages.clear();
        self.issue(&params)
    }

    /// With this serial number.
    pub(crate) fn numbered_client(&self, uri: &str, number: u64) -> Identity {
        let mut params = client_params(&[uri]);
        params.serial_number = Some(SerialNumber::from(number));
        self.issue(&params)
    }

    /// A list that revokes these serial numbers, good until a year.
    pub(crate) fn crl(&self, numbers: &[u64], until: i32) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// Valid for a few seconds more.
    pub(crate) fn expiring_client(&self, uri: &str, left: Duration) -> Identity {
        let mut params = client_params(&[uri]);
        params.not_after = (SystemTime::now() + left).into();
        self.issue(&params)
    }

    /// May sign certificates, as no SPIFFE leaf may.
    pub(crate) fn signing_client(&self, uri: &str) -> Identity {
        let mut params = client_params(&[uri]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        self.issue(&params)
    }

    /// A CA itself.
    pub(crate) fn ca_client(&self, uri: &str) -> Identity {
        let mut params = client_params(&[uri]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self.issue(&params)
    }

    /// With a SAN extension of these bytes.
    pub(crate) fn client_with_raw_san(&self, san: Vec<u8>) -> Identity {
        let mut params = client_params(&[]);
        params.subject_alt_names.clear();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], san)];
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { cert, key: key.serialize_pem() }
    }
}

fn server_params() -> CertificateParams {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn client_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(["client.example".to_owned()]).unwrap();
    let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
    params.subject_alt_names.extend(uris);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Writes the files of a server into `dir`, the key with mode 0600.
pub(crate) fn write_server_files(dir: &Path, server: &Identity, client_ca: &Ca) -> TlsFiles {
    let files = TlsFiles {
        cert: dir.join("tls.crt"),
        key: dir.join("tls.key"),
        client_ca: dir.join("ca.crt"),
        client_crl: None,
    };
    fs::write(&files.cert, &server.cert).unwrap();
    write_key(&files.key, &server.key);
    fs::write(&files.client_ca, client_ca.pem()).unwrap();
    files
}

/// Writes a private key with mode 0600.
pub(crate) fn write_key(path: &Path, pem: &str) {
    fs::write(path, pem).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A client that trusts `server_ca` and shows `identity`, over HTTP/2.
pub(crate) fn client_config(server_ca: &Ca, identity: Option<&Identity>) -> Arc<ClientConfig> {
    client_config_with(server_ca, identity, rustls::ALL_VERSIONS)
}

/// The same for these TLS versions.
pub(crate) fn client_config_with(
    server_ca: &Ca,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server_ca.pem().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key }) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Connects. In TLS 1.3, a refused client learns so only from its first read.
pub(crate) async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    // Otherwise every call waits 40 ms for a delayed acknowledgement.
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, tcp).await
}

/// A channel for tonic clients; connects at once.
pub(crate) async fn channel(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let config = Arc::clone(&config);
        async move { connect(address, config).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}
