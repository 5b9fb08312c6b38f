//! Runs the article's machine alone, for other debuggers to attach to.
//!
//! ```text
//! serve net HOST:PORT KEY     offers itself to a debugger that listens there
//! serve unix PATH             serial on a Unix socket
//! serve tcp HOST:PORT         serial on a TCP port
//! serve pty                   serial on a pseudo terminal
//! serve store FOLDER          only writes the symbol store
//! ```
//! Every line on standard input prints the statistics; `print TEXT`, `reboot`, `reset` and `load` steer it. It ends with
//! its input.

use kd_fake::{FakeOptions, FakeTarget, FakeTransport, ModuleLoad, kernel};
use std::io::{self, BufRead};
use std::path::Path;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let transport = match arguments[..] {
        ["net", host, key] => FakeTransport::kdnet(host.parse().map_err(io::Error::other)?, key),
        ["tcp", address] => FakeTransport::TcpListen(address.parse().map_err(io::Error::other)?),
        #[cfg(unix)]
        ["unix", path] => FakeTransport::UnixListen(path.into()),
        #[cfg(unix)]
        ["pty"] => FakeTransport::Pty,
        ["store", folder] => {
            println!("{}", kernel::write_symbol_store(Path::new(folder))?.display());
            return Ok(());
        }
        _ => return Err(io::Error::other("serve net HOST:PORT KEY | unix PATH | tcp HOST:PORT | pty | store FOLDER")),
    };
    let target = FakeTarget::start(FakeOptions::new(transport, kernel::article()))?;
    #[cfg(unix)]
    if let Some(path) = target.path() {
        println!("{}", path.display());
    }
    if let Some(address) = target.address() {
        println!("{address}");
    }
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("print", text) => target.print(format!("{text}\n")),
            ("reboot", _) => target.reboot(),
            ("reset", _) => target.reset(),
            ("load", path) => {
                let (path, base, size) = (path.to_owned(), 0xffff_f880_0500_0000, 0x8000);
                target.load_module(ModuleLoad { path, base, size, unload: false });
            }
            _ => println!("{:#?}", target.stats()),
        }
    }
    println!("{:#?}", target.stats());
    Ok(())
}
