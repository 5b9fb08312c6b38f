//! Attaches to a kernel, prints what it says of itself, and lets it run.
//!
//! `cargo run -p kdpool-examples --bin version -- net:port=50000,key=1.2.3.4`

use kdpool_examples::{Failure, words};

fn main() -> Result<(), Failure> {
    let [connection] = words("version CONNECTION")?;
    let kernel = kd_target::open(&connection)?;
    let (version, stop) = (kernel.version(), kernel.stop());
    println!("Windows build {} on {:?}, {} processor(s)", version.minor, version.machine, stop.processors);
    println!("the kernel is at {:016x}, and stopped at {:016x}", version.kernel_base, stop.program_counter);
    for module in kernel.modules()?.modules.iter().take(5) {
        println!("{:016x} {:>8x} {}", module.base, module.size, module.file);
    }
    // Dropping it lets the target run. Whoever wants to know how that went asks for it.
    let left = kd_target::Target::Halted(kernel).leave(kd_target::Leave::Running);
    println!("{left}");
    Ok(())
}
