//! What the questions of the article cost on the wire: requests, bytes, and how long the target stands still.
//!
//! `cargo bench -p kdpool --bench wire_cost`
//!
//! The fake target answers at once, so its frozen time is the work of this machine; the last columns put the counted
//! requests and bytes on the lines that people have: KDNET with 0.25 ms between request and reply, an emulated UART
//! (2 ms a request, 5 us a byte) and a real line of 115200 baud (facts/kd-protocol.md section 5, facts/peer-facts.md
//! section 2).

use std::time::Duration;

use kd_fake::isf::Isf;
use kd_fake::kernel::{
    FREE_STACK, FREEING_THREAD, Kernel, LEAK_BYTES, LEAK_STACK, LEAK_TAG, LEAK_THREAD, PoolKind, SeededOptions, seeded,
    seeded_identity,
};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Attach, Interrupt, Target};
use serde_json::Value;

const KEY: &str = "1.2.3.4";

/// Asked twice.
const LOOK_AGAIN: &str = "!verifier 0x80 fffff8a005800000";

const QUESTIONS: [&str; 7] = [
    "!poolused 4 Leak",
    "!poolused 4",
    "!poolfind Leak",
    "!poolfind Leak -small",
    "!poolfind Leak -small -bulk",
    LOOK_AGAIN,
    "!verifier 0x80 fffff8a005800000 -full",
];

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
    for case in &cases {
        println!("\n{}", case.name);
        println!(
            "{:<40}{:>9}{:>11}{:>11}{:>12}{:>12}{:>13}",
            "", "requests", "bytes read", "frozen ms", "KDNET ms", "UART ms", "115200 ms"
        );
        for question in QUESTIONS {
            // A session of its own for each, so that nothing is known from the question before.
            let costs = ask(case, folder.path(), question)?;
            for (name, cost) in [question, "  again, after 100 new records"].into_iter().zip(&costs) {
                print_row(name, cost);
            }
        }
        hunt(case, folder.path())?;
    }
    by_kernel(&cases[0])
}

/// The check after 100 records, and a watch's stop, on every kernel of ../shared/isf.
fn by_kernel(case: &Case) -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KDPOOL_SHARED").map_or_else(|| root.join("../../../shared"), Into::into);
    let Ok(tables) = std::fs::read_dir(shared.join("isf")) else {
        println!("\nOther kernels are skipped: {} is not there", shared.display());
        return Ok(());
    };
    println!("\n{}, kernel by kernel: 23 blocks, 65,536 records, 100 new ones, 6 of them new blocks", case.name);
    let mut tables: Vec<_> = tables.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    tables.retain(|path| path.extension().is_some_and(|xz| xz == "xz"));
    tables.sort();
    for table in tables {
        let mut isf = Isf::from_xz(&std::fs::read(table)?)?;
        isf.identity = seeded_identity(&isf, 5);
        let options = SeededOptions { log_length: 0x10000, small_operations: 500, ..SeededOptions::default() };
        let (mut kernel, truth) = seeded(&isf, 5, &options)?;
        let log = kernel.pool_log();
        let mut stacks = log.iter().filter(|record| !record.free).map(|record| record.frames.clone());
        let leak = stacks.next().ok_or("an empty log")?;
        let other = stacks.find(|stack| stack.get(2) != leak.get(2)).ok_or("one stack")?;
        for _ in 0..23 {
            kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &leak, LEAK_THREAD);
        }
        let folder = tempfile::tempdir()?;
        kd_fake::kernel::write_pdb(folder.path(), &isf)?;
        let mut lab = Lab::with(case, kernel, folder.path())?;
        let file = tempfile::NamedTempFile::new()?;
        lab.ask(&format!("!leak mark m Leak -file {}", file.path().display()))?;
        lab.ask("g")?;
        lab.fake.with_kernel(|kernel| {
            for _ in 0..47 {
                let place = kernel.allocate_large(0x4270_6354, 0x3000, PoolKind::NonPaged, &other, LEAK_THREAD);
                kernel.free_large(place.unwrap_or_default(), &[], FREEING_THREAD);
            }
            for _ in 0..6 {
                kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &leak, LEAK_THREAD);
            }
        });
        lab.ask(".break")?;
        let name = format!("{} ({} processors)", truth.build, truth.processors);
        print_row(&format!("{name}: !leak check"), &lab.ask("!leak check m")?["cost"]);
        let watched = lab.ask("!leak watch Leak -every 100ms -times 1")?;
        print_row("  a stop of !leak watch", &watched["result"]["checks"][0]);
    }
    Ok(())
}

/// A session on a fake target of its own.
struct Lab {
    fake: FakeTarget,
    shell: Shell,
    // The session's task runs here; it ends after the shell has let the target go.
    _runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new(case: &Case, store: &std::path::Path) -> Result<Lab, Box<dyn std::error::Error>> {
        Lab::with(case, kd_fake::kernel::article(), store)
    }

    fn with(case: &Case, kernel: Kernel, store: &std::path::Path) -> Result<Lab, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Runtime::new()?;
        let port = kd_fake::free_port()?;
        let transport = if case.serial {
            FakeTransport::TcpListen(([127, 0, 0, 1], 0).into())
        } else {
            FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY)
        };
        let mut options = FakeOptions::new(transport, kernel);
        options.max_data = Some(case.max_data);
        options.search_memory = case.search;
        options.offer_period = Duration::from_millis(100);
        let fake = FakeTarget::start(options)?;
        let spec = if case.serial {
            let port = fake.address().ok_or("no address")?.port();
            format!("com:ipport={port},port=127.0.0.1")
        } else {
            format!("net:port={port},key={KEY}")
        };
        let interrupt = Interrupt::default();
        let attach = Attach::to(KdSpec::parse(&spec)?).on(runtime.handle()).break_in(true).interrupt(interrupt.clone());
        let (running, _events) = attach.start()?;
        let halted = running.wait(Some(Duration::from_secs(20))).map_err(|(_, error)| error)?;
        let source = PathSource::new(&store.display().to_string())?;
        let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
        let mut shell = Shell::new(session, Format::Json, interrupt);
        shell.set_target(Target::Halted(halted));
        // The kernel's symbols and the modules that name the frames are read once per attach.
        shell.execute("lm", &mut Text::default());
        Ok(Lab { fake, shell, _runtime: runtime })
    }

    /// The answer to one command.
    fn ask(&mut self, question: &str) -> Result<Value, Box<dyn std::error::Error>> {
        let mut out = Text::default();
        self.shell.execute(question, &mut out);
        let answer: Value = serde_json::from_str(out.0.trim())?;
        match answer["ok"] == true {
            true => Ok(answer),
            false => Err(format!("{question}: {}", answer["error"]).into()),
        }
    }
}

/// What a question costs; where it is asked twice, also what it costs after 100 more records were written to the
/// verifier's log.
fn ask(case: &Case, store: &std::path::Path, question: &str) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let mut lab = Lab::new(case, store)?;
    let mut costs = vec![lab.ask(question)?["cost"].clone()];
    if question != LOOK_AGAIN {
        return Ok(costs);
    }
    lab.ask("g")?;
    lab.fake.with_kernel(|kernel| {
        for _ in 0..50 {
            let place = kernel.allocate_large(LEAK_TAG, 0x2000, PoolKind::NonPaged, &LEAK_STACK, LEAK_THREAD);
            kernel.free_large(place.unwrap_or_default(), &FREE_STACK, FREEING_THREAD);
        }
    });
    lab.ask(".break")?;
    lab.ask("lm")?;
    costs.push(lab.ask(question)?["cost"].clone());
    Ok(costs)
}

/// A mark, 100 records in the log of 65,536 later a check, and the stops of a watch, beside all that they do not read.
fn hunt(case: &Case, store: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut lab = Lab::new(case, store)?;
    let file = tempfile::NamedTempFile::new()?;
    let mark = format!("!leak mark m Leak -file {}", file.path().display());
    print_row("!leak mark m Leak", &lab.ask(&mark)?["cost"]);
    lab.ask("g")?;
    lab.fake.with_kernel(|kernel| {
        // Another driver's, and six blocks more of the leak.
        let mut other = LEAK_STACK;
        other[2] = 0xffff_f880_0164_2d31;
        for _ in 0..47 {
            kernel.allocate_large_at(SCRATCH, 0x4270_6354, 0x1000, PoolKind::NonPaged, &other, LEAK_THREAD);
            kernel.free_large(SCRATCH, &FREE_STACK, FREEING_THREAD);
        }
        for _ in 0..6 {
            kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD);
        }
    });
    lab.ask(".break")?;
    print_row("!leak check m (after 100 records)", &lab.ask("!leak check m")?["cost"]);
    let watched = lab.ask("!leak watch Leak -every 100ms -times 3")?;
    for stop in watched["result"]["checks"].as_array().into_iter().flatten() {
        print_row("  a stop of !leak watch Leak", stop);
    }
    let mut lab = Lab::new(case, store)?;
    let (mut requests, mut bytes, mut frozen) = (0, 0, 0);
    for question in ["!poolused 4", "!poolfind * -large", "!verifier 0x80 fffff8a005800000 -full"] {
        let cost = &lab.ask(question)?["cost"];
        let number = |name: &str| cost[name].as_u64().unwrap_or_default();
        (requests, bytes, frozen) =
            (requests + number("requests"), bytes + number("bytes_read"), frozen + number("frozen_ms"));
    }
    let all = serde_json::json!({"requests": requests, "bytes_read": bytes, "frozen_ms": frozen});
    print_row("  reading everything instead", &all);
    Ok(())
}

const SCRATCH: u64 = 0xffff_fa80_0500_0000;

fn print_row(question: &str, cost: &Value) {
    let number = |name: &str| cost[name].as_f64().unwrap_or_default();
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
