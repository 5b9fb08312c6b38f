//! What the questions of the article cost on the wire: requests, bytes, and how long the target stands still.
//!
//! `cargo run --release -p kdpool --example wire_cost`
//!
//! The fake target answers at once, so its frozen time is the work of this machine; the last columns put the counted
//! requests and bytes on the lines that people have: KDNET with 0.25 ms between request and reply, an emulated UART
//! (2 ms a request, 5 us a byte) and a real line of 115200 baud (facts/kd-protocol.md section 5, facts/peer-facts.md
//! section 2).

use std::time::Duration;

use kd_fake::kernel::{FREE_STACK, FREEING_THREAD, LEAK_STACK, LEAK_TAG, LEAK_THREAD, PoolKind};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Interrupt, Target};
use kd_wire::session::{HostSession, KdnetConfig, SerialConfig};
use serde_json::Value;

const KEY: &str = "1.2.3.4";

/// Asked twice.
const LOOK_AGAIN: &str = "!verifier 0x80 fffff8a005800000";

const QUESTIONS: [&str; 5] =
    ["!poolused 4 Leak", "!poolused 4", "!poolfind Leak", LOOK_AGAIN, "!verifier 0x80 fffff8a005800000 -full"];

#[derive(Default)]
struct Text(String);

impl Output for Text {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn error(&mut self, line: &str) {
        self.0.push_str(line);
    }
}

struct Case {
    name: &'static str,
    serial: bool,
    max_data: usize,
    search: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    kd_fake::kernel::write_symbol_store(folder.path())?;
    let cases = [
        Case { name: "KDNET, 1352-byte replies", serial: false, max_data: 1352, search: true },
        Case { name: "KDNET, 1096-byte replies", serial: false, max_data: 1096, search: true },
        Case { name: "KDNET, no target-side search", serial: false, max_data: 1352, search: false },
        Case { name: "serial, 3944-byte replies", serial: true, max_data: 3944, search: true },
    ];
    for case in cases {
        println!("\n{}", case.name);
        println!(
            "{:<40}{:>9}{:>11}{:>11}{:>12}{:>12}{:>13}",
            "", "requests", "bytes read", "frozen ms", "KDNET ms", "UART ms", "115200 ms"
        );
        for question in QUESTIONS {
            // A session of its own for each, so that nothing is known from the question before.
            let costs = ask(&case, folder.path(), question)?;
            for (name, cost) in [question, "  again, after 100 new records"].into_iter().zip(&costs) {
                print_row(name, cost);
            }
        }
    }
    Ok(())
}

/// What a question costs; where it is asked twice, also what it costs after 100 more records were written to the
/// verifier's log.
fn ask(case: &Case, store: &std::path::Path, question: &str) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let transport = if case.serial {
        FakeTransport::TcpListen(([127, 0, 0, 1], 0).into())
    } else {
        FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY)
    };
    let mut options = FakeOptions::new(transport, kd_fake::kernel::article());
    options.max_data = Some(case.max_data);
    options.search_memory = case.search;
    options.offer_period = Duration::from_millis(100);
    let fake = FakeTarget::start(options)?;
    let (spec, wire) = if case.serial {
        let port = fake.address().ok_or("no address")?.port();
        (format!("com:ipport={port},port=127.0.0.1"), HostSession::serial(SerialConfig::default()))
    } else {
        let config = KdnetConfig { key: KEY.parse()?, targets: Vec::new(), seed: [7; 32] };
        (format!("net:port={port},key={KEY}"), HostSession::kdnet(config))
    };
    let link = runtime.block_on(kd_link::open(&KdSpec::parse(&spec)?))?;
    let interrupt = Interrupt::default();
    let (running, _events) = kd_target::attach(runtime.handle(), link, wire, true, interrupt.clone());
    let halted = running.wait(Some(Duration::from_secs(20))).map_err(|(_, error)| error)?;
    let source = PathSource::new(&store.display().to_string())?;
    let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
    let mut shell = Shell::new(session, Format::Json, interrupt);
    shell.set_target(Target::Halted(halted));
    let look = |shell: &mut Shell| -> Result<Value, Box<dyn std::error::Error>> {
        // The kernel's symbols and the modules that name the frames are read once per attach.
        shell.execute("lm", &mut Text::default());
        let mut out = Text::default();
        shell.execute(question, &mut out);
        let answer: Value = serde_json::from_str(out.0.trim())?;
        if answer["ok"] != true {
            return Err(format!("{question}: {}", answer["error"]).into());
        }
        Ok(answer["cost"].clone())
    };
    let mut costs = vec![look(&mut shell)?];
    if question != LOOK_AGAIN {
        return Ok(costs);
    }
    shell.execute("g", &mut Text::default());
    fake.with_kernel(|kernel| {
        for _ in 0..50 {
            let place = kernel.allocate_large(LEAK_TAG, 0x2000, PoolKind::NonPaged, &LEAK_STACK, LEAK_THREAD);
            kernel.free_large(place.unwrap_or_default(), &FREE_STACK, FREEING_THREAD);
        }
    });
    shell.execute(".break", &mut Text::default());
    costs.push(look(&mut shell)?);
    Ok(costs)
}

fn print_row(question: &str, cost: &Value) {
    let number = |name: &str| cost[name].as_u64().unwrap_or_default() as f64;
    let (requests, bytes) = (number("requests"), number("bytes_read"));
    // Request, acknowledgement, reply header and acknowledgement: 72 + 16 + 72 + 16 bytes beside the data.
    let on_the_line = requests * 176.0 + bytes;
    println!(
        "{question:<40}{requests:>9}{bytes:>11}{:>11}{:>12.1}{:>12.0}{:>13.0}",
        number("frozen_ms"),
        requests * 0.25 + bytes / 100_000.0,
        requests * 2.0 + on_the_line * 0.005,
        on_the_line / 11.52,
    );
}
