//! The binary and symbol servers that need more than a socket: TLS with a certificate of one's own, and proxies. All of
//! them are threads of the test, on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A name that only a proxy knows.
const NAME: &str = "symbols.invalid";

/// The demo's PDB by its path on a server.
static FILES: LazyLock<HashMap<String, Vec<u8>>> = LazyLock::new(|| {
    let store = tempfile::tempdir().unwrap();
    let pdb = kd_fake::kernel::write_symbol_store(store.path()).unwrap();
    let place = pdb.strip_prefix(store.path()).unwrap().to_str().unwrap().replace('\\', "/");
    HashMap::from([(format!("/sym/{place}"), std::fs::read(pdb).unwrap())])
});

/// Serves `each` connection in a thread.
fn listen(each: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let each = Arc::new(each);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            std::thread::spawn(move || each(stream));
        }
    });
    address
}

/// The first line of a request; `None` at the end.
fn request(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut first = String::new();
    if stream.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    Ok(Some(first.trim_end().to_owned()))
}

/// Answers requests for files until the client goes.
fn serve(stream: impl Read + Write) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = request(&mut stream)? {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let path = path.strip_prefix(&format!("http://{NAME}")).unwrap_or(path);
        let (status, body) = FILES.get(path).map_or((404, &[][..]), |file| (200, file));
        let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().write_all(body)?;
        stream.get_mut().flush()?;
    }
    Ok(())
}

fn plain_server() -> SocketAddr {
    listen(serve)
}

/// A server with TLS, and the certificate of the authority that vouches for it.
fn secure_server() -> (SocketAddr, String) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let names = CertificateParams::new(vec!["127.0.0.1".into(), NAME.into()]).unwrap();
    let certificate = names.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    let config = Arc::new(config);
    let address = listen(move |stream| {
        let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        serve(StreamOwned::new(connection, stream))
    });
    (address, pem)
}

/// A proxy that leads everything to `server`, and what it was asked.
fn proxy(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = asked.clone();
    let address = listen(move |stream| {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        log.lock().unwrap().push(first.trim_end().to_owned());
        let mut far = TcpStream::connect(server)?;
        if first.starts_with("CONNECT ") {
            request(&mut reader)?;
            (&stream).write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        } else {
            far.write_all(first.as_bytes())?;
        }
        let (mut back, mut near) = (far.try_clone()?, stream);
        std::thread::spawn(move || io::copy(&mut back, &mut near));
        io::copy(&mut reader, &mut far)?;
        Ok(())
    });
    (address, asked)
}

struct Run {
    cache: tempfile::TempDir,
    output: Output,
}

impl Run {
    /// Asks a symbol whose file only the server has.
    fn new(url: &str, variables: &[(&str, &str)]) -> Run {
        let cache = tempfile::tempdir().unwrap();
        let path = format!("srv*{}*{url}/sym", cache.path().display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
        let proxies = ["_NT_SYMBOL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
        for name in proxies.into_iter().chain(["SSL_CERT_FILE", "SSL_CERT_DIR", "RUST_LOG"]) {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.envs(variables.iter().copied());
        let output = command
            .args(["demo", "-y", &path, "-c", "x nt!PoolBigPageTable; ? nt!PoolBigPageTable; q"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Run { cache, output }
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn assert_found(&self) {
        assert_eq!(self.output.status.code(), Some(0), "{}", self.errors());
        let text = String::from_utf8_lossy(&self.output.stdout);
        assert!(text.contains(" nt!PoolBigPageTable (<no parameter info>)\n"), "{text}");
        let place = FILES.keys().next().unwrap().trim_start_matches("/sym/");
        assert!(self.cache.path().join(place).is_file());
    }

    fn assert_missing(&self, why: &str) {
        assert_eq!(self.output.status.code(), Some(1));
        assert!(self.errors().contains(why), "{}", self.errors());
        let kept: Vec<PathBuf> = self.cache.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(kept.is_empty(), "{kept:?}");
    }
}

/// The system's certificates count; `SSL_CERT_FILE` names others.
#[test]
#[cfg(target_os = "linux")]
fn a_server_with_a_certificate_of_ones_own() {
    let (server, pem) = secure_server();
    let url = format!("https://{server}");
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, pem).unwrap();
    Run::new(&url, &[("SSL_CERT_FILE", authority.to_str().unwrap())]).assert_found();
    let unknown = Run::new(&url, &[]);
    unknown.assert_missing("invalid peer certificate: UnknownIssuer");
    assert!(unknown.errors().contains("SSL_CERT_FILE"), "what to do: {}", unknown.errors());
}

#[test]
fn http_goes_through_the_proxy_of_the_environment() {
    let server = plain_server();
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let (address, asked) = proxy(server);
        Run::new(&format!("http://{NAME}"), &[(variable, &format!("http://{address}"))]).assert_found();
        let asked = asked.lock().unwrap();
        assert!(asked.len() == 1 && asked[0].contains(NAME), "{variable}: {asked:?}");
    }
    // Not for the hosts that NO_PROXY names.
    let (address, asked) = proxy(server);
    let variables = [("HTTP_PROXY", &*format!("http://{address}")), ("NO_PROXY", "example.com, 127.0.0.1")];
    Run::new(&format!("http://{server}"), &variables).assert_found();
    assert!(asked.lock().unwrap().is_empty());
    // The proxy for HTTPS is another one.
    let run = Run::new(&format!("http://{NAME}"), &[("HTTPS_PROXY", &format!("http://{address}"))]);
    run.assert_missing(NAME);
    assert!(asked.lock().unwrap().is_empty());
}

#[test]
#[cfg(target_os = "linux")]
fn https_goes_through_the_proxy_of_the_environment() {
    let (server, pem) = secure_server();
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, pem).unwrap();
    let (address, asked) = proxy(server);
    let variables = [("HTTPS_PROXY", &*format!("http://{address}")), ("SSL_CERT_FILE", authority.to_str().unwrap())];
    Run::new(&format!("https://{NAME}"), &variables).assert_found();
    assert_eq!(*asked.lock().unwrap(), [format!("CONNECT {NAME}:443 HTTP/1.1")]);
}

/// A proxy that is not there is told, and nothing is asked twice.
#[test]
fn a_proxy_that_does_not_answer_is_said() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = Run::new(&format!("http://{NAME}"), &[("HTTP_PROXY", &format!("http://{gone}"))]);
    run.assert_missing("efused");
    let named = format!("the proxy {gone} (HTTP_PROXY): ");
    assert!(run.errors().contains(&named), "{named}: {}", run.errors());
}

/// What Windows' debuggers go through, with and without a scheme; it goes before the others.
#[test]
fn the_symbol_proxy_of_windows_debuggers() {
    let server = plain_server();
    for scheme in ["", "http://"] {
        let (address, asked) = proxy(server);
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let variables =
            [("_NT_SYMBOL_PROXY", &*format!("{scheme}{address}")), ("HTTP_PROXY", &format!("http://{gone}"))];
        Run::new(&format!("http://{NAME}"), &variables).assert_found();
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
    // Its name and password stay out of what is said.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = Run::new(&format!("http://{NAME}"), &[("_NT_SYMBOL_PROXY", &format!("http://me:sesame@{gone}"))]);
    run.assert_missing(&format!("the proxy {gone} (_NT_SYMBOL_PROXY): "));
    assert!(!run.errors().contains("sesame"), "{}", run.errors());
}

/// The server is not blamed for what a proxy says.
#[test]
fn a_proxy_that_refuses_is_named() {
    for status in ["407 Who", "502 Bad Gateway"] {
        let address = listen(move |stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            while request(&mut reader)?.is_some() {
                (&stream).write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
            }
            Ok(())
        });
        let run = Run::new(&format!("http://{NAME}"), &[("_NT_SYMBOL_PROXY", &address.to_string())]);
        let why = format!("proxy server responded {}", &status[..3]);
        run.assert_missing(&format!("the proxy {address} (_NT_SYMBOL_PROXY): "));
        assert!(run.errors().contains(&why), "{why}: {}", run.errors());
        let run = Run::new(&format!("https://{NAME}"), &[("HTTPS_PROXY", &format!("http://{address}"))]);
        run.assert_missing(&format!("the proxy {address} (HTTPS_PROXY)"));
    }
    let run = Run::new(&format!("http://{NAME}"), &[("_NT_SYMBOL_PROXY", "what is this")]);
    assert!(run.errors().contains("_NT_SYMBOL_PROXY names no proxy that can be used"), "{}", run.errors());
}
