//! The attached kernel against the fake target, which tells afterwards what really happened to it.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

mod setup;

use std::time::{Duration, Instant};

use kd_fake::{Faults, Start};
use kd_target::{Attach, Event, Interrupt, Leave, Running, Target};
use kd_wire::session::{HostSession, SerialConfig};
use nt_memory::{Fault, Memory};

use setup::{Carrier, PATIENCE, everywhere, set_up};

#[test]
fn attaches_reads_and_leaves_over_every_carrier() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |_| {});
        let (running, _events) = setup.attach(true);
        let halted = running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{carrier:?}: {error}"));
        assert_eq!(halted.version().minor, 7601, "{carrier:?}");
        assert!(halted.stop().asked);
        let mut signature = [0; 2];
        assert_eq!(halted.read(halted.version().kernel_base, &mut signature).unwrap(), 2);
        assert_eq!(&signature, b"MZ");
        let files: Vec<_> = halted.modules().unwrap().modules.iter().map(|module| module.file.clone()).collect();
        assert!(files.contains(&"ntoskrnl.exe".to_owned()) && files.contains(&"myfault.sys".to_owned()), "{files:?}");
        drop(halted);
        setup.assert_left_running();
    });
}

#[test]
fn takes_a_halted_target_over_and_one_that_waits_at_boot() {
    everywhere(|carrier| {
        for start in [Start::BrokenIn, Start::WaitingAtBoot] {
            let setup = set_up(carrier, |options| options.start = start);
            let (running, _events) = setup.attach(true);
            let halted =
                running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{carrier:?} {start:?}: {error}"));
            assert_eq!(halted.version().minor, 7601);
            drop(halted);
            setup.assert_left_running();
        }
    });
}

#[test]
fn reads_cost_no_more_requests_than_replies_carry() {
    for (carrier, max_data) in [(Carrier::Net, 1096), (Carrier::Net, 1296), (Carrier::Net, 1352), (Carrier::Tcp, 3944)]
    {
        let setup = set_up(carrier, |options| options.max_data = Some(max_data));
        let (running, _events) = setup.attach(true);
        let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
        let length = 100_000;
        let mut image = vec![0; length];
        let before = halted.cost();
        assert_eq!(halted.read(halted.version().kernel_base, &mut image).unwrap(), length);
        let after = halted.cost();
        let requests = after.requests - before.requests;
        assert!(requests <= (length.div_ceil(max_data) + 2) as u64, "{carrier:?} {max_data}: {requests} requests");
        assert_eq!(after.bytes_read - before.bytes_read, length as u64);
        // Nothing is asked for twice while the target stands still.
        assert_eq!(halted.read(halted.version().kernel_base, &mut image).unwrap(), length);
        assert_eq!(halted.cost().requests, after.requests);
        // Unless that is wanted.
        let mut again = vec![0; 64];
        assert_eq!(halted.reread(halted.version().kernel_base, &mut again).unwrap(), 64);
        assert_eq!((&again[..], halted.cost().requests), (&image[..64], after.requests + 1));
    }
}

#[test]
fn holes_are_found_where_they_are() {
    let setup = set_up(Carrier::Net, |_| {});
    let (running, _events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(halted.read(0x1000, &mut buffer).unwrap(), 0);
    // The last page of the shared user page's neighbourhood: the page is there, the next one is not.
    let end = 0xffff_f780_0000_1000u64;
    assert_eq!(halted.read(end - 16, &mut buffer).unwrap(), 16);
}

#[test]
fn go_and_break_again() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |_| {});
        let (running, _events) = setup.attach(true);
        let mut halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
        for _ in 0..3 {
            let running = halted.go().map_err(|(_, error)| error).unwrap();
            halted = running.break_in(PATIENCE).unwrap_or_else(|(_, error)| panic!("{carrier:?}: {error}"));
        }
        drop(halted);
        setup.assert_left_running();
    });
}

#[test]
fn a_panic_lets_the_target_run() {
    let setup = set_up(Carrier::Net, |_| {});
    let (running, _events) = setup.attach(true);
    let result = std::thread::scope(|scope| {
        let crashing = scope.spawn(move || {
            let _halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
            std::panic::resume_unwind(Box::new("a fault of the shell"));
        });
        crashing.join()
    });
    assert!(result.is_err());
    setup.assert_left_running();
}

#[test]
fn only_the_explicit_wish_leaves_it_halted() {
    let setup = set_up(Carrier::Net, |_| {});
    let (running, _events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    Target::Halted(halted).leave(Leave::Halted);
    assert!(setup.fake.stats().halted);
}

/// A breakpoint of a debugger that is gone would stop the machine with nobody there, if we leave it while it runs.
#[test]
fn what_another_debugger_left_is_gone_once_the_target_runs() {
    let setup = set_up(Carrier::Net, |_| {});
    let dying = tokio::runtime::Runtime::new().unwrap();
    let (running, _events) = setup.attach_on(&dying, true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    halted.set_breakpoint(halted.stop().program_counter + 0x40).unwrap();
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    assert_eq!(setup.fake.stats().breakpoints.len(), 1);
    // Its port is free when it is gone.
    dying.shutdown_timeout(PATIENCE);
    drop(running);

    let (running, _events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    drop(running);
    setup.assert_left_running();
}

#[test]
fn prints_loads_prompts_and_file_requests_are_served_while_it_runs() {
    let setup = set_up(Carrier::Net, |_| {});
    let (running, events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    setup.fake.print("hello from the target\n");
    setup.fake.prompt("Break repeatedly, break Once, Ignore (boi)? ");
    setup.fake.open_file("\\Windows\\system32\\drivers\\x.sys");
    setup.fake.load_module(kd_fake::ModuleLoad {
        path: "\\SystemRoot\\x.sys".into(),
        base: 0xffff_f880_0999_0000,
        size: 0x5000,
        unload: false,
    });
    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && seen.len() < 3 {
        match events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Print(text)) if text.contains("hello") => seen.push(text),
            Ok(Event::Prompt { text, answer }) => seen.push(format!("{text}{answer}")),
            Ok(Event::ModuleChange { path, unload: false, .. }) => seen.push(path),
            _ => {}
        }
    }
    assert_eq!(
        seen,
        ["hello from the target\n", "Break repeatedly, break Once, Ignore (boi)? i", "\\SystemRoot\\x.sys"]
    );
    let halted = running.break_in(PATIENCE).map_err(|(_, error)| error).unwrap();
    drop(halted);
    setup.assert_left_running();
    assert_eq!(setup.fake.stats().file_statuses, [0xc000_000f]);
}

#[test]
fn comes_back_after_a_reboot_announced_or_not() {
    everywhere(|carrier| {
        for announced in [true, false] {
            let setup = set_up(carrier, |options| {
                options.reboot_time = Duration::from_millis(200);
                options.restart = Start::Running;
            });
            let (running, events) = setup.attach(true);
            let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
            let running = halted.go().map_err(|(_, error)| error).unwrap();
            if announced {
                setup.fake.reboot()
            } else {
                setup.fake.reset()
            }
            let deadline = Instant::now() + PATIENCE;
            let until = |reboots| {
                while setup.fake.stats().reboots < reboots && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(20));
                }
            };
            until(1);
            std::thread::sleep(Duration::from_millis(400));
            let halted = running
                .break_in(PATIENCE)
                .unwrap_or_else(|(_, error)| panic!("{carrier:?}, announced {announced}: {error}"));
            assert_eq!(halted.version().minor, 7601);
            drop(halted);
            setup.assert_left_running();
            let told = events.try_iter().any(|event| matches!(event, Event::Restarted { .. }));
            assert!(told || !announced, "{carrier:?}: the restart was not told");
        }
    });
}

#[test]
fn a_bad_line_is_no_reason_for_wrong_bytes() {
    for carrier in [Carrier::Net, Carrier::Tcp] {
        let setup = set_up(carrier, |options| {
            options.retransmit = Duration::from_millis(100);
            options.faults = Faults {
                seed: 42,
                drop: 0.03,
                duplicate: 0.03,
                corrupt: if matches!(carrier, Carrier::Net) { 0.03 } else { 0.0 },
                inbound: matches!(carrier, Carrier::Net),
                ..Faults::default()
            };
        });
        let (running, _events) = setup.attach(true);
        let halted = running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{carrier:?}: {error}"));
        let kernel = kd_fake::kernel::article();
        let base = halted.version().kernel_base;
        let mut ours = vec![0; 30_000];
        let mut truth = ours.clone();
        assert_eq!(halted.read(base, &mut ours).unwrap(), kernel.read_virtual(base, &mut truth));
        assert!(ours == truth, "{carrier:?}: bytes differ");
    }
}

#[test]
fn an_interrupt_ends_a_wait_and_a_read() {
    let setup = set_up(Carrier::Net, |_| {});
    let interrupt = Interrupt::default();
    let attach = Attach::to(setup.spec.clone()).on(setup.runtime.handle()).interrupt(interrupt.clone());
    let (running, _events) = attach.start().unwrap();
    let raise = interrupt.clone();
    let raiser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        raise.raise();
    });
    // It runs, nobody broke in: it would wait for ever.
    let (running, error) = running.wait(None).err().unwrap();
    assert_eq!(error.to_string(), "interrupted");
    raiser.join().unwrap();
    let halted = running.break_in(PATIENCE).map_err(|(_, error)| error).unwrap();
    interrupt.raise();
    assert_eq!(halted.read(halted.version().kernel_base, &mut [0; 16]), Err(Fault::Cancelled));
    assert_eq!(halted.read(halted.version().kernel_base, &mut [0; 16]), Ok(16));
}

#[test]
fn a_dead_target_is_given_up() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let (running, events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    drop(setup.fake);
    let fault = halted.read(0xffff_f800_0000_0000, &mut [0; 16]).unwrap_err();
    assert!(matches!(fault, Fault::Lost(_)), "{fault}");
    assert!(halted.go().is_err());
    // It is said once. The events end with the session.
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Lost(_))).count(), 1);
}

/// The other end of a pipe or a pseudo terminal that nobody reads: its buffer is full after some minutes.
struct Full;

impl kd_link::Link for Full {
    fn recv(&mut self) -> kd_link::BoxFuture<'_, std::io::Result<Option<kd_link::Frame>>> {
        Box::pin(std::future::pending())
    }

    fn send(&mut self, _: kd_link::Frame) -> kd_link::BoxFuture<'_, std::io::Result<()>> {
        Box::pin(std::future::pending())
    }

    fn describe(&self) -> String {
        "a full pipe".into()
    }
}

#[test]
fn a_line_that_takes_nothing_can_be_left() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let session = HostSession::serial(SerialConfig::default());
    let (running, _events) = kd_target::attach(runtime.handle(), Box::new(Full), session, true, Interrupt::default());
    // By then it sends.
    std::thread::sleep(Duration::from_millis(1500));
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(running);
        done.send(())
    });
    is_done.recv_timeout(PATIENCE).unwrap();
}

/// A breakpoint whose memory is gone is no reason to let the target stand at a stop that nobody sees.
#[test]
fn a_breakpoint_that_cannot_be_planted_again_does_not_freeze_the_target() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let (running, events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let place = halted.version().kernel_base + 0x1000;
    halted.set_breakpoint(place).unwrap();
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    setup.fake.set_faults(Faults { refuse_breakpoints: true, ..Faults::default() });
    setup.fake.load_module(kd_fake::ModuleLoad {
        path: "\\SystemRoot\\x.sys".into(),
        base: 0xffff_f880_0999_0000,
        size: 0x5000,
        unload: true,
    });
    let deadline = Instant::now() + PATIENCE;
    let missed = |event: &Event| matches!(event, Event::BreakpointMissed { address, .. } if *address == place);
    while !missed(&events.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap()) {}
    while setup.fake.stats().halted {
        assert!(Instant::now() < deadline, "it stands still");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Who continues it at the prompt is told.
    let halted = running.break_in(PATIENCE).map_err(|(_, error)| error).unwrap();
    let (halted, error) = halted.go().err().unwrap();
    assert!(error.to_string().contains("breakpoint"), "{error}");
    setup.fake.set_faults(Faults::default());
    drop(halted.go().map_err(|(_, error)| error).unwrap());
    setup.assert_left_running();
}

#[test]
fn a_halted_target_is_changed_and_left_as_it_should_be() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let (running, _events) = setup.attach(true);
    let halted = running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{error}"));
    let base = halted.version().kernel_base;
    let list = halted.version().loaded_module_list;
    // CR3, and the root of the page tables behind it.
    let special = halted.read_control(0, 2, 0x20).unwrap();
    let root = u64::from_le_bytes(special[0x10..0x18].try_into().unwrap()) & 0x000f_ffff_ffff_f000;
    let mut table = vec![0; 0x1000];
    assert_eq!(halted.read_physical(root, &mut table).unwrap(), 0x1000);
    assert!(table.iter().any(|byte| *byte != 0));
    // What is written is read again, not what was known before.
    let mut before = [0; 0x20];
    halted.read_exact(list, &mut before).unwrap();
    assert_eq!(halted.write(list, b"changed").unwrap(), 7);
    let mut after = [0; 7];
    halted.read_exact(list, &mut after).unwrap();
    assert_eq!(&after, b"changed");
    assert_eq!(halted.write(list, &before).unwrap(), before.len());
    assert_eq!(halted.write(0x1000, b"x").unwrap(), 0);
    // Registers.
    let context = halted.context(0).unwrap().to_vec();
    let mut changed = context.clone();
    changed[0x78..0x80].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
    halted.set_context(0, changed.clone()).unwrap();
    assert_eq!(halted.context(0).unwrap(), changed);
    assert!(halted.set_processor(0xfff).is_err());
    assert_eq!(halted.processor(), 0);
    // Breakpoints.
    halted.set_breakpoint(base + 0x1000).unwrap();
    assert!(halted.set_breakpoint(base + 0x1000).is_err());
    halted.set_breakpoint(base + 0x2000).unwrap();
    halted.clear_breakpoint(base + 0x2000).unwrap();
    assert!(halted.clear_breakpoint(base + 0x2000).is_err());
    // They are in the target only while it runs, and it is stopped once more to take them out.
    assert_eq!(setup.fake.stats().breakpoints, [0u64; 0]);
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    assert_eq!(setup.fake.stats().breakpoints, [base + 0x1000]);
    drop(running);
    setup.assert_left_running();
}

/// A breakpoint is hit each time the target comes by, others beside it stay, and steps are single instructions.
#[test]
fn breakpoints_are_hit_again_and_again_and_steps_are_instructions() {
    use kd_fake::kernel::{ARTICLE_CALL, LEAK_STACK, LEAK_THREAD};
    everywhere(|carrier| {
        let setup = set_up(carrier, |options| options.call = Some((ARTICLE_CALL, Duration::from_millis(30))));
        let (running, _events) = setup.attach(true);
        let wait =
            |running: Running| running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{carrier:?}: {error}"));
        let mut halted = wait(running);
        // nop; nop; ret: two so near each other that a stop at one takes the other out of the target's table as well.
        let mut call = [0; 5];
        halted.read_exact(LEAK_STACK[0] - 5, &mut call).unwrap();
        let displacement = i32::from_le_bytes(call[1..].try_into().unwrap());
        let site = LEAK_STACK[0].wrapping_add_signed(displacement.into());
        halted.set_breakpoint(site).unwrap();
        halted.set_breakpoint(site + 2).unwrap();
        for hit in 0..4 {
            halted = wait(halted.go().map_err(|(_, error)| error).unwrap());
            let at = site + 2 * (hit % 2);
            assert_eq!((halted.stop().code, halted.stop().program_counter), (0x8000_0003, at), "{carrier:?} {hit}");
            assert!(!halted.stop().asked);
            assert_eq!(halted.stop().thread, LEAK_THREAD);
            let mut code = [0; 3];
            halted.read_exact(site, &mut code).unwrap();
            assert_eq!(code, [0x90, 0x90, 0xc3], "the target's own bytes");
        }
        // ret, from a breakpoint.
        halted = wait(halted.step().map_err(|(_, error)| error).unwrap());
        assert_eq!((halted.stop().code, halted.stop().program_counter), (0x8000_0004, LEAK_STACK[0]));
        halted.clear_breakpoint(site).unwrap();
        halted = wait(halted.go().map_err(|(_, error)| error).unwrap());
        assert_eq!(halted.stop().program_counter, site + 2);
        drop(halted);
        setup.assert_left_running();
    });
}
