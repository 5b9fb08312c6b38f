//! Wires that lose, repeat and damage, stubs with habits of their own, and targets that are not there any more. The fake
//! says what became of it: what it says counts, not what the session says.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

mod setup;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kd_fake::{FakeOptions, Faults, Start};
use kd_link::Link;
use kd_target::{Event, Leave, Left, Target, TargetError};
use nt_memory::{Fault, Memory};

use setup::lines::{CONTINUE2, Deaf, Forgetful, Lengthening, Losing, Overrunning, Parting, Poisoned, READ, Recorder};
use setup::{Carrier, PATIENCE, Setup, count, everywhere, set_up, with_noise};

const MILLISECOND: Duration = Duration::from_millis(1);

/// What the issue calls a bad wire, both ways.
fn bad(seed: u64) -> Faults {
    Faults {
        seed,
        drop: 0.10,
        duplicate: 0.05,
        reorder: 0.05,
        corrupt: 0.02,
        delay: 5 * MILLISECOND,
        ..Faults::default()
    }
}

fn base(halted: &kd_target::Halted, bytes: usize) {
    let base = halted.version().kernel_base;
    let (mut ours, mut truth) = (vec![0; bytes], vec![0; bytes]);
    assert_eq!(halted.read(base, &mut ours), Ok(bytes));
    kd_fake::kernel::article().read_virtual(base, &mut truth);
    assert!(ours == truth, "wrong bytes");
}

/// What real stubs do with a line: times of theirs, ids that go on.
fn as_real(options: &mut FakeOptions) {
    options.break_in_silence = Duration::from_secs(1);
    options.offer_period = Duration::from_secs(3);
}

#[test]
fn a_bad_wire_costs_time_and_leaves_nobody_frozen() {
    everywhere(|carrier| {
        for seed in 1..=2 {
            let setup = set_up(carrier, |options| options.faults = bad(seed));
            let halted = setup.halted();
            base(&halted, 20_000);
            let left = Target::Halted(halted).leave(Leave::Running);
            assert_eq!(left, Left::Running, "{carrier:?} {seed}");
            setup.assert_runs_soon();
            let frozen = setup.fake.stats().frozen;
            assert!(frozen < Duration::from_secs(4), "{carrier:?} {seed}: {frozen:?}");
        }
    });
}

/// A target that was debugged before goes on counting; what the last session ended on costs the next one nothing. With
/// every number of requests between, `KDPOOL_ATTACHES` of them.
#[test]
fn sessions_that_follow_one_another_cost_the_same() {
    let sessions = count("KDPOOL_ATTACHES", 16);
    everywhere(|carrier| {
        let setup = set_up(carrier, |options| {
            as_real(options);
            options.offer_period = Duration::from_millis(300);
        });
        let (mut times, mut before, mut longest_noise) = (Vec::new(), Duration::ZERO, Duration::ZERO);
        for session in 0..sessions {
            let (story, began) = (Arc::<Mutex<String>>::default(), Instant::now());
            let ((), noise) = with_noise(|| {
                let (running, _events) =
                    setup.attach_through(|link| Box::new(Recorder { link, began, story: story.clone() }));
                let halted = running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{carrier:?}: {error}"));
                for index in 0..session {
                    assert_eq!(halted.reread(halted.version().kernel_base + index, &mut [0; 8]), Ok(8));
                }
                assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running, "{carrier:?}");
            });
            let frozen = setup.fake.stats().frozen;
            // Some milliseconds by itself; each of its steps may have to wait for the machine. A lost request would add
            // seconds to every second session.
            let limit = Duration::from_secs(1) + noise * 20;
            let took = frozen - before;
            let story = story.lock().unwrap();
            assert!(took < limit, "{carrier:?}, session {session}: {took:?}, {noise:?}\n{story}");
            longest_noise = longest_noise.max(noise);
            times.push(frozen - before);
            before = frozen;
        }
        setup.assert_left_running();
        times.sort();
        let (most, longest) = (times[times.len() * 9 / 10], times.last());
        println!("{carrier:?}: {sessions} attaches, frozen {:?}, longest {longest:?}", times[times.len() / 2]);
        assert!(most < 300 * MILLISECOND + longest_noise * 20, "{carrier:?}, {longest_noise:?}: {times:?}");
    });
}

#[test]
fn ids_that_jump_cost_a_round_trip() {
    for carrier in [Carrier::Net, Carrier::Tcp] {
        let setup = set_up(carrier, |options| options.wrong_id_every = Some(7));
        let halted = setup.halted();
        let started = Instant::now();
        base(&halted, 100_000);
        assert!(started.elapsed() < Duration::from_secs(2), "{carrier:?}: {:?}", started.elapsed());
        assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running);
        setup.assert_left_running();
    }
}

/// Nagle's algorithm at the other end waits for our acknowledgements in TCP; they do not wait for anything.
#[test]
#[cfg(any(target_os = "linux", target_os = "android"))]
fn no_request_waits_for_a_delayed_acknowledgement() {
    let time = |carrier, nagle| {
        let setup = set_up(carrier, |options| options.nagle = nagle);
        let halted = setup.halted();
        let started = Instant::now();
        for index in 0..200 {
            assert_eq!(halted.reread(halted.version().kernel_base + index, &mut [0; 8]), Ok(8));
        }
        started.elapsed()
    };
    let socket = time(Carrier::Unix, false);
    let nagle = time(Carrier::Tcp, true);
    // A busy machine adds some milliseconds here and there; delayed acknowledgements would add eight seconds.
    assert!(nagle < 3 * socket + Duration::from_secs(1), "{nagle:?}, over a Unix socket {socket:?}");
}

/// 420 prints a second, and a break-in that comes beside one is lost: 95 of 100 stop it within half a second, all within
/// two. `KDPOOL_BREAK_INS` of them.
#[test]
fn a_target_that_prints_without_pause_is_stopped() {
    let tries = count("KDPOOL_BREAK_INS", 20) as usize;
    everywhere(|carrier| {
        let setup = set_up(carrier, |options| {
            options.print_every = Some(Duration::from_micros(2400));
            options.deaf_while_printing = true;
        });
        let mut halted = setup.halted();
        let mut times = Vec::new();
        let mut noise = Duration::ZERO;
        for _ in 0..tries {
            let running = halted.go().map_err(|(_, error)| error).unwrap();
            std::thread::sleep(30 * MILLISECOND);
            let started = Instant::now();
            let (stopped, away) = with_noise(|| running.break_in(PATIENCE));
            halted = stopped.map_err(|(_, error)| error).unwrap();
            times.push(started.elapsed());
            noise = noise.max(away);
        }
        times.sort();
        let (most, longest) = (times[tries * 95 / 100 - 1], times[tries - 1]);
        println!(
            "{carrier:?}: {tries} break-ins, {:?}; 95 of 100 within {most:?}, longest {longest:?}",
            times[tries / 2]
        );
        let (soon, late) = (500 * MILLISECOND + noise * 10, Duration::from_secs(2) + noise * 10);
        assert!(most < soon && longest < late, "{carrier:?}, {noise:?}: {times:?}");
        drop(halted);
        setup.assert_runs_soon();
    });
}

#[test]
fn a_kernel_that_breaks_for_ever_is_not_said_to_run() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |options| options.start = Start::BugcheckLoop);
        let halted = setup.halted();
        let started = Instant::now();
        let left = Target::Halted(halted).leave(Leave::Running);
        assert!(matches!(left, Left::StopsAgain { .. }), "{carrier:?}: {left:?}");
        assert!(left.may_stand() && started.elapsed() < Duration::from_secs(5), "{carrier:?}");
    });
}

/// A VM that is paused takes what is sent, and answers nothing.
#[test]
fn a_target_that_is_paused_is_not_said_to_run() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |_| {});
        let halted = setup.halted();
        setup.fake.pause(true);
        let started = Instant::now();
        let left = Target::Halted(halted).leave(Leave::Running);
        assert!(matches!(left, Left::Unacknowledged { .. }), "{carrier:?}: {left:?}");
        assert!(started.elapsed() < Duration::from_secs(12), "{carrier:?}: {:?}", started.elapsed());
        assert!(setup.fake.stats().halted);
    });
}

/// The line is away for some seconds while the target stands: it stands where it stood when the line is back.
#[test]
fn a_line_that_comes_back_finds_the_target_where_it_was() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |_| {});
        let (running, events) = setup.attach(true);
        let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
        let at = halted.stop().program_counter;
        setup.fake.hang(true);
        let fault = halted.reread(halted.version().kernel_base, &mut [0; 8]).unwrap_err();
        assert!(matches!(fault, Fault::Lost(_)), "{carrier:?}: {fault}");
        setup.fake.hang(false);
        let deadline = Instant::now() + PATIENCE;
        while !matches!(events.recv_timeout(deadline - Instant::now()), Ok(Event::AnswersAgain)) {}
        assert_eq!(halted.stop().program_counter, at);
        base(&halted, 5000);
        assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running, "{carrier:?}");
        setup.assert_left_running();
    });
}

/// Machine and line are gone without a word. On KDNET and on a cable nothing else tells.
#[test]
fn a_target_that_is_gone_is_called_gone() {
    let gone = |setup: &Setup| {
        let halted = setup.halted();
        let running = halted.go().map_err(|(_, error)| error).unwrap();
        setup.fake.hang(true);
        let started = Instant::now();
        let (running, error) = running.break_in(Duration::from_secs(30)).err().unwrap();
        assert!(matches!(error, TargetError::Gone(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(7));
        assert_eq!(Target::Running(running).leave(Leave::Running), Left::Unanswered);
    };
    gone(&set_up(Carrier::Net, |_| {}));
    gone(&set_up(Carrier::Tcp, |_| {}));
}

/// Whatever a command does, the session's own task takes the target from it when its time is over.
#[test]
fn a_command_that_holds_the_target_too_long_loses_it() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |_| {});
        let halted = setup.halted();
        let target = Target::Halted(halted);
        let holder = target.holder();
        let Target::Halted(halted) = target else { unreachable!() };
        holder.begin(300 * MILLISECOND);
        let started = Instant::now();
        let fault = loop {
            match halted.reread(halted.version().kernel_base, &mut [0; 2000]) {
                Ok(_) if started.elapsed() < PATIENCE => {}
                other => break other,
            }
        };
        assert_eq!(fault, Err(Fault::Cancelled), "{carrier:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "{carrier:?}");
        assert!(holder.end());
        setup.assert_runs_soon();
        // One that keeps to it does not, and then it may stand at the prompt.
        let mut target = Target::Halted(halted);
        let running = loop {
            // It runs as soon as it has the continue, and is known to when that was acknowledged.
            match target.current() {
                Target::Running(running) => break running,
                halted => target = halted,
            }
            assert!(started.elapsed() < Duration::from_secs(5), "{carrier:?}: it runs");
            std::thread::sleep(MILLISECOND);
        };
        let halted = running.break_in(PATIENCE).map_err(|(_, error)| error).unwrap();
        holder.begin(300 * MILLISECOND);
        assert!(!holder.end());
        std::thread::sleep(500 * MILLISECOND);
        base(&halted, 100);
    });
}

/// The session ends while an answer is awaited that does not come.
#[test]
fn leaving_does_not_wait_for_an_answer() {
    let setup = set_up(Carrier::Net, |_| {});
    let (running, _events) = setup.attach(true);
    let leaver = running.leaver();
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    setup.fake.hang(true);
    let reader = std::thread::spawn(move || halted.read(halted.version().kernel_base, &mut [0; 16]));
    std::thread::sleep(200 * MILLISECOND);
    setup.fake.hang(false);
    let started = Instant::now();
    assert_eq!(setup.runtime.block_on(leaver.leave()), Left::Running);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // Either the answer came in time, or the read was interrupted.
    assert!(matches!(reader.join().unwrap(), Ok(16) | Err(Fault::Cancelled | Fault::Lost(_))));
    setup.assert_left_running();
}

/// `kill -9` and the next attach, with every number of requests between, on a bad wire.
#[test]
fn what_a_killed_debugger_left_is_taken_over() {
    everywhere(|carrier| {
        for requests in 0..3 {
            let setup = set_up(carrier, |options| options.faults = bad(requests + 40));
            let dying = tokio::runtime::Runtime::new().unwrap();
            let (running, _events) = setup.attach_on(&dying, true);
            let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
            for index in 0..requests {
                assert_eq!(halted.reread(halted.version().kernel_base + index, &mut [0; 8]), Ok(8));
            }
            dying.shutdown_timeout(PATIENCE);
            drop(halted);
            assert!(setup.fake.stats().halted);
            let halted = setup.halted();
            base(&halted, 3000);
            assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running, "{carrier:?} {requests}");
            setup.assert_runs_soon();
        }
    });
}

/// A session ends before anything was heard, but after its break-in stopped the target: the report of the stop was lost.
#[test]
fn a_target_that_was_never_heard_but_stopped_is_let_go() {
    everywhere(|carrier| {
        // On KDNET a break-in is a part of the answer to an offer, which has to be heard first.
        if matches!(carrier, Carrier::Net) {
            return;
        }
        for hears_again in [true, false] {
            let setup = set_up(carrier, |_| {});
            let hears = Arc::new(AtomicBool::new(false));
            let (running, _events) = setup.attach_through(|link| Box::new(Deaf { link, hears: hears.clone() }));
            let deadline = Instant::now() + PATIENCE;
            while !setup.fake.stats().halted {
                assert!(Instant::now() < deadline, "{carrier:?}: did not stop");
                std::thread::sleep(10 * MILLISECOND);
            }
            hears.store(hears_again, Ordering::SeqCst);
            let started = Instant::now();
            let left = setup.runtime.block_on(running.leaver().leave());
            assert!(started.elapsed() < Duration::from_secs(5), "{carrier:?}: {:?}", started.elapsed());
            if hears_again {
                assert_eq!(left, Left::Running, "{carrier:?}");
                setup.assert_runs_soon();
            } else {
                assert!(matches!(left, Left::Unmet { break_ins } if break_ins > 0), "{carrier:?}: {left:?}");
                assert!(left.may_stand());
            }
        }
    });
}

/// A fault of ours in the session's own task, in the middle of whatever it does.
#[test]
fn a_panic_of_the_sessions_task_lets_the_target_run() {
    everywhere(|carrier| {
        for good in [2, 6, 15, 40] {
            let setup = set_up(carrier, |_| {});
            let (running, _events) = setup.attach_through(|link| Box::new(Poisoned { link, good }));
            let leaver = running.leaver();
            if let Ok(halted) = running.wait(Some(PATIENCE)) {
                while halted.reread(halted.version().kernel_base, &mut [0; 2000]).is_ok() {}
            }
            let left = setup.runtime.block_on(leaver.leave());
            assert!(!left.may_stand(), "{carrier:?} {good}: {left:?}");
            setup.assert_runs_soon();
        }
    });
}

/// A stub that takes any packet for the acknowledgement of its answer carries the breakpoint out, is asked for it once
/// more, and says that it has one there. It must not stay in the target under a handle that nobody knows.
#[test]
fn a_breakpoint_that_was_asked_for_twice_is_there_once() {
    let setup = set_up(Carrier::Tcp, |options| options.any_data_acknowledges = true);
    let (running, _events) = setup.attach_through(|link| Box::new(Forgetful { link, lost: false, deaf: false }));
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let place = halted.version().kernel_base + 0x2345;
    halted.set_breakpoint(place).unwrap();
    assert!(setup.fake.stats().requests_of(0x3134) >= 3, "{:?}", setup.fake.stats().requests);
    assert_eq!(setup.fake.stats().breakpoints, [0u64; 0]);
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    assert_eq!(setup.fake.stats().breakpoints, [place]);
    let halted = running.break_in(PATIENCE).map_err(|(_, error)| error).unwrap();
    halted.clear_breakpoint(place).unwrap();
    assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running);
    setup.assert_left_running();
}

/// A session ends while it attaches, at any moment, on a line that is bad: whatever was heard until then, and whatever was
/// lost, the target runs, or it is said that it may not. `KDPOOL_LEAVES` of them on each carrier.
#[test]
fn leaving_in_the_middle_of_attaching_leaves_nobody_frozen() {
    const AT_ONCE: u64 = 8;
    let rounds = count("KDPOOL_LEAVES", 8).div_ceil(AT_ONCE);
    everywhere(|carrier| {
        // Whether it could be judged.
        let one = |seed: u64| -> bool {
            let faults = Faults { drop: 0.05, duplicate: 0.03, corrupt: 0.01, ..bad(seed) };
            let setup = set_up(carrier, |options| options.faults = faults);
            let (story, began) = (Arc::<Mutex<String>>::default(), Instant::now());
            let (running, _events) =
                setup.attach_through(|link| Box::new(Recorder { link, began, story: story.clone() }));
            let after = Duration::from_micros(seed.wrapping_mul(0x9e37_79b9) % 350_000);
            std::thread::sleep(after);
            let (left, noise) = with_noise(|| setup.runtime.block_on(running.leaver().leave()));
            // What was sent last may still be on its way.
            let deadline = Instant::now() + Duration::from_secs(3);
            while setup.fake.stats().halted && !left.may_stand() && Instant::now() < deadline {
                std::thread::sleep(10 * MILLISECOND);
            }
            // A fake that is not scheduled for that long is as silent as one that runs.
            let is_fair = noise < 300 * MILLISECOND;
            let is_well = !setup.fake.stats().halted || left.may_stand();
            assert!(is_well || !is_fair, "{carrier:?} {seed} {after:?}: {left:?}\n{}", story.lock().unwrap());
            is_well
        };
        // That the machine was away proves nothing: the same moment and the same faults are tried again.
        let one = |seed: u64| {
            let judged = (0..4).any(|again| {
                let judged = one(seed);
                if !judged {
                    println!("{carrier:?} {seed}: left frozen while the machine was away (try {again})");
                }
                judged
            });
            assert!(judged, "{carrier:?} {seed}: left frozen each time");
        };
        std::thread::scope(|scope| {
            for first in 0..AT_ONCE {
                let one = &one;
                scope.spawn(move || (0..rounds).for_each(|round| one(round * AT_ONCE + first)));
            }
        });
    });
}

/// A stub swallows all that it is asked, in silence, while it waits for the rest of a packet that has none. Its silence is
/// not that of a target that runs.
#[test]
fn a_target_that_waits_for_the_rest_of_a_packet_is_not_taken_for_one_that_runs() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let left = Arc::new(AtomicUsize::new(1));
    let lengthening =
        |link| Box::new(Lengthening { link, api: CONTINUE2, bit: 3, left: left.clone() }) as Box<dyn Link>;
    let (running, _events) = setup.attach_through(lengthening);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running);
    setup.assert_left_running();
}

/// The same of any other request. What is sent again and again would only be swallowed, and keep it waiting: half a minute
/// for the longest.
#[test]
fn a_target_that_waits_for_the_rest_of_a_request_is_given_time_to_notice() {
    everywhere(|carrier| {
        for bit in 0..4 {
            let setup = set_up(carrier, |_| {});
            let left = Arc::new(AtomicUsize::new(0));
            let lengthening =
                |link| Box::new(Lengthening { link, api: READ, bit, left: left.clone() }) as Box<dyn Link>;
            let (running, _events) = setup.attach_through(lengthening);
            let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
            left.store(1, Ordering::SeqCst);
            let started = Instant::now();
            base(&halted, 20_000);
            // One second of silence, and what went before.
            assert!(started.elapsed() < Duration::from_secs(4), "{carrier:?}, bit {bit}: {:?}", started.elapsed());
            assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running, "{carrier:?}, bit {bit}");
            setup.assert_left_running();
        }
    });
}

/// The continue from a break instruction is lost. Asked, the target tells its stop again, from behind the instruction, where
/// its program counter was set to: it is let go, and nobody hears of another stop.
#[test]
fn a_stop_that_is_told_from_where_we_moved_it_is_no_other() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let (running, _events) = setup.attach_through(|link| Box::new(Losing { link, left: 2 }));
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    assert!(running.wait(Some(Duration::from_secs(1))).is_err(), "it stopped again");
    setup.assert_runs_soon();
}

/// Nobody typed for a while, and then the acknowledgement of the continue is lost: the target runs, and is said to.
#[test]
fn a_lost_acknowledgement_after_a_pause_is_made_up_for() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let (running, _events) = setup.attach_through(|link| Box::new(Parting { link, continues: 0 }));
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    // At a stop that needs nothing but the continue.
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    setup.fake.stop_at(0xc000_0005, 0xffff_f800_014b_2000);
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let started = Instant::now();
    let running = halted.go().map_err(|(_, error)| error).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    setup.assert_runs_soon();
    drop(running);
}

/// Of its longest replies one in ten comes whole: less is asked for.
#[test]
fn a_line_that_loses_bytes_is_read_in_short_pieces() {
    let setup = set_up(Carrier::Tcp, |_| {});
    let (running, _events) = setup.attach_through(|link| Box::new(Overrunning { link, dice: 1 }));
    let halted = running.wait(Some(PATIENCE)).map_err(|(_, error)| error).unwrap();
    let started = Instant::now();
    base(&halted, 100_000);
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running);
    setup.assert_left_running();
}

/// It stands, and waits for the rest of a request of a debugger that is dead. The break-ins of the next, a byte each, would
/// keep it waiting for minutes.
#[test]
fn a_packet_that_a_dead_debugger_left_open_is_given_up() {
    use std::io::Write;
    let setup = set_up(Carrier::Tcp, |options| options.start = Start::BrokenIn);
    let mut dead = std::net::TcpStream::connect(setup.fake.address().unwrap()).unwrap();
    // A data packet that promises 2104 bytes, and some of them.
    dead.write_all(b"\x30\x30\x30\x30\x02\x00\x38\x08\x00\x00\x80\x80\x00\x00\x00\x00").unwrap();
    dead.write_all(&[0; 40]).unwrap();
    std::thread::sleep(100 * MILLISECOND);
    drop(dead);
    let started = Instant::now();
    let halted = setup.halted();
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    base(&halted, 20_000);
    assert_eq!(Target::Halted(halted).leave(Leave::Running), Left::Running);
    setup.assert_left_running();
}

/// A machine that starts: driver after driver, each told of from the same place, while the session is left.
#[test]
fn notices_of_drivers_are_continued_while_leaving() {
    everywhere(|carrier| {
        let setup = set_up(carrier, as_real);
        let halted = setup.halted();
        let loading = AtomicBool::new(true);
        let left = std::thread::scope(|scope| {
            scope.spawn(|| {
                while loading.load(Ordering::SeqCst) {
                    setup.fake.load_module(kd_fake::ModuleLoad {
                        path: "\\SystemRoot\\newone.sys".into(),
                        base: 0xffff_f880_0999_0000,
                        size: 0x5000,
                        unload: false,
                    });
                    std::thread::sleep(250 * MILLISECOND);
                }
            });
            let started = Instant::now();
            let left = Target::Halted(halted).leave(Leave::Running);
            loading.store(false, Ordering::SeqCst);
            assert!(started.elapsed() < Duration::from_secs(6), "{carrier:?}: {:?}", started.elapsed());
            left
        });
        assert_eq!(left, Left::Running, "{carrier:?}");
        // One that came just after the end is given up by the target itself.
        setup.assert_runs_within(Duration::from_secs(40));
    });
}

/// It was asked to stop and says nothing at all: the break-in waits for it, and will stop it with nobody there.
#[test]
fn a_break_in_without_an_answer_is_not_said_to_run() {
    everywhere(|carrier| {
        let setup = set_up(carrier, |_| {});
        let running = setup.halted().go().map_err(|(_, error)| error).unwrap();
        std::thread::sleep(2500 * MILLISECOND);
        setup.fake.pause(true);
        let (running, _) = running.break_in(Duration::ZERO).err().unwrap();
        let started = Instant::now();
        let left = Target::Running(running).leave(Leave::Running);
        assert_eq!(left, Left::Unanswered, "{carrier:?}");
        assert!(started.elapsed() < Duration::from_secs(6), "{carrier:?}: {:?}", started.elapsed());
    });
}
