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

/// Gets files with GET requests; through the proxy that the environment names, if any: `_NT_SYMBOL_PROXY`, which is for
/// symbol servers alone, else `HTTP_PROXY` or `HTTPS_PROXY`, else `ALL_PROXY`. A file that comes packed by gzip is
/// unpacked.
pub struct Http {
    /// For `http://` and for `https://`: each may have its proxy.
    plain: Route,
    secure: Route,
    silence: Duration,
}

/// A client, and the proxy that it goes through.
#[derive(Clone)]
struct Route {
    agent: Agent,
    named: Option<Named>,
}

/// A proxy, and the variable that named it.
#[derive(Clone)]
struct Named {
    proxy: Proxy,
    variable: String,
}

impl Named {
    /// For people. Its password stays out.
    fn shown(&self) -> String {
        format!("the proxy {}:{} ({})", self.proxy.host(), self.proxy.port(), self.variable)
    }
}

impl Http {
    /// Waits for servers as long as `patience` says.
    pub fn new(patience: Patience) -> Self {
        let route = |named: Option<Named>| {
            // The system's certificates: companies have their own symbol servers.
            let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .tls_config(tls)
                .proxy(named.as_ref().map(|named| named.proxy.clone()))
                .max_redirects(MAX_REDIRECTS)
                .save_redirect_history(true)
                // Some servers answer debuggers only.
                .user_agent("Microsoft-Symbol-Server/10.0.0.0")
                .timeout_resolve(Some(patience.connect))
                .timeout_connect(Some(patience.connect))
                .timeout_recv_response(Some(patience.silence))
                .timeout_per_read(Some(patience.silence))
                .build();
            Route { agent: config.new_agent(), named }
        };
        let usable = |scheme| proxy(scheme).ok().flatten();
        Self { plain: route(usable("HTTP_PROXY")), secure: route(usable("HTTPS_PROXY")), silence: patience.silence }
    }

    /// What the environment says of proxies and is of no use; a line each.
    pub fn refused_proxies() -> Vec<String> {
        let mut lines: Vec<String> =
            ["HTTP_PROXY", "HTTPS_PROXY"].into_iter().filter_map(|name| proxy(name).err()).collect();
        lines.dedup();
        lines
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new(Patience::default())
    }
}

/// The symbol proxy of Windows' debuggers, else the one that `name` or `ALL_PROXY` names, in upper or lower case, with
/// the exceptions of `NO_PROXY`.
fn proxy(name: &str) -> Result<Option<Named>, String> {
    let set = |name: &str| {
        [name.to_owned(), name.to_ascii_lowercase()].into_iter().find_map(|variable| {
            let value = std::env::var(&variable).ok()?;
            (!value.trim().is_empty()).then(|| (variable, value.trim().to_owned()))
        })
    };
    let Some((variable, value)) = [SYMBOL_PROXY, name, "ALL_PROXY"].into_iter().find_map(set) else { return Ok(None) };
    // Windows' debuggers take it without a scheme: proxy:80.
    let url = if value.contains("://") { value } else { format!("http://{value}") };
    let bad = |error: ureq::Error| format!("{variable} names no proxy that can be used, as in host:8080: {error}");
    let proxy = Proxy::new(&url).map_err(bad)?;
    let Some((_, exceptions)) = set("NO_PROXY") else { return Ok(Some(Named { proxy, variable })) };
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(name) = proxy.username() {
        builder = builder.username(name);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    let builder = exceptions.split(',').map(str::trim).fold(builder, |builder, host| builder.no_proxy(host));
    let proxy = builder.build().map_err(bad)?;
    Ok(Some(Named { proxy, variable }))
}

/// `host:port`, for symbol servers alone.
const SYMBOL_PROXY: &str = "_NT_SYMBOL_PROXY";

enum Part {
    /// How many bytes will come, if the server said so.
    Length(Option<u64>),
    Bytes(Vec<u8>),
    End(Result<(), FetchError>),
}

impl Fetch for Http {
    fn fetch(&self, url: &str, observer: &dyn Observer, sink: &mut dyn Write) -> Result<(), FetchError> {
        let secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        let route = if secure { self.secure.clone() } else { self.plain.clone() };
        let (sender, parts) = sync_channel(4);
        let owned = url.to_owned();
        std::thread::Builder::new()
            .name("symbol download".into())
            .spawn(move || {
                let end = get(&route, &owned, &sender);
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

fn get(route: &Route, url: &str, parts: &SyncSender<Part>) -> Result<(), FetchError> {
    let through = route.named.as_ref().filter(|named| url.parse().is_ok_and(|uri| !named.proxy.is_no_proxy(&uri)));
    let failed = |error| failure(error, through);
    let response = route.agent.get(url).call().map_err(failed)?;
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
    if let Some(packed) = response.headers().get("content-encoding").and_then(|value| value.to_str().ok())
        && !matches!(packed, "identity" | "gzip" | "")
    {
        let why = format!("it comes packed as '{}', which was not asked for", packed.escape_debug());
        return Err(FetchError::Broken(why));
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
            Err(error) => return Err(failed(ureq::Error::from(error))),
        };
        part.truncate(read);
        if parts.send(Part::Bytes(part)).is_err() {
            return Err(FetchError::Cancelled);
        }
    }
}

/// Whether a failure says something of the host or of this one answer.
fn failure(error: ureq::Error, through: Option<&Named>) -> FetchError {
    use std::io::ErrorKind;
    let mut text = error.to_string();
    if let Some(named) = through {
        text = format!("{}: {text}", named.shown());
    }
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
