//! TLS: handshakes of clients, and the certificate that they are shown.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificate::{CertificateFiles, Pem};
use crate::listener::SetupError;
use crate::metrics::Handshake;
use crate::service::Isolate;
use crate::socket::{Socket, Stream};

/// Handshakes at one time. Each may take some tens of kilobytes.
const HANDSHAKES_MAX: usize = 512;
/// The first byte of a record of the handshake (RFC 8446, 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Looked at before a handshake begins.
const START_BYTES: usize = 64;
/// Read of one who speaks HTTP, so that it is not reset before it has its answer.
const LINGER_BYTES: u64 = 64 << 10;

const NOT_TLS: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Cache-Control: no-store\r\nConnection: close\r\nContent-Length: 56\r\n\r\n\
    400 Bad Request: TLS is spoken here: ask by https://...\n";

/// The stream of a client after its handshake.
pub(crate) type Secured = TlsStream<Socket<Stream>>;

/// A server's side of TLS.
#[derive(Debug)]
pub struct Tls {
    files: Arc<CertificateFiles>,
    isolate: Isolate,
    config: RwLock<Arc<ServerConfig>>,
    places: Places,
}

impl Tls {
    /// With the certificate that is in `files` now. What is isolated says which protocols are offered (ALPN).
    ///
    /// # Errors
    /// [`SetupError`] for files that are no certificate and its key.
    pub fn new(files: Arc<CertificateFiles>, isolate: Isolate) -> Result<Self, SetupError> {
        let config = config(&files, isolate)?;
        Ok(Self {
            files,
            isolate,
            config: RwLock::new(config),
            places: Places::default(),
        })
    }

    /// Reads the files again, for handshakes from here on. The certificate before stays if they cannot be used. Blocks.
    pub(crate) fn read_again(&self) -> Result<(), SetupError> {
        let config = config(&self.files, self.isolate)?;
        *(self.config.write()).unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// The client's handshake, without a limit on its time.
    pub(crate) async fn accept(&self, mut socket: Socket<Stream>) -> Result<Secured, Handshake> {
        // One who says nothing takes no place.
        if socket.ahead().is_empty() && !matches!(socket.look(START_BYTES).await, Ok(1..)) {
            return Err(Handshake::Failed);
        }
        match socket.ahead().first() {
            Some(&HANDSHAKE_RECORD) => {}
            Some(byte) if byte.is_ascii_uppercase() => {
                // It may be gone already.
                let _ = refuse_http(&mut socket).await;
                return Err(Handshake::NotTls);
            }
            _ => return Err(Handshake::NotTls),
        }
        let mut place = self.places.take();
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        tokio::select! {
            biased;
            accepted = TlsAcceptor::from(config).accept(socket) => {
                accepted.map_err(|_| Handshake::Failed)
            }
            _ = &mut place.given_up => Err(Handshake::Displaced),
        }
    }
}

/// Handshakes that are under way. With one too many the oldest gives way: those who mean it are done long before they
/// are that, and those who do not hold nobody else up.
#[derive(Debug, Default)]
struct Places {
    next: AtomicU64,
    taken: Mutex<VecDeque<(u64, oneshot::Sender<()>)>>,
}

#[derive(Debug)]
struct Place<'a> {
    places: &'a Places,
    number: u64,
    /// Comes when another has taken it.
    given_up: oneshot::Receiver<()>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, oneshot::Sender<()>)>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Place<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, given_up) = oneshot::channel();
        let mut taken = self.lock();
        if taken.len() >= HANDSHAKES_MAX {
            taken.pop_front();
        }
        taken.push_back((number, tell));
        Place {
            places: self,
            number,
            given_up,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places
            .lock()
            .retain(|(number, _)| *number != self.number);
    }
}

/// A person may have typed http:// for https://.
async fn refuse_http(socket: &mut Socket<Stream>) -> std::io::Result<()> {
    socket.write_all(NOT_TLS.as_bytes()).await?;
    socket.shutdown().await?;
    let mut rest = socket.take(LINGER_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

fn config(files: &CertificateFiles, isolate: Isolate) -> Result<Arc<ServerConfig>, SetupError> {
    let provider = Arc::new(default_provider());
    let key = certified(files, &files.read()?, &provider)?;
    let fault = |error: rustls::Error| SetupError {
        message: format!("TLS: {error}"),
        remedy: "this is a fault in kvmlet, please report it",
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(fault)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    if isolate != Isolate::Connection {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    // Sessions are kept by clients: none costs memory here, and none outlives the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new().map_err(fault)?;
    Ok(Arc::new(config))
}

fn certified(
    files: &CertificateFiles,
    pem: &Pem,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, SetupError> {
    let wrong = |what: &str, path: &Path, why: &str, remedy| SetupError {
        message: format!("the {what} {}: {why}", path.display()),
        remedy,
    };
    let bad_certificate = |why: &str| {
        let remedy = "name a file with the certificate and those above it, in PEM";
        wrong("certificate", files.certificate(), why, remedy)
    };
    let bad_key = |why: &str, remedy| wrong("key", files.key(), why, remedy);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem.certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| bad_certificate("it is no proper PEM"))?;
    if chain.is_empty() {
        return Err(bad_certificate("there is no certificate in it"));
    }
    if is_encrypted(&pem.key) {
        let remedy = "decrypt it: openssl pkey -in KEY -out FILE, in a directory of your own";
        return Err(bad_key("it is encrypted", remedy));
    }
    let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => bad_key(
            "there is no key in it",
            "name the file with the key, in PEM",
        ),
        _ => bad_key("it is no proper PEM", "name the file with the key, in PEM"),
    })?;
    let known = "take RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519";
    let key = (provider.key_provider.load_private_key(key))
        .map_err(|_| bad_key("it is of no kind that is known here", known))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(bad_key(
            &format!(
                "it is not that of the certificate {}",
                files.certificate().display()
            ),
            "name the key that the certificate was made for; that certificate stands first in its file",
        )),
        Err(_) => Err(bad_certificate("it cannot be read")),
    }
}

/// As PKCS#8 or OpenSSL's older form says.
fn is_encrypted(pem: &[u8]) -> bool {
    let signs = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
    signs
        .iter()
        .any(|sign| pem.windows(sign.len()).any(|part| part == sign.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_handshake_gives_way_to_one_too_many() {
        let places = Places::default();
        let mut taken: Vec<Place<'_>> = (0..HANDSHAKES_MAX).map(|_| places.take()).collect();
        let is_given_up = |place: &mut Place<'_>| {
            place.given_up.try_recv() == Err(oneshot::error::TryRecvError::Closed)
        };
        assert!(!taken.iter_mut().any(is_given_up));
        drop(taken.remove(7));
        taken.push(places.take());
        assert!(!taken.iter_mut().any(is_given_up));
        taken.push(places.take());
        assert!(is_given_up(&mut taken[0]));
        assert!(!taken[1..].iter_mut().any(is_given_up));
        drop(taken);
        assert!(places.lock().is_empty());
    }

    #[test]
    fn the_answer_to_one_who_speaks_http_has_its_length() {
        let (head, body) = NOT_TLS.split_once("\r\n\r\n").unwrap();
        assert!(
            head.ends_with(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
    }

    #[test]
    fn files_that_are_no_certificate_and_key_are_told_apart() {
        let files = CertificateFiles::new("c.pem".into(), "k.pem".into());
        let provider = default_provider();
        let begun = "-----BEGIN CERTIFICATE-----\n";
        let certificate = format!("{begun}MAA=\n-----END CERTIFICATE-----\n");
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n";
        let strange = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        for (certificate, key, said) in [
            ("", "", "c.pem: there is no certificate in it"),
            ("\0\u{1}garbage", "", "c.pem: there is no certificate in it"),
            (begun, "", "c.pem: it is no proper PEM"),
            (certificate.as_str(), "", "k.pem: there is no key in it"),
            (&certificate, &certificate, "k.pem: there is no key in it"),
            (&certificate, encrypted, "k.pem: it is encrypted"),
            (&certificate, old, "k.pem: it is encrypted"),
            (
                &certificate,
                "-----BEGIN PRIVATE KEY-----\n",
                "k.pem: it is no proper PEM",
            ),
            (
                &certificate,
                strange,
                "k.pem: it is of no kind that is known here",
            ),
        ] {
            let pem = Pem {
                certificate: certificate.into(),
                key: key.into(),
            };
            let error = certified(&files, &pem, &provider).err().unwrap();
            assert!(error.message.ends_with(said), "{error}");
        }
    }
}
