//! Mutual TLS from files.

use std::{
    fmt, fs, io,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _},
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    version::{TLS12, TLS13},
};
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// PEM files of the server's identity and of the CA of its clients.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key, unencrypted. Refused if its mode gives others
    /// any right; the group may read it, as Kubernetes' `fsGroup` needs.
    pub key: PathBuf,
    /// One or more CA certificates that clients' certificates are verified by.
    pub client_ca: PathBuf,
    /// Revocation lists of the CAs. With it, each CA that issued a certificate
    /// of a client's chain needs a list here that is not out of date: a client
    /// whose certificate is on it, or is on none, is refused.
    pub client_crl: Option<PathBuf>,
}

impl TlsFiles {
    /// All of them.
    pub fn paths(&self) -> Vec<PathBuf> {
        let always = [&self.cert, &self.key, &self.client_ca];
        always.into_iter().chain(&self.client_crl).cloned().collect()
    }
}

/// PEM files of a client.
#[derive(Debug, Clone)]
pub struct ClientTlsFiles {
    /// One or more CA certificates that the server's certificate is verified by.
    pub ca: PathBuf,
    /// Certificate chain and private key of the client, with the rules of
    /// [`TlsFiles`]; health can be asked for without.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with the TLS files: each file with its fault. Never holds
/// what a file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError(Vec<(PathBuf, String)>);

impl TlsError {
    /// The files and their faults; at least one.
    pub fn faults(&self) -> &[(PathBuf, String)] {
        &self.0
    }
}

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (file, fault)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {fault}", file.display())?;
        }
        Ok(())
    }
}

/// Reads the files into a server configuration: TLS 1.3 and 1.2, HTTP/2 only.
///
/// A server certificate that no client would take is refused: one that has
/// expired, or is not valid yet.
///
/// A client may come without a certificate: it reaches the gRPC layer, which
/// answers health checks and refuses the rest as UNAUTHENTICATED. A client
/// whose certificate does not verify is refused in the handshake.
///
/// Sessions are never resumed. A resumed session would carry a client's
/// certificate over from an earlier handshake, unchecked against a CA file
/// that has changed since, and callers keep their connections anyway.
///
/// # Errors
/// Each file with a fault, and that fault.
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut faults = vec![];
    let mut note = |file: &PathBuf, fault: String| faults.push((file.clone(), fault));
    let chain = certificates(&files.cert).and_then(|chain| valid_now(&chain).map(|()| chain));
    let chain = chain.map_err(|fault| note(&files.cert, fault)).ok();
    let key = private_key(&files.key).map_err(|fault| note(&files.key, fault)).ok();
    let roots = roots(&files.client_ca).map_err(|fault| note(&files.client_ca, fault)).ok();
    let lists = files.client_crl.as_ref().map(|file| {
        let lists = revocation_lists(file);
        lists.map(|lists| (file, lists)).map_err(|fault| note(file, fault)).ok()
    });
    let (Some(chain), Some(key), Some(roots), Some(lists)) =
        (chain, key, roots, lists.map_or(Some(None), |found| found.map(Some)))
    else {
        return Err(TlsError(faults));
    };
    let verifier = client_verifier(roots, lists, &files.client_ca, Arc::clone(&provider))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map(|builder| builder.with_client_cert_verifier(verifier))
        .and_then(|builder| builder.with_single_cert(chain, key))
        .map_err(|error| {
            let fault = format!("does not fit {}: {error}", files.cert.display());
            TlsError(vec![(files.key.clone(), fault)])
        })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Reads the files of a client: TLS 1.3 and 1.2, HTTP/2 only.
///
/// # Errors
/// Each file with a fault, and that fault.
pub fn load_client(files: &ClientTlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let mut faults = vec![];
    let mut note = |file: &PathBuf, fault: String| faults.push((file.clone(), fault));
    let roots = roots(&files.ca).map_err(|fault| note(&files.ca, fault)).ok();
    let identity = files.identity.as_ref().map(|(cert, key)| {
        let chain = certificates(cert).map_err(|fault| note(cert, fault)).ok();
        chain.zip(private_key(key).map_err(|fault| note(key, fault)).ok())
    });
    let (Some(roots), Some(identity)) =
        (roots, identity.map_or(Some(None), |found| found.map(Some)))
    else {
        return Err(TlsError(faults));
    };
    let file = files.identity.as_ref().map_or(&files.ca, |(_, key)| key);
    let told = |error: rustls::Error| TlsError(vec![(file.clone(), error.to_string())]);
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(told)?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(told)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn read(
    file: &Path,
    refuse: fn(u32) -> Option<&'static str>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let told = |error: io::Error| error.to_string();
    let mut opened = fs::File::open(file).map_err(told)?;
    if let Some(fault) = refuse(opened.metadata().map_err(told)?.permissions().mode()) {
        return Err(fault.to_owned());
    }
    let mut bytes = Zeroizing::new(Vec::new());
    opened.read_to_end(&mut bytes).map_err(told)?;
    Ok(bytes)
}

/// When the first of the certificates in a PEM file expires, in seconds since
/// 1970; `None` for a file without any.
pub fn first_expiry(file: &Path) -> Option<u64> {
    let expiry = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0))
    };
    certificates(file).ok()?.iter().filter_map(expiry).min()
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(file, |_| None)?;
    // The parser's own errors quote the file.
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err("holds no certificates in PEM".to_owned()),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read(file, |mode| {
        (mode & 0o007 != 0).then_some("is open to others: its mode must end in 0, such as 0640")
    })?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| "holds no unencrypted private key in PEM".to_owned())
}

fn roots(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(file)?.into_iter().enumerate() {
        let number = index.saturating_add(1);
        roots.add(certificate).map_err(|error| format!("certificate {number}: {error}"))?;
    }
    Ok(roots)
}

/// What clients check at once of the certificate that they are shown.
fn valid_now(chain: &[CertificateDer<'_>]) -> Result<(), String> {
    let leaf = chain.first().map(|leaf| X509Certificate::from_der(leaf));
    let Some(Ok((_, leaf))) = leaf else {
        return Err("certificate 1 is malformed".to_owned());
    };
    let (now, validity) = (ASN1Time::now(), leaf.validity());
    if now > validity.not_after {
        return Err("certificate 1 has expired".to_owned());
    }
    if now < validity.not_before {
        return Err("certificate 1 is not valid yet".to_owned());
    }
    Ok(())
}

fn revocation_lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(file, |_| None)?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let lists = lists.ok().filter(|lists| !lists.is_empty());
    let lists = lists.ok_or("holds no revocation lists in PEM")?;
    for (index, list) in lists.iter().enumerate() {
        let number = index.saturating_add(1);
        let Ok((_, list)) = CertificateRevocationList::from_der(list) else {
            return Err(format!("list {number} is malformed"));
        };
        // With it, all clients of its CA would be refused.
        if list.next_update().is_some_and(|next| ASN1Time::now() > next) {
            return Err(format!("list {number} is out of date"));
        }
    }
    Ok(lists)
}

fn client_verifier(
    roots: RootCertStore,
    lists: Option<(&PathBuf, Vec<CertificateRevocationListDer<'static>>)>,
    client_ca: &PathBuf,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated();
    let mut file = client_ca;
    if let Some((lists_file, lists)) = lists {
        file = lists_file;
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    let told = |error: VerifierBuilderError| TlsError(vec![(file.clone(), error.to_string())]);
    builder.build().map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(told)
}
