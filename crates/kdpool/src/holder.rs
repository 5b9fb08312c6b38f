//! Which kdpool holds a target: a lock on a file, for as long as the process lives, however it ends.
//!
//! Two debuggers at one target take each other's answers. A UDP port and a serial device are the system's to give out; a
//! VM's socket takes a second caller and leaves it waiting without a word.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use kd_link::KdSpec;

/// The lock; dropping it lets the target go to the next.
pub(crate) struct Hold {
    _file: File,
}

/// Who has the target of `spec`, if that is another kdpool of this user. `Ok(None)`: it cannot be told, for want of a
/// place for the file.
pub(crate) fn take(spec: &KdSpec) -> Result<Option<Hold>, String> {
    match kd_shell::state_folder() {
        Some(directory) => take_in(&directory, spec),
        None => Ok(None),
    }
}

fn take_in(directory: &Path, spec: &KdSpec) -> Result<Option<Hold>, String> {
    let (what, name) = match spec {
        KdSpec::Net(net) => (format!("UDP port {}", net.port), format!("net-{}", net.port)),
        KdSpec::Serial(serial) => (serial.port.clone(), one_name(&serial.port)),
        KdSpec::Pipe(pipe) => (pipe.port.clone(), one_name(&pipe.port)),
        KdSpec::Tcp(tcp) => {
            let host = if tcp.host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { &tcp.host };
            (format!("TCP {}:{}", tcp.host, tcp.port), format!("tcp-{host}-{}", tcp.port))
        }
    };
    let name: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let open = || {
        kd_shell::create_private_folder(directory)?;
        kd_shell::open_private_as_it_is(&directory.join(format!("holds-{name}.lock")))
    };
    // A place that cannot be written is no reason not to attach.
    let Ok(mut file) = open() else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // What cannot be read is left out of the line.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.lines().next().unwrap_or_default();
            return Err(format!("{what} is held by another kdpool{holder}: quit that one (q) first"));
        }
        Err(TryLockError::Error(_)) => return Ok(None),
    }
    let line = format!(" (process {}, since {})\n", std::process::id(), jiff::Zoned::now().strftime("%F %T"));
    // Without it the second one is told less.
    let _ = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| file.write_all(line.as_bytes()));
    Ok(Some(Hold { _file: file }))
}

/// The same for every spelling of a path, and for links to it. A pipe of Windows is named in one way, and is not looked
/// at: looking takes the one connection that a hypervisor offers on it.
fn one_name(port: &str) -> String {
    if port.starts_with(r"\\") {
        return port.to_ascii_lowercase();
    }
    fs::canonicalize(port).map_or_else(|_| port.to_owned(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let place = tempfile::tempdir().unwrap();
        let spec = |text: &str| KdSpec::parse(text).unwrap();
        let pipe = spec("com:pipe,port=/tmp/a vm.sock");
        let first = take_in(place.path(), &pipe).unwrap().unwrap();
        let told = take_in(place.path(), &pipe).err().unwrap();
        assert!(told.contains("/tmp/a vm.sock") && told.contains(&std::process::id().to_string()), "{told}");
        let other = take_in(place.path(), &spec("net:port=50000,key=1.2.3.4")).unwrap();
        assert!(other.is_some());
        drop(first);
        assert!(take_in(place.path(), &pipe).unwrap().is_some());
        // Under another name.
        let socket = place.path().join("vm.sock");
        std::fs::write(&socket, "").unwrap();
        let by = |path: std::path::PathBuf| spec(&format!("com:pipe,port={}", path.display()));
        let _first = take_in(place.path(), &by(socket)).unwrap().unwrap();
        assert!(take_in(place.path(), &by(place.path().join(".").join("vm.sock"))).is_err());
        let _first = take_in(place.path(), &spec("com:ipport=4555,port=127.0.0.1")).unwrap().unwrap();
        assert!(take_in(place.path(), &spec("com:ipport=4555,port=localhost")).is_err());
        // Nowhere to write.
        assert!(take_in(Path::new("/dev/null/x"), &pipe).unwrap().is_none());
    }
}
