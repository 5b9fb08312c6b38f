//! The live blocks of a tag, wherever the kernel keeps them, without the shell.
//!
//! `cargo run -p kdpool-examples --bin blocks_of_a_tag -- net:port=50000,key=1.2.3.4 'srv*' Leak`

use std::time::Duration;

use kdpool_examples::{Attached, Failure, words};
use nt_memory::Memory;
use nt_pool::TagPattern;
use nt_pool::find::{Bounds, Question, Quote, Silent};

fn main() -> Result<(), Failure> {
    let [connection, symbol_path, tag] = words("blocks_of_a_tag CONNECTION SYMBOL_PATH TAG")?;
    let tag: TagPattern = tag.parse()?;
    let attached = Attached::new(&connection, &symbol_path)?;
    let kernel = attached.kernel();

    // What is cheap is answered at once, and says what the rest will cost.
    let before = attached.target.spent();
    let quote = Quote::new(&kernel, Question::new(tag), before)?;
    if let Some(expected) = quote.expected {
        eprintln!("small blocks: {} requests, {:.1?} with the target frozen", expected.requests, expected.time);
    }
    // No more than that: the target stands still meanwhile.
    let bounds = Bounds { budget: Some(Duration::from_secs(10)), ..Bounds::default() };
    let found = quote.run(&kernel, bounds, &mut Silent)?;
    drop(attached);

    for block in &found.blocks {
        println!("{:016x} {:>8x} {} {:?}", block.address(), block.size(), block.tag(), block.pool());
    }
    if let Some(place) = found.stopped {
        println!("stopped at {:016x}: ask again with Question::resumed", place.address);
    }
    for note in found.notes.lines() {
        println!("note: {note}");
    }
    Ok(())
}
