//! Files over HTTP and HTTPS.
//!
//! The client's calls block, so each request runs in a thread of its own, which hands over what it reads. Nobody waits
//! for that thread: a search that is cancelled goes on at once, and the thread ends at its next time limit at the latest.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Proxy, ResponseExt};

use crate::fetch::{Event, Fetch, FetchError, MAX_FILE, Observer};

/// How long a server may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To find and reach the host, with TLS.
    pub connect: Duration,
    /// Until it answers, and between any two parts of an answer.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), silence: Duration::from_secs(30) }
    }
}

/// How often a cancelled search notices.
const POLL: Duration = Duration::from_millis(50);
/// Microsoft's server sends its clients on once.
const MAX_REDIRECTS: u32 = 5;
/// A server that sends less than this in [`Patience::silence`] is as good as silent.
const LEAST: u64 = 4096;
const PART: usize = 0x10000;

/// Gets files with GET requests; through the proxy that the environment names, if any.
pub struct Http {
    /// For `http://` and for `https://`: each may have its proxy.
    plain: Agent,
    secure: Agent,
    silence: Duration,
}

impl Http {
    pub fn new(patience: Patience) -> Self {
        let agent = |proxy: Option<Proxy>| {
            // The system's certificates: companies have their own symbol servers.
            let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .tls_config(tls)
                .proxy(proxy)
                .max_redirects(MAX_REDIRECTS)
                .save_redirect_history(true)
                // Some servers answer debuggers only.
                .user_agent("Microsoft-Symbol-Server/10.0.0.0")
                .timeout_resolve(Some(patience.connect))
                .timeout_connect(Some(patience.connect))
                .timeout_recv_response(Some(patience.silence))
                .timeout_per_read(Some(patience.silence))
                .build();
            config.new_agent()
        };
        Self { plain: agent(proxy("HTTP_PROXY")), secure: agent(proxy("HTTPS_PROXY")), silence: patience.silence }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new(Patience::default())
    }
}

/// The proxy that `name` or `ALL_PROXY` names, in upper or lower case, with the exceptions of `NO_PROXY`.
fn proxy(name: &str) -> Option<Proxy> {
    let set = |name: &str| {
        let value = std::env::var(name).or_else(|_| std::env::var(name.to_ascii_lowercase())).ok()?;
        (!value.trim().is_empty()).then(|| value.trim().to_owned())
    };
    let url = set(name).or_else(|| set("ALL_PROXY"))?;
    let named = match Proxy::new(&url) {
        Ok(named) => named,
        Err(error) => {
            tracing::warn!(%error, "the environment's proxy for symbol servers is not usable");
            return None;
        }
    };
    let Some(exceptions) = set("NO_PROXY") else { return Some(named) };
    let mut builder = Proxy::builder(named.protocol()).host(named.host()).port(named.port());
    if let Some(name) = named.username() {
        builder = builder.username(name);
    }
    if let Some(password) = named.password() {
        builder = builder.password(password);
    }
    exceptions.split(',').map(str::trim).fold(builder, |builder, host| builder.no_proxy(host)).build().ok()
}

enum Part {
    /// How many bytes will come, if the server said so.
    Length(Option<u64>),
    Bytes(Vec<u8>),
    End(Result<(), FetchError>),
}

impl Fetch for Http {
    fn fetch(&self, url: &str, observer: &dyn Observer, sink: &mut dyn Write) -> Result<(), FetchError> {
        let secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        let agent = if secure { self.secure.clone() } else { self.plain.clone() };
        let (sender, parts) = sync_channel(4);
        let owned = url.to_owned();
        std::thread::Builder::new()
            .name("symbol download".into())
            .spawn(move || {
                let end = get(&agent, &owned, &sender);
                // With nobody listening the search was cancelled.
                let _ = sender.send(Part::End(end));
            })
            .map_err(|error| FetchError::Broken(format!("no thread for the download: {error}")))?;
        self.receive(url, &parts, observer, sink)
    }
}

impl Http {
    fn receive(
        &self,
        url: &str,
        parts: &Receiver<Part>,
        observer: &dyn Observer,
        sink: &mut dyn Write,
    ) -> Result<(), FetchError> {
        let (mut bytes, mut of) = (0, None);
        let (mut told, mut rate_checked, mut rate_bytes) = (Instant::now(), Instant::now(), 0);
        loop {
            if observer.cancelled() {
                return Err(FetchError::Cancelled);
            }
            if told.elapsed() >= POLL {
                observer.event(Event::Receiving { url, bytes, of });
                told = Instant::now();
            }
            match parts.recv_timeout(POLL) {
                Ok(Part::Length(length)) => {
                    of = length;
                    (rate_checked, rate_bytes) = (Instant::now(), bytes);
                    if let Some(length) = length.filter(|length| *length > MAX_FILE) {
                        return Err(FetchError::TooLarge(length));
                    }
                }
                Ok(Part::Bytes(part)) => {
                    bytes += part.len() as u64;
                    if bytes > MAX_FILE {
                        return Err(FetchError::TooLarge(bytes));
                    }
                    sink.write_all(&part).map_err(FetchError::Write)?;
                    if rate_checked.elapsed() >= self.silence {
                        if bytes - rate_bytes < LEAST {
                            let seconds = self.silence.as_secs();
                            return Err(FetchError::Unreachable(format!(
                                "the server is too slow: less than {LEAST} bytes in {seconds} s"
                            )));
                        }
                        (rate_checked, rate_bytes) = (Instant::now(), bytes);
                    }
                }
                Ok(Part::End(Ok(()))) => {
                    return match of {
                        Some(length) if length != bytes => {
                            Err(FetchError::Broken(format!("{bytes} bytes came instead of {length}")))
                        }
                        _ => Ok(()),
                    };
                }
                Ok(Part::End(Err(error))) => return Err(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(FetchError::Broken("the download's thread ended".into()));
                }
            }
        }
    }
}

fn get(agent: &Agent, url: &str, parts: &SyncSender<Part>) -> Result<(), FetchError> {
    let response = agent.get(url).call().map_err(failure)?;
    let secure = |uri: &ureq::http::Uri| uri.scheme_str() == Some("https");
    let way = response.get_redirect_history().unwrap_or_default();
    if way.first().is_some_and(secure) && !way.iter().all(secure) {
        return Err(FetchError::Broken("the server redirects from https to http".into()));
    }
    match response.status().as_u16() {
        200 => {}
        404 | 410 => return Err(FetchError::NotFound),
        status => return Err(FetchError::Status(status)),
    }
    let mut body = response.into_body();
    if parts.send(Part::Length(body.content_length())).is_err() {
        return Err(FetchError::Cancelled);
    }
    let mut body = body.as_reader();
    loop {
        let mut part = vec![0; PART];
        let read = match body.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) => return Err(failure(ureq::Error::from(error))),
        };
        part.truncate(read);
        if parts.send(Part::Bytes(part)).is_err() {
            return Err(FetchError::Cancelled);
        }
    }
}

/// Whether a failure says something of the host or of this one answer.
fn failure(error: ureq::Error) -> FetchError {
    use std::io::ErrorKind;
    let mut text = error.to_string();
    if text.contains("invalid peer certificate") {
        text.push_str("; an authority of your own belongs into the system's certificates");
        if cfg!(target_os = "linux") {
            text.push_str(", or into a PEM file that SSL_CERT_FILE names");
        }
    }
    match error {
        ureq::Error::Timeout(_) => FetchError::Unreachable(format!("no answer in time ({text})")),
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::ConnectProxyFailed(_) => FetchError::Unreachable(text),
        ureq::Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
            | ErrorKind::PermissionDenied
            | ErrorKind::TimedOut
            // TLS says so of certificates that it does not accept.
            | ErrorKind::InvalidData => FetchError::Unreachable(text),
            _ => FetchError::Broken(text),
        },
        _ => FetchError::Broken(text),
    }
}
